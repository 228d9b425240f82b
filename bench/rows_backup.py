# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows about backups.  They compare this plugin with itself: what a bitmap or
a point in time costs, and an increment beside a full copy."""

import statistics
import subprocess
import time

import clients
import proofs
from common import CLUSTER, GiB, MiB, die, run, stamp, timed
from rows import Row, turns
from rows_write import WriteRow
from servers import Server

REGION = 4 * MiB        # what is marked with a place of it, at the least
ENDED = 1               # seconds after which all has gone that a point had


class Backup:
    kind = "backup"
    table = "backup"
    qemu_nbd = False
    writes = False

    def lines(self, med):
        return [(self.title, self.reference, None, "ours")]


class BackupWriteRow(Backup, WriteRow):
    """Random 4 KiB writes, on a new image for each sample."""

    def __init__(self, name, title, image, want_raw, count=None, **kw):
        super().__init__(name, title, self.write, "IOPS", image,
                         rw="randwrite", depth=16, count=count, fresh=True,
                         want_raw=want_raw, **kw)

    def measure(self, bench):
        bench.data.get_warm(self.sets)
        got = turns(bench, self, [self.reference, "ours"])
        bench.data.drop("written.*")
        return got


class BitmapRow(BackupWriteRow):
    reference = "without"

    def __init__(self, *args, dirty=False, runtime=None, **kw):
        super().__init__(*args, proof=self.prove_bitmap, **kw)
        self.dirty = dirty          # all regions are, before it is measured
        self.runtime = runtime

    def serve(self, bench, server, path, **kw):
        if server == "ours":
            run("qemu-img", "bitmap", "-f", "qcow2", "--add", path, "b")
        return bench.start("ours", path, path, write=True, **kw)

    def write(self, bench, s, row, salt, pin):
        if self.dirty:
            h = bench.connect(s)
            for at in range(0, h.get_size(), REGION):
                h.pwrite(stamp(at, salt), at)
            h.shutdown()
        return clients.fio_write(bench, s, self, salt, pin)

    def prove(self, bench, server, path, *args):
        self.granules = None
        if server == "ours":
            s = Server(["qemu-nbd", "-r", "-t", "-k", bench.sock, "-f",
                        "qcow2", "-B", "b", path], bench.sock)
            h = bench.connect(s, context="qemu:dirty-bitmap:b")
            self.granules = {at // CLUSTER for start, n, flags in
                             proofs.extents(h, 0, h.get_size()) if flags & 1
                             for at in range(start, start + n, CLUSTER)}
            h.shutdown()
            s.stop()
        super().prove(bench, server, path, *args)

    def prove_bitmap(self, bench, h, row, salt, requests):
        """The bitmap has, for QEMU, exactly what has changed."""
        places = list(proofs.changed(bench, h, self, salt))
        most = requests
        if self.dirty:
            most += h.get_size() // REGION
        if not requests <= len(places) <= most:
            return "%d requests, but %d of them took effect" % (
                requests, len(places))
        granules = {at // CLUSTER for at in places}
        if self.granules not in (None, granules):
            return "%d granules have changed, and %d by the bitmap" % (
                len(granules), len(self.granules))


class PointRow(BackupWriteRow):
    """While a point is held, which has to be what the disk was.  Later writes
    are compared with those after such a point has ended: the clusters were
    written elsewhere then, too, and the host's page cache has them in the same
    way, which matters more than what the plugin has to do."""

    def __init__(self, *args, later=False, **kw):
        super().__init__(*args, **kw)
        self.later = later      # all clusters were written since the point
        self.reference = "ended" if later else "snapshot"
        if later:
            self.sets.append("source")
            self.before = "source.raw"

    def serve(self, bench, server, path, **kw):
        if server == "snapshot":
            run("qemu-img", "snapshot", "-c", "s", path)
        mine = server in ("ours", "ended")
        s = bench.start("ours", path, path, write=True, options=[
            "point-in-time=true", "point-in-time-linger=0"] if mine else [],
            **kw)
        self.point = bench.connect(s, "now/bench") if mine else None
        if self.later:
            run("nbdcopy", "--flush", bench.data.path("source.raw"), s.uri())
        if server == "ended":
            self.point.shutdown()
            self.point = None
            time.sleep(ENDED)
        return s

    def write(self, bench, s, row, salt, pin):
        got = clients.fio_write(bench, s, self, salt, pin)
        if self.point:
            with open(bench.data.path("seq.raw"), "rb") as f:
                for at in range(0, self.point.get_size(), MiB):
                    if self.point.pread(MiB, at) != f.read(MiB):
                        die("%s: the point is wrong in the MiB from %d"
                            % (self.name, at))
            self.point.shutdown()
        return got


class StopRow(Backup, Row):
    """How long a write takes at most while somebody else opens a point, or
    the live disk."""
    needs_nbd = True
    reference = "live"
    count = 20                  # such clients

    def __init__(self, name, title):
        super().__init__(name, title, None, None, "1/s")
        self.sets = ["big"]

    @staticmethod
    def longest(h, uri):
        """Of the writes while a client comes and goes."""
        p = subprocess.Popen(["nbdinfo", "--size", uri],
                             stdout=subprocess.DEVNULL)
        most, at = 0, 0
        while p.poll() is None:
            t0 = time.monotonic()
            h.pwrite(bytes(4096), at)
            most = max(most, time.monotonic() - t0)
            at = (at + 4096) % MiB
        if p.returncode != 0:
            die("nbdinfo failed on", uri)
        return most

    def sample(self, bench, server, first):
        out = bench.data.path("written.qcow2")
        bench.data.copy("big.qcow2", "written.qcow2")
        bench.data.sync(out)
        s = bench.start("ours", out, out, write=True, options=[
            "point-in-time=true", "point-in-time-linger=0"])
        h = bench.connect(s)
        for at in range(0, MiB, CLUSTER):
            h.pwrite(bytes(4096), at)
        c0 = s.cpu()
        times = [self.longest(h, s.uri("now/%d" % i if server == "ours"
                                       else "")) for i in range(self.count)]
        c = (s.cpu() - c0) / self.count
        h.shutdown()
        s.stop()
        if first:
            run("qemu-img", "check", "-q", "-f", "qcow2", out)
        bench.data.drop("written.*")
        return {"speed": 1 / statistics.median(times), "cpu": c}

    def measure(self, bench):
        bench.data.get("big")
        return turns(bench, self, [self.reference, "ours"])


class ChangedRow(Backup, Row):
    """The map of what two snapshots differ in."""
    reference = None
    want = 5                    # in a second

    def __init__(self, name, title):
        super().__init__(name, title, "changed", None, "maps/s")

    def sample(self, bench, server, first):
        image, = bench.data.get(self.data)
        s = bench.start("ours", image, image)
        c0 = s.cpu()
        t, _, out = timed("nbdinfo", "--map", s.uri("changed/A/B"))
        c = s.cpu() - c0
        s.stop()
        parts = (line.split() for line in out.decode().splitlines())
        got = [(int(p[0]), int(p[1])) for p in parts if p[2] == "0"]
        if got != [(at, CLUSTER) for at in bench.data.scattered()]:
            die("%s: %d extents are data, or the wrong ones"
                % (self.name, len(got)))
        return {"speed": 1 / t, "cpu": c}

    def measure(self, bench):
        bench.data.get_warm(self.sets)
        return turns(bench, self, ["ours"])


class IncrementRow(Backup, Row):
    """An increment, over the full copy which it is compared with."""
    needs_tool = True
    reference = "full"

    def __init__(self, name, title, want_raw):
        super().__init__(name, title, "increment", None, "copies/s",
                         want_raw=want_raw)

    def full(self, bench, s, out):
        return ["nbdcopy", "--flush", s.uri("snapshot/A"), "--", "[",
                "nbdkit", bench.plugin, out, "create=true",
                "size=%d" % bench.data.increment_size, "]"]

    def sample(self, bench, server, first):
        image, = bench.data.get(self.data)
        out = bench.data.path("written.%s.qcow2" % server)
        bench.data.drop("written.%s.*" % server)
        s = bench.start("ours", image, image)
        if server == "full":
            cmd = self.full(bench, s, out)
        else:
            cmd = [bench.opts.tool, "increment", s.uri("changed/A/B"), out,
                   "--backing=written.full.qcow2"]
        c0 = s.cpu()
        t, c, _ = timed(*cmd)
        c += s.cpu() - c0
        s.stop()
        run("qemu-img", "check", "-q", "-f", "qcow2", out)
        if first and server == "ours":
            run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2",
                out, image)
        return {"speed": 1 / t, "cpu": c}

    def measure(self, bench):
        bench.data.get_warm(self.sets)
        got = turns(bench, self, ["full", "ours"])
        bench.data.drop("written.*")
        return got


def bitmap(name, title, image, want_raw, **kw):
    return BitmapRow(name, "one bitmap, random 4 KiB " + title, image,
                     want_raw, size=16 * GiB if image == "fresh" else None,
                     **kw)


ROWS = [
    bitmap("bitmapover", "overwrites, depth 16", "copy", 0.95, count=131072,
           dirty=True),
    bitmap("bitmapover10s", "overwrites, the first 10 s", "copy", 0.8,
           runtime=10),
    bitmap("bitmapfresh", "writes, fresh 16 GiB, depth 16", "fresh", 0.95,
           count=40000, dirty=True),
    bitmap("bitmapfresh10s", "writes, fresh 16 GiB, the first 10 s", "fresh",
           0.8, runtime=10),
    PointRow("pointfirst", "a point is held, random 4 KiB overwrites, the "
             "first in a cluster", "copy", 1, count=4096),
    PointRow("pointlater", "a point is held, later overwrites", "copy", 0.95,
             count=131072, later=True),
    StopRow("pointstop", "a client opens a point: 1 / the longest of the "
            "writes meanwhile"),
    ChangedRow("changedmap", "nbdinfo --map of changed/A/B, 1 TiB, 8192 "
               "clusters differ"),
    IncrementRow("increment", "increment of 1 % of 16 GiB", 20),
]
