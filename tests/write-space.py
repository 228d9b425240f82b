# SPDX-License-Identifier: BSD-3-Clause
"""Space comes back without a flush by anyone (I13): random writes, zeros and
trims, of which none is flushed, to images of all kinds and with all options
that have to do with it.  After each request the file is held to what the disk
needs at most, plus what may wait to be given back; and so is the server's
memory.  Arguments: which of CASES, default all.

QTEST_VOLUME multiplies how much is written to each image; unless it is more
than 1 some have two of the properties at once."""

import hashlib
import os
import random
import sys
import time

import nbd
import diskmodel
import qtest
from qtest import path, run, check, fail, Server, StartError
from streams import noise, text

MiB = 1 << 20
# Enough to see by a file that nothing came back.
VOLUME = int(200 * MiB * qtest.VOLUME)
CONNECTIONS = 2

# nbdkit keeps a buffer for each of its threads, as large as the largest
# request that it had, and malloc an arena: let these be few.  And let malloc
# give large ones back at once.
THREADS = ("-t", "2")
os.environ["MALLOC_ARENA_MAX"] = "1"
os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"

# What is not data: tables, what is reserved ahead, and the like.
SLACK = 32 * MiB
# Of memory, between the first quarter of the requests and the end.
MEMORY = 8 * MiB

# What is written: pieces of these, so that making it takes no time.
NOISE = noise("space", 8 * MiB)
TEXT = text("space", 8 * MiB)


