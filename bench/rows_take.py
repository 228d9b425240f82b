# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows about internal snapshots that are made of a disk which is served
(take/NAME): how long that takes, and what a guest notices of it."""

import glob
import random
import signal
import subprocess
import time

from common import CLUSTER, MiB, die, run, stamp
from rows import turns
from rows_backup import ENDED, Backup, Row
from servers import Server

PART = 16 * MiB # of the disk, for "later"
SETTLED = 0.2   # seconds after which a guest of "later" has written its part


class TakeRow(Backup, Row):
    """Of a disk that nobody writes."""
    needs_nbd = True
    reference = None
    want = 1 / 3                # in a second
    salt = random.Random("take").randbytes(504)

    def __init__(self, name, title, unit="takes/s", **kw):
        super().__init__(name, title, None, None, unit, **kw)
        self.sets = ["big"]

    def start(self, bench, server):
        """A copy of "big", and its server; the writer of the image has begun."""
        out = bench.data.path("written.qcow2")
        bench.data.copy("big.qcow2", "written.qcow2")
        if server == "snapshot":
            run("qemu-img", "snapshot", "-c", "s", out)
        bench.data.sync(out)
        s = bench.start("ours", out, out, write=True, options=[
            "point-in-time=true", "point-in-time-linger=0"])
        h = bench.connect(s)
        h.pwrite(stamp(0, self.salt), 0)
        h.flush()
        h.shutdown()
        return s

    def take(self, s):
        """Returns when that began, and ended."""
        t0 = time.time()
        run("nbdinfo", "--size", s.uri("take/bench"))
        return t0, time.time()

    def end(self, bench, s, server, first):
        out = bench.data.path("written.qcow2")
        s.stop(300)
        if s.p.returncode != 0:
            die("%s: the server ended with status %d"
                % (self.name, s.p.returncode))
        if server == "ours" and first:
            run("qemu-img", "check", "-q", "-f", "qcow2", out)
            self.prove(bench, out)
        bench.data.drop("written.*")

    def prove(self, bench, out):
        """The snapshot, read by QEMU, has what the disk had, or what the guest
        may have written by then."""
        s = Server(["qemu-nbd", "-r", "-t", "-k", bench.sock, "-l",
                    "snapshot.name=bench", out], bench.sock)
        h = bench.connect(s)
        for at, old, _ in bench.data.places():
            b = h.pread(CLUSTER, at)
            for i in range(0, CLUSTER, 4096):
                if b[i:i + 4096] not in (bytes([old]) * 4096,
                                         stamp(at + i, self.salt)):
                    die("%s: the snapshot is wrong at %d"
                        % (self.name, at + i))
        h.shutdown()
        s.stop()

    def sample(self, bench, server, first):
        s = self.start(bench, server)
        c0 = s.cpu()
        t0, t1 = self.take(s)
        c = s.cpu() - c0
        self.end(bench, s, server, first)
        return {"speed": 1 / (t1 - t0), "cpu": c, "seconds": t1 - t0}

    def measure(self, bench):
        bench.data.get("big")
        return turns(bench, self, [s for s in (self.reference, "ours") if s])


class GuestRow(TakeRow):
    """What a guest gets done while that goes on: random 4 KiB writes all over
    the disk, the first in each cluster; or, if later is set, of a small part,
    all of which was written since the point; and before since another one, so
    that the page cache has it in the same way in both cases."""
    want = None

    def __init__(self, name, title, later=False):
        super().__init__(name, title, "IOPS", want_raw=0.8)
        self.reference = "without" if later else "snapshot"
        self.later = later

    def rewrite(self, bench, s):
        """That part."""
        point = bench.connect(s, "now/before")
        h = bench.connect(s)
        for at in range(0, PART, CLUSTER):
            h.pwrite(b"".join(stamp(at + i, self.salt)
                              for i in range(0, CLUSTER, 4096)), at)
        h.flush()
        h.shutdown()
        point.shutdown()
        time.sleep(ENDED)

    def guest(self, bench, s):
        size = PART if self.later else bench.data.big_size
        return subprocess.Popen(
            ["fio", "--name=bench", "--ioengine=nbd", "--uri=" + s.uri(),
             "--rw=randwrite", "--bs=4096", "--iodepth=16", "--randseed=5",
             "--size=%d" % size, "--norandommap", "--time_based",
             "--runtime=300s", "--verify=pattern", "--do_verify=0",
             "--verify_state_save=0",
             "--verify_pattern=%o0x" + self.salt.hex(),
             "--write_iops_log=" + bench.data.path("written.log"),
             "--log_avg_msec=20", "--log_unix_epoch=1",
             "--output-format=json"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def speed(self, bench, begin, end):
        """Of the guest, between these moments."""
        log, = glob.glob(glob.escape(bench.data.path("written.log")) + "_*")
        got = []
        with open(log) as f:
            for line in f:
                ms, iops = line.split(",")[:2]
                if begin * 1000 + 20 <= int(ms) <= end * 1000:
                    got.append(int(iops))
        if not got:
            die("%s: the guest wrote nothing meanwhile" % self.name)
        return sum(got) / len(got)

    def sample(self, bench, server, first):
        s = self.start(bench, server)
        if self.later:
            self.rewrite(bench, s)
        p = self.guest(bench, s)
        time.sleep(1)           # it has begun
        c0 = s.cpu()
        if server == "ours":
            begin, end = self.take(s)
        else:
            begin = time.time()
            time.sleep(bench.opts.seconds)
            end = time.time()
        c = s.cpu() - c0
        p.send_signal(signal.SIGINT)
        out = p.communicate()[0].decode()
        if '"error" : 0' not in out:
            die("%s: fio: %s" % (self.name, out))
        if self.later:
            begin += SETTLED
        speed = self.speed(bench, begin, end)
        self.end(bench, s, server, first)
        return {"speed": speed, "cpu": c / speed / (end - begin),
                "seconds": end - begin}


ROWS = [
    TakeRow("takeidle", "take/NAME of 1 TiB mapped, nobody writes"),
    GuestRow("takefirst", "beside take/NAME, random 4 KiB writes, the first "
             "in a cluster"),
    GuestRow("takelater", "beside take/NAME, random 4 KiB writes, later ones",
             later=True),
]
