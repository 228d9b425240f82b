# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows of nbdkit-qcow2-tool's commands, beside those of qemu-img."""

import json
import os

from common import (CLUSTER, GiB, MiB, QEMU_DEFAULT, allocated, die, run,
                    timed)
from rows import Row, turns


class ManageRow(Row):
    """Each sample is one command, on an image that was just made."""
    kind = "manage"
    table = "manage"
    qemu_nbd = False
    needs_tool = True
    peer = QEMU_DEFAULT

    def __init__(self, name, title, sets, **kw):
        super().__init__(name, title, None, None,
                         "MiB/s" if self.bytes else "commands/s", **kw)
        self.sets = sets

    def lines(self, med):
        if self.peer == QEMU_DEFAULT:
            return [(self.title, None, self.peer, "ours")]
        return [(self.title, self.peer, None, "ours")]

    def bytes(self, data):
        """How many are copied."""
        return data.seq_size

    def sample(self, bench, server, first):
        out = bench.data.path("written.qcow2")
        self.prepare(bench.data, out)
        bench.data.sync(bench.data.path("written."))
        cmd = (self.ours(bench.opts.tool, out) if server == "ours"
               else self.theirs(bench.data, out))
        t, c, _ = timed(*cmd)
        if server in ("ours", QEMU_DEFAULT):
            if first:
                run("qemu-img", "check", "-q", "-f", "qcow2", out)
            wrong = self.prove(bench, out)
            if wrong:
                die("%s, %s: %s" % (self.name, server, wrong))
        bench.data.drop("written.*")
        if not self.bytes:
            return {"speed": 1 / t, "cpu": c}
        n = self.bytes(bench.data)
        return {"speed": n / t / MiB, "cpu": c / n * GiB}

    def measure(self, bench):
        for name in self.sets:
            bench.data.get(name)
        return turns(bench, self, [self.peer, "ours"])


class BigRow(ManageRow):
    """Of an image with 16 million clusters mapped."""
    bytes = None
    needs_nbd = True

    def __init__(self, name, title, args, source, snapshots, before, after=1,
                 **kw):
        super().__init__(name, title, [source], want_qemu=1, **kw)
        self.args = args            # image: {}; sizes are times that of it
        self.snapshots = snapshots  # those there are afterwards
        self.before = before        # how "before" the disk reads ...
        self.after = after          # ... and how long it is, likewise

    def prepare(self, data, out):
        data.copy(self.sets[0] + ".qcow2", "written.qcow2")
        self.size = int(data.big_size * self.after)

    def command(self, program, out):
        words = {"image": out, "size": str(self.size)}
        return [program] + [words.get(a, a) for a in self.args]

    def ours(self, tool, out):
        return self.command(tool, out)

    def theirs(self, data, out):
        return self.command("qemu-img", out)

    def prove(self, bench, out):
        info = json.loads(run("qemu-img", "info", "-f", "qcow2",
                              "--output=json", out))
        names = [s["name"] for s in info.get("snapshots", [])]
        if (info["virtual-size"], names) != (self.size, self.snapshots):
            return "%d bytes, snapshots %s" % (info["virtual-size"], names)
        s = bench.start(QEMU_DEFAULT, out, out)
        h = bench.connect(s)
        for at, old, new in bench.data.places():
            good = bytes([old if self.before else new]) * CLUSTER
            if at < self.size and h.pread(CLUSTER, at) != good:
                return "wrong data at %d" % at
        h.shutdown()
        s.stop()


class CommitRow(ManageRow):
    """All of an overlay, to an image that is all allocated too."""

    def prepare(self, data, out):
        data.copy("base.qcow2", "written.base.qcow2")
        data.copy("seq.qcow2", "written.qcow2")
        run("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2",
            "-b", "written.base.qcow2", out)

    def ours(self, tool, out):
        return [tool, "commit", "-q", "--follow=beneath", out]

    def theirs(self, data, out):
        return ["qemu-img", "commit", "-q", "-f", "qcow2", out]

    def prove(self, bench, out):
        base = bench.data.path("written.base.qcow2")
        run("qemu-img", "check", "-q", "-f", "qcow2", base)
        for image in base, out:
            run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw",
                image, bench.data.path("seq.raw"))
        if allocated(out) > MiB:
            return "the overlay was not emptied"


class RebaseRow(ManageRow):
    """Of an empty overlay, to another backing file: all of it differs."""

    def prepare(self, data, out):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
            "-b", "seq.raw", out)

    def ours(self, tool, out):
        return [tool, "rebase", "-q", "--follow=beneath", "-F", "raw",
                "-b", "source.raw", out]

    def theirs(self, data, out):
        return ["qemu-img", "rebase", "-q", "-f", "qcow2", "-F", "raw",
                "-b", "source.raw", out]

    def prove(self, bench, out):
        info = json.loads(run("qemu-img", "info", "-f", "qcow2",
                              "--output=json", out))
        if info["backing-filename"] != "source.raw":
            return "its backing file is " + info["backing-filename"]
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw",
            out, bench.data.path("seq.raw"))


class CompactRow(ManageRow):
    """The half of an image that is left moves to where the other one was."""
    peer = "cp"

    def bytes(self, data):
        return data.seq_size // 2

    def prepare(self, data, out):
        data.copy("half.qcow2", "written.qcow2")

    def ours(self, tool, out):
        return [tool, "compact", "-q", out]

    def theirs(self, data, out):
        return ["sh", "-c", 'cp --reflink=never "$1" "$2" && sync "$2"', "sh",
                data.path("half.raw"), data.path("written.raw")]

    def prove(self, bench, out):
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2",
            out, bench.data.path("half.qcow2"))
        if os.path.getsize(out) > self.bytes(bench.data) + MiB:
            return "the file has %d bytes" % os.path.getsize(out)


ROWS = [
    BigRow("snapcreate", "snapshot -c, 1 TiB mapped",
           ["snapshot", "-c", "now", "image"], "big", ["now"], True),
    BigRow("snapapply", "snapshot -a, 1 TiB mapped",
           ["snapshot", "-a", "before", "image"], "later", ["before"], True),
    BigRow("snapdelete", "snapshot -d, 1 TiB mapped",
           ["snapshot", "-d", "before", "image"], "later", [], False),
    BigRow("resize", "resize to 2 TiB, 1 TiB mapped",
           ["resize", "-q", "image", "size"], "big", [], True, 2),
    BigRow("shrink", "resize --shrink to 512 GiB, 1 TiB mapped",
           ["resize", "-q", "--shrink", "image", "size"], "big", [], True,
           0.5),
    CommitRow("commit", "commit of an overlay, 2 GiB", ["seq", "base"],
              want_qemu=1),
    RebaseRow("rebase", "rebase, 2 GiB differ", ["seq", "source"],
              want_qemu=1),
    CompactRow("compact", "compact, 1 GiB moves", ["seq", "half"]),
]
