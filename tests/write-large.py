# SPDX-License-Identifier: BSD-3-Clause
"""Disks with many tables, and files that outgrow their refcount tables
while they are written.  Argument: which part.

QTEST_VOLUME multiplies how many requests are made.
QTEST_ROUNDS multiplies how much is done, each time other requests."""

import os
import random
import struct
import sys

import diskmodel
import qtest
from qtest import path, run, check, fail, Server, StartError
from qcow2make import Qcow2
from streams import noise

ROUNDS = int(os.environ.get("QTEST_ROUNDS", "1"))


class Large(diskmodel.Disk):
    """Requests at a few places: around what one L2 table has, at the ends
    of the disk, and some of many tables at once."""

    def __init__(self, name, store, rnd, per_table, **kw):
        super().__init__(name, store, rnd, **kw)
        self.most = 1 << 20
        self.hot = [0, self.size]
        for k in range(5):
            self.hot.append(rnd.randrange(1, self.size // per_table) *
                            per_table)
        self.hot.append(rnd.randrange(self.size))

    def place(self):
        rnd = self.rnd
        n = min(self.lengths(), self.most)
        at = rnd.choice(self.hot) + rnd.choice((
            -n, -n // 2, 0, -512, 1, rnd.randrange(-3, 3) * self.cluster))
        return max(0, min(at, self.size - n)), n

    def whole(self):
        at, n = self.place()
        g = self.rnd.choice((self.cluster, self.granule))
        at = at // g * g
        return at, min(-(-n // g) * g, self.size - at)

    def zero(self, at=None, n=None, flags=None):
        if at is None and self.rnd.random() < 0.15:
            at, _ = self.place()
            n = self.rnd.randrange(min(self.size - at, 3 << 30)) + 1
            super().zero(at, n, flags)
            return at, min(n, 1 << 20)
        return super().zero(at, n, flags)

    def longest(self):
        """As much as one request can have, across many clusters."""
        n = 32 << 20
        at = self.rnd.randrange(self.size - n)
        data = self.rnd.randbytes(65537) * (n // 65537 + 1)
        self.write(at, n, data[:n])
        self.read(at, n)
        # in parts, of which some now are what they should be anyway
        self.zero(at + 12345, n // 2, 0)
        self.write(at + 1000, n // 2, data[1:n // 2 + 1])
        self.read(at, n)
        self.zero(at, n, 0)

    def all(self, h=None):
        """The neighbourhood of the places; QEMU compares the whole."""
        for at in self.hot:
            lo = max(0, at - (2 << 20))
            if not self.read(lo, min(self.size, at + (2 << 20)) - lo, h):
                return False
        return True


def finish(name, img, disk):
    p = run("qemu-img", "check", "-f", "qcow2", img, ok=False)
    check(p.returncode == 0, "%s: qemu-img check: exit %d: %s" % (
        name, p.returncode, (p.stdout + p.stderr).decode()[-400:]))
    p = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", img,
            disk.store.file, ok=False)
    check(p.returncode == 0, "%s: qemu-img compare: %s" % (
        name, (p.stdout + p.stderr).decode()[-400:]))


def sparse(turn):
    for cb, options, size, args in (
            (16, "", 100 << 30, ()),
            (16, "", 100 << 30, ("cache-size=64K",)),
            (16, "extended_l2=on", (40 << 30) + 512, ()),
            (12, "refcount_bits=64", 4 << 30, ("cache-size=64K",)),
            (21, "refcount_bits=1", 2 << 40, ()),
            (16, "compat=0.10", 20 << 30, ()),
            (9, "lazy_refcounts=on", (1 << 30) - 512, ("cache-size=64K",))):
        name = "%d bits, %s, %d bytes, %s (%d)" % (cb, options, size, args,
                                                   turn)
        cs, ext = 1 << cb, "extended" in options
        img = path("large.qcow2")
        o = "cluster_size=%d" % cs + ("," + options if options else "")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, img,
            str(size))
        disk = Large(name, diskmodel.Sparse(path("large.raw"), size),
                     random.Random("large-" + name),
                     cs * (cs // (16 if ext else 8)), cluster=cs,
                     granule=cs // 32 if ext else cs)
        for first in (True, False):
            qtest.images += 1
            try:
                srv = Server("file=" + img, *args, readonly=False)
            except StartError as e:
                fail("%s: %s" % (name, e))
                break
            with srv:
                ok = disk.connect(srv) and disk.many(
                    qtest.volume(80 if first else 20))
                if ok and first:
                    disk.longest()
                ok = ok and disk.many(20) and disk.all()
                disk.disconnect()
            if not ok:
                break
            finish(name, img, disk)


def reftable(file):
    """Offset and clusters of the refcount table, from the header."""
    with open(file, "rb") as f:
        return struct.unpack(">48xQI", f.read(60))


def growth(turn):
    """512-byte clusters with wide refcounts: a block of them counts 64
    clusters, and a table's cluster has 64 blocks."""
    for order in (6, 4):
        size = (12 << 20) if order == 4 else (6 << 20)
        img = Qcow2(path("grow.qcow2"), size, cluster_bits=9,
                    refcount_order=order).write()
        rnd = random.Random("growth-%d-%d" % (order, turn))
        name = "growth, order %d (%d)" % (order, turn)
        disk = diskmodel.Disk(name, diskmodel.Sparse(path("grow.raw"), size),
                              rnd, cluster=512)
        qtest.images += 1
        before = reftable(img.path)
        step = 24 << 10
        todo = [(at, min(step, size - at)) for at in range(0, size, step)]
        rnd.shuffle(todo)
        data = noise(name, 2 * step)
        for part in (todo[::2], todo[1::2]):
            with Server("file=" + img.path, readonly=False) as srv:
                disk.connect(srv)
                for at, n in part:
                    k = rnd.randrange(step)
                    disk.write(at, n, data[k:k + n])
                    if rnd.random() < 0.05:
                        disk.flush()
                diskmodel.requests += len(part)
                ok = disk.all()
                disk.disconnect()
            if not ok:
                return
            finish(name, img.path, disk)
        after = reftable(img.path)
        check(after[1] > before[1], "%s: the refcount table didn't grow: "
              "%s, %s" % (name, before, after))


PARTS = {"sparse": sparse, "growth": growth}

for part in sys.argv[1:]:
    for turn in range(ROUNDS):
        PARTS[part](turn)
print("requests: %d" % diskmodel.requests)
qtest.finish("writing large ones: %s" % " ".join(sys.argv[1:]))