def waiting(length, cluster):
    """How much may wait to be given back, where the file is so long."""
    return min(max(length // 8, 64 * MiB), 1024 * MiB) + \
        CONNECTIONS * max(16 * MiB, cluster)


class Case:
    """An image, and how it is served.

    create: options of qemu-img create; None: the plugin creates it.
    text: write what can be compressed; zeros: often write zeros, too."""

    def __init__(self, args=(), opts=(), create="", size=32, cluster=65536,
                 granule=None, backing=False, snapshot=False, text=False,
                 zeros=False, v2=False, most=2 * MiB, volume=1):
        self.args, self.opts, self.create = args, opts, create
        self.size, self.cluster = size * MiB, cluster
        self.granule = granule or cluster
        self.backing, self.snapshot = backing, snapshot
        self.data = TEXT if text else NOISE
        self.zeros, self.v2, self.most = zeros, v2, most
        self.volume = int(VOLUME * volume)
        self.keeps = "discard=keep" in args


CASES = {
    "default": Case(create=None),
    "compress=zlib": Case(args=("compress=zlib",), text=True),
    "compress=zlib, noise": Case(args=("compress=zlib",)),
    "fuamode=discard": Case(args=("fuamode=discard",),
                            opts=("--filter=fua",)),
    "512-byte clusters": Case(create="cluster_size=512", cluster=512, size=8,
                              most=256 << 10, volume=0.8),
    "2 MiB clusters": Case(create="cluster_size=2M", cluster=2 * MiB,
                           size=128, most=8 * MiB, volume=1.75),
    "version 2, backing": Case(create="compat=0.10", v2=True, backing=True),
}
# Each of these alone, or two at once.
ALONE = {
    "discard=keep": Case(args=("discard=keep",)),
    "version 2": Case(create="compat=0.10", v2=True),
    "detect-zeroes=unmap": Case(args=("detect-zeroes=unmap",), zeros=True),
    "lazy refcounts": Case(create="lazy_refcounts=on"),
    "4 KiB clusters": Case(create="cluster_size=4k", cluster=4096),
    "snapshot": Case(snapshot=True),
    "extended L2": Case(create="extended_l2=on,cluster_size=128k",
                        cluster=128 << 10, granule=4096),
    "backing": Case(backing=True),
}
TOGETHER = {
    "discard=keep, version 2": Case(args=("discard=keep",),
                                    create="compat=0.10", v2=True),
    "detect-zeroes=unmap, lazy refcounts": Case(
        args=("detect-zeroes=unmap",), zeros=True,
        create="lazy_refcounts=on"),
    "4 KiB clusters, snapshot": Case(create="cluster_size=4k", cluster=4096,
                                     snapshot=True),
    "extended L2, backing": Case(
        create="extended_l2=on,cluster_size=128k", cluster=128 << 10,
        granule=4096, backing=True),
}
CASES.update(ALONE if qtest.VOLUME > 1 else TOGETHER)


class Disk(diskmodel.Disk):
    """A model that also knows which clusters can have space on the host."""

    def __init__(self, name, case, content, rnd):
        diskmodel.Disk.__init__(
            self, name, content, rnd, case.cluster, case.granule,
            trims=not case.v2 or not case.backing)
        self.case = case
        self.used = bytearray(-(-self.size // case.cluster))
        self.written = self.given_up = self.requests = 0
        self.kinds = {}

    def fua(self, h):
        """With a filter that drops it."""
        if self.case.opts and self.rnd.random() < 0.3:
            return nbd.CMD_FLAG_FUA
        return 0

    def needs(self):
        return self.used.count(1) * self.cluster

    def takes(self, at, n):
        lo, hi = at // self.cluster, -(-(at + n) // self.cluster)
        self.used[lo:hi] = b"\1" * (hi - lo)

    def gives_up(self, at, n):
        """Whole clusters of it: the others keep their place."""
        lo = -(-at // self.cluster)
        hi = len(self.used) if at + n == self.size else \
            (at + n) // self.cluster
        if hi > lo:
            self.given_up += self.used[lo:hi].count(1) * self.cluster
            self.used[lo:hi] = bytes(hi - lo)

    def put(self, at, n):
        zeros = self.case.zeros and self.rnd.random() < 0.4
        if zeros:
            data = bytes(n)
        else:
            start = self.rnd.randrange(len(self.case.data) - n + 1)
            data = self.case.data[start:start + n]
        self.write(at, n, data)
        self.written += n
        self.takes(at, n)
        if zeros:
            self.gives_up(at, n)

    def trim(self, at, n):
        """Whole clusters are looked at in the end only; what can be as it
        was, now."""
        lo, hi = (min(x, at + n) for x in self.must_be_zero(at, n))
        h = self.handle()
        unsure = list(self.pieces(at, lo)) + list(self.pieces(hi, at + n))
        old = [self.store.get(*piece) for piece in unsure]
        self.last = "trim of %d at %d" % (n, at)
        h.trim(n, at, self.fua(h))
        self.store.clear(lo, hi - lo)
        for (s, length), was in zip(unsure, old):
            got = bytes(h.pread(length, s))
            if got != was:
                self.trimmed(s, length, was, got)
            self.store.put(s, got)
        if self.trims:
            self.gives_up(at, n)

    def pieces(self, lo, hi):
        """(offset, length) of requests that aren't larger than others."""
        for at in range(lo, hi, self.case.most):
            yield at, min(self.case.most, hi - at)

    def zeroed(self, at, n, hole):
        self.zero(at, n, self.fua(self.handle()) |
                  (0 if hole else nbd.CMD_FLAG_NO_HOLE))
        if not hole or not self.trims:      # zeros may have been written
            self.takes(at, n)
        else:
            self.gives_up(at, n)

    def somewhere(self):
        rnd, case = self.rnd, self.case
        n = rnd.randrange(1, case.most + 1)
        at = rnd.randrange(self.size)
        if rnd.random() < 0.7:
            n = -(-n // self.cluster) * self.cluster
            at = at // self.cluster * self.cluster
        return at, min(n, self.size - at)

    def turn(self):
        """Some space is given up, and mostly written again."""
        rnd = self.rnd
        at, n = self.somewhere()
        kind = rnd.choices(("trim", "zero", "zero, no hole", "write", "all"),
                           (40, 30, 10, 20, 0.5))[0]
        if kind == "trim":
            self.trim(at, n)
        elif kind.startswith("zero"):
            self.zeroed(at, n, kind == "zero")
        elif kind == "all":
            if rnd.random() < 0.5:
                self.trim(0, self.size)
            else:
                self.zeroed(0, self.size, True)
            return
        if rnd.random() < 0.9:
            self.put(at, n)


class Watch:
    """What the file and the server take, and may take."""

    def __init__(self, name, case, file, pid):
        self.name, self.case, self.file, self.pid = name, case, file, pid
        self.held = self.peak = 0       # by a snapshot; by the disk at most
        self.length = self.blocks = self.over = 0
        self.early = None               # memory, after a quarter
        self.failed = False

    def look(self, disk):
        st = os.stat(self.file)
        taken = st.st_blocks * 512
        needs = disk.needs()
        self.peak = max(self.peak, needs)
        self.length = max(self.length, st.st_size)
        self.blocks = max(self.blocks, taken)
        more = self.held + waiting(st.st_size, self.case.cluster) + SLACK
        # A hole in the middle of the file makes it no shorter; where none
        # is made, the space is not the host's again either.
        self.hold("length", st.st_size, self.peak + more, disk)
        self.hold("space", taken, more + (
            self.peak if self.case.keeps else needs), disk)

    def hold(self, what, is_now, most, disk):
        self.over = max(self.over, is_now - most)
        if is_now > most and not self.failed:
            self.failed = True
            fail("%s: %s of the file: %d MiB, at most %d MiB are right; after "
                 "%d turns, %d MiB written and %d MiB given up, after %s" % (
                     self.name, what, is_now // MiB, most // MiB,
                     disk.requests, disk.written // MiB,
                     disk.given_up // MiB, disk.last))

    def memory(self):
        with open("/proc/%d/status" % self.pid) as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10

    def finish(self, disk):
        """Nothing waits any more."""
        st = os.stat(self.file)
        self.hold("length at the end", st.st_size, self.held + self.peak +
                  waiting(st.st_size, self.case.cluster) + SLACK, disk)
        if not self.case.keeps:
            self.hold("space at the end", st.st_blocks * 512,
                      self.held + disk.needs() + SLACK, disk)
        return st.st_size


def digest(file):
    with open(file, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def make(case, file):
    """The image; returns its content."""
    below = path("below.raw")
    content = bytearray(case.size)
    for f in (file, below):
        if os.path.exists(f):
            os.unlink(f)
    if case.create is None:
        return content
    more = []
    if case.backing:
        n = case.size * 3 // 4
        for at in range(0, n, len(NOISE)):
            content[at:at + len(NOISE)] = NOISE
        with open(below, "wb") as f:
            f.write(content)
        more = ["-b", below, "-F", "raw"]
    o = case.create or "compat=1.1"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, *more, file,
        str(case.size))
    if case.snapshot:
        n = case.size // 2
        run("qemu-io", "-f", "qcow2", "-c", "write -P 83 0 %d" % n, file)
        run("qemu-img", "snapshot", "-c", "s", file)
        content[:n] = b"S" * n
    return content


def go(disk, watch):
    """Until so much has been written; the disk is full at first."""
    case = disk.case
    for at in range(0, disk.size, case.most):
        disk.put(at, min(case.most, disk.size - at))
        watch.look(disk)
    while disk.written < case.volume:
        disk.turn()
        disk.requests += 1
        watch.look(disk)
        if watch.early is None and disk.written > case.volume // 4:
            watch.early = watch.memory()


def one(name):
    case, file = CASES[name], path("space.qcow2")
    qtest.images += 1
    began = time.monotonic()
    content = make(case, file)
    snapshot, below = bytes(content), None
    args = ["file=" + file] + list(case.args)
    if case.create is None:
        args += ["create=true", "size=%d" % case.size]
    if case.backing:
        args.append("follow=any")
        below = digest(path("below.raw"))
    disk = Disk(name, case, content, random.Random("space-" + name))
    try:
        srv = Server(*args, opts=THREADS + case.opts, readonly=False)
    except StartError as e:
        fail("%s: %s" % (name, e))
        return
    watch = Watch(name, case, file, srv.p.pid)
    if case.snapshot:
        watch.held = case.size // 2
    with srv:
        disk.connect(srv, CONNECTIONS)
        try:
            go(disk, watch)
        except nbd.Error as e:
            fail("%s: %s: %s" % (name, disk.last, e))
        growth = watch.memory() - (watch.early or 0)
        disk.all()
        disk.disconnect()
    length = watch.finish(disk)
    check(watch.early is None or growth <= MEMORY,
          "%s: memory grew by %.1f MiB" % (name, growth / MiB))
    compare(name, disk, snapshot, below)
    print("%s: %d MiB needed at most, length up to %d MiB, %d at the end, "
          "space up to %d MiB; %d MiB more than is right; memory grew by "
          "%.1f MiB; %d MiB written, %d given up in %d turns, %.1f s" % (
              name, (watch.peak + watch.held) // MiB, watch.length // MiB,
              length // MiB, watch.blocks // MiB, max(0, watch.over) // MiB,
              growth / MiB, disk.written // MiB, disk.given_up // MiB,
              disk.requests, time.monotonic() - began), flush=True)


def compare(name, disk, snapshot, below):
    """What QEMU finds in the image."""
    file, raw = path("space.qcow2"), path("space.raw")
    p = run("qemu-img", "check", "-f", "qcow2", file, ok=False)
    check(p.returncode == 0, "%s: qemu-img check: exit %d: %s" % (
        name, p.returncode, (p.stdout + p.stderr).decode()[-400:]))
    disks = [([], disk.store.get(0, disk.size))]
    if disk.case.snapshot:
        disks.append((["-l", "snapshot.name=s"], snapshot))
    for which, want in disks:
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", *which, file,
            raw)
        qtest.file_equal(raw, want, "%s: qemu-img convert %s" % (
            name, " ".join(which)))
    if below is not None:
        check(digest(path("below.raw")) == below,
              "%s: the backing file was changed" % name)


for arg in sys.argv[1:] or CASES:
    one(arg)
qtest.finish("space without a flush")
