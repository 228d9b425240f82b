# SPDX-License-Identifier: BSD-3-Clause
"""Images of every kind, with holes in the file, are compacted by the tool: the
disk, each snapshot and each bitmap must be as before, qemu-img check must find
nothing, no cluster be free but below what can't move, and another time nothing
change.

    manage-compact.py TOOL
"""

import filecmp
import os
import random
import shutil
import struct

import manage
from manage import KINDS, NARROW, SEED, SOME_ZEROS, TOOL, VOLUME
from manage import create, fill, info, options, path, requests, run, same
from manage import same_snapshot

IMAGE = path("image.qcow2")
BEFORE = path("before.qcow2")
BASE = path("base.raw")
SIZE = 6 << 20
OFFSET = 0x00fffffffffffe00
images = comparisons = smaller = tight = 0

KINDS = KINDS + [NARROW]


class Image:
    """What an image says of itself, read without QEMU or core/."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.bytes = f.read()
        (_, version, _, _, bits, _, _, _, _, self.rt, nr, _, _) = \
            struct.unpack_from(">IIQIIQIIQQIIQ", self.bytes)
        self.cluster = 1 << bits
        order = struct.unpack_from(">I", self.bytes, 96)[0] \
            if version > 2 else 4
        length = struct.unpack_from(">I", self.bytes, 100)[0] \
            if version > 2 else 72
        self.used = set(self.refcounts(nr, order))
        self.extensions = {}
        while True:
            kind, n = struct.unpack_from(">II", self.bytes, length)
            if kind == 0:
                break
            self.extensions[kind] = self.bytes[length + 8:length + 8 + n]
            length += 8 + (n + 7) // 8 * 8

    def words(self, at, nr):
        return struct.unpack_from(">%dQ" % nr, self.bytes + bytes(8 * nr), at)

    def refcounts(self, clusters, order):
        per = self.cluster * 8 >> order
        for i, at in enumerate(self.words(self.rt,
                                          clusters * self.cluster // 8)):
            if at == 0:
                continue
            block = self.bytes[at:at + self.cluster]
            if order >= 3:
                n = 1 << order - 3
                for j in range(per):
                    if any(block[j * n:j * n + n]):
                        yield i * per + j
            else:
                for j in range(per):
                    bit = j << order
                    if block[bit // 8] >> bit % 8 & (1 << (1 << order)) - 1:
                        yield i * per + j

    def bitmaps(self):
        """Names, flags, and bits."""
        data = self.extensions.get(0x23852875)
        if data is None:
            return
        nr, _, _, at = struct.unpack(">IIQQ", data)
        for _ in range(nr):
            table, n, flags, _, gran, name, extra = struct.unpack_from(
                ">QIIBBHI", self.bytes, at)
            parts = []
            for word in self.words(table, n):
                host = word & OFFSET
                parts.append(self.bytes[host:host + self.cluster] if host
                             else bytes([255 * (word & 1)]) * self.cluster)
            start = at + 24 + extra
            yield (self.bytes[start:start + name], flags, gran,
                   b"".join(parts))
            at += (24 + extra + name + 7) // 8 * 8


def write(rnd):
    manage.write(requests(rnd, rnd.randrange(4, 16), SIZE,
                          SOME_ZEROS + ["discard"] * 2,
                          discard=(1 << 19, 1 << 20)), IMAGE)


def snapshots(image):
    return [s["name"] for s in info(image).get("snapshots", [])]


def make(kind, backing, compressed, rnd):
    create(IMAGE, SIZE, kind, (BASE, "raw") if backing else None)
    if compressed:
        size = max(kind["cluster_size"], 1 << 19)
        for i in range(0, SIZE, 2 * size): # what has no cluster yet
            with open(path("piece"), "wb") as f:
                f.write(bytes(rnd.choices(b"abcdefgh", k=size)))
            run("qemu-io", "-f", "qcow2", "-c", "write -c -s %s %d %d" % (
                path("piece"), i, size), IMAGE)
    v3 = kind.get("compat") != "0.10"
    if v3:
        run("qemu-img", "bitmap", "--add", IMAGE, "one")
        run("qemu-img", "bitmap", "--add", "-g", "512", IMAGE, "two")
    write(rnd)
    if kind.get("refcount_bits") != 1:
        for name in "abc"[:2 if kind.get("refcount_bits") == 4 else 3]:
            run("qemu-img", "snapshot", "-c", name, IMAGE)
            write(rnd)
        run("qemu-img", "snapshot", "-d", "a", IMAGE)
    if v3 and rnd.randrange(2):
        run("qemu-img", "bitmap", "--remove", IMAGE, "one")
    write(rnd)
    run("qemu-img", "check", "-q", "-r", "leaks", IMAGE)
    return options(kind)


def compare(what):
    global comparisons
    run("qemu-img", "check", "-q", IMAGE)
    same(IMAGE, BEFORE)
    comparisons += 1
    if snapshots(IMAGE) != snapshots(BEFORE):
        raise SystemExit("%s: other snapshots" % what)
    for name in snapshots(BEFORE):
        same_snapshot(name, IMAGE, BEFORE)
        comparisons += 1
    a, b = Image(IMAGE), Image(BEFORE)
    if list(a.bitmaps()) != list(b.bitmaps()):
        raise SystemExit("%s: other bitmaps" % what)
    comparisons += 1
    return a


def compact(kind, backing, compressed, seed):
    global images, smaller, tight
    rnd = random.Random(seed)
    what = "%s, backing %s, compressed %s, seed %d" % (
        make(kind, backing, compressed, rnd), backing, compressed, seed)
    shutil.copy(IMAGE, BEFORE)
    run(TOOL, "compact", "-q", IMAGE)
    images += 1
    image = compare(what)
    end = -(-len(image.bytes) // image.cluster)
    if end != max(image.used) + 1:
        raise SystemExit("%s: the last cluster is not in use" % what)
    smaller += len(image.bytes) < os.path.getsize(BEFORE)
    tight += len(image.used) == end
    # Single clusters, and tables of one, always find a place.
    if image.cluster >= 16384 and not compressed and len(image.used) != end:
        raise SystemExit("%s: %d clusters are free" % (
            what, end - len(image.used)))
    shutil.copy(IMAGE, BEFORE)
    run(TOOL, "compact", "-q", IMAGE)
    if not filecmp.cmp(IMAGE, BEFORE, shallow=False):
        raise SystemExit("%s: it changes once more" % what)


fill(BASE, SIZE)
seed = SEED * 1000
for i, kind in enumerate(KINDS):
    for j in range(4):
        seed += 1
        if (i + j) % 4 and VOLUME <= 1:
            continue
        compact(kind, bool(j & 1), bool(j & 2), seed)
print("%d images, %d comparisons, %d smaller, %d without a free cluster" % (
    images, comparisons, smaller, tight))
