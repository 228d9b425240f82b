# SPDX-License-Identifier: BSD-3-Clause
"""Images that qemu-img made are damaged in one way each, and repaired: then
qemu-img must find nothing wrong, and read from the disk and its snapshot what
it read before.

    check-repair.py TOOL
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys

TOOL = sys.argv[1]
DIR = os.environ["QTEST_DIR"]
ALL = "CHECK_ALL" in os.environ  # every damage to every image: one minute
COPIED = 1 << 63
OFFSET = 0x00fffffffffffe00
failures = 0
repaired = 0


def path(name):
    return os.path.join(DIR, name)


def fail(text):
    global failures
    failures += 1
    print("FAIL: " + text)


def run(*cmd, ok=(0,)):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, errors="replace")
    if p.returncode not in ok:
        raise SystemExit("%s: status %d\n%s" % (" ".join(cmd), p.returncode,
                                                p.stdout))
    return p


class Image:
    """The parts of an image that are damaged here."""

    def __init__(self, file):
        self.file = file
        with open(file, "rb") as f:
            self.data = bytearray(f.read())
        self.bits = self.number(20, ">I")
        self.cluster = 1 << self.bits
        self.l1 = self.number(40)
        self.table = self.number(48)
        self.v3 = self.number(4, ">I") == 3
        self.order = self.number(96, ">I") if self.v3 else 4
        self.extended = self.v3 and bool(self.number(72) & 16)

    def number(self, at, kind=">Q"):
        return struct.unpack_from(kind, self.data, at)[0]

    def put(self, at, value, kind=">Q"):
        struct.pack_into(kind, self.data, at, value)

    def write(self):
        with open(self.file, "wb") as f:
            f.write(self.data)

    def blocks(self):
        """The places of the refcount blocks."""
        n = self.number(56, ">I") * self.cluster // 8
        words = (self.number(self.table + 8 * i) for i in range(n))
        return [w for w in words if w]

    def entries(self, empty=False):
        """The places of L2 entries of data, or of those that are empty."""
        step = 16 if self.extended else 8
        for i in range(self.number(36, ">I")):
            l2 = self.number(self.l1 + 8 * i) & OFFSET
            if l2 == 0:
                continue
            for at in range(l2, l2 + self.cluster, step):
                word = self.number(at)
                if empty and word == 0 and (step == 8 or
                                            self.number(at + 8) == 0):
                    yield at
                if not empty and word & OFFSET and not word >> 62 & 1:
                    yield at

    def refcount_bytes(self):
        """The places of bytes of refcount blocks that are in use."""
        used = (len(self.data) + self.cluster - 1 >> self.bits)
        used = max(used << self.order >> 3, 1)
        for block in self.blocks():
            for at in range(block, block + min(used, self.cluster)):
                yield at
            used -= self.cluster
            if used <= 0:
                return


def zero_blocks(im, rnd):
    for block in im.blocks():
        im.data[block:block + im.cluster] = bytes(im.cluster)


def random_blocks(im, rnd):
    for at in im.refcount_bytes():
        im.data[at] = rnd.randrange(256)


def lost_block(im, rnd):
    im.put(im.table, 0)


def bad_block(im, rnd):
    im.put(im.table, im.blocks()[0] + 512 if im.cluster > 512 else 1 << 40)


def block_is_data(im, rnd):
    """A refcount block that is a data cluster, too."""
    im.put(im.table, im.number(rnd.choice(list(im.entries()))) & OFFSET)


def lost_table(im, rnd):
    im.put(56, 0, ">I")


def some_refcounts(im, rnd):
    for at in rnd.sample(list(im.refcount_bytes()), 3):
        im.data[at] ^= 1 << rnd.randrange(8)


def copied_flags(im, rnd):
    for at in list(im.entries()):
        im.put(at, im.number(at) ^ COPIED)
    for i in range(im.number(36, ">I")):
        if im.number(im.l1 + 8 * i):
            im.put(im.l1 + 8 * i, im.number(im.l1 + 8 * i) ^ COPIED)


def used_twice(im, rnd):
    """Two clusters of the disk have one of the host."""
    a = rnd.choice(list(im.entries()))
    b = rnd.choice(list(im.entries(empty=True)))
    im.put(b, im.number(a))
    if im.extended:
        im.put(b + 8, im.number(a + 8))


def reserved_bits(im, rnd):
    for at in rnd.sample(list(im.entries()), 3):
        im.put(at, im.number(at) | 1 << rnd.randrange(56, 62))


def beyond_end(im, rnd):
    """As a crash with lazy refcounts may leave it.  It reads as zeros, with
    QEMU and once it is dropped.
    """
    at = rnd.choice(list(im.entries(empty=True)))
    im.put(at, (len(im.data) + 10 * im.cluster & -im.cluster) | COPIED)
    if im.extended:
        im.put(at + 8, 0xffffffff)


def leaks(im, rnd):
    """Clusters behind the end of the file, which grows for them."""
    size = len(im.data) + im.cluster - 1 & -im.cluster
    per_block = (im.cluster * 8) >> im.order
    first = size >> im.bits
    if first % per_block == 0:
        return
    place = im.blocks()[first // per_block]
    place += (first % per_block << im.order) // 8
    im.data[place] = 0xff
    im.data += bytes(size + 8 * im.cluster - len(im.data))


DAMAGES = [zero_blocks, random_blocks, lost_block, bad_block, block_is_data,
           lost_table, some_refcounts, copied_flags, used_twice,
           reserved_bits, beyond_end, leaks]
# QEMU can't open these, or reads other data there than is left.
UNREADABLE = {lost_table}

FORMATS = [
    "compat=1.1,cluster_size=64k",
    "compat=1.1,cluster_size=4k,refcount_bits=64",
    "compat=1.1,cluster_size=512,refcount_bits=8",
    "compat=0.10,cluster_size=4k",
    "compat=1.1,cluster_size=16k,extended_l2=on,refcount_bits=32",
    "compat=1.1,cluster_size=4k,compression_type=zstd,refcount_bits=4",
    "compat=1.1,cluster_size=64k,refcount_bits=1",
]


def make(n, options):
    """A new image; it has a snapshot unless refcounts are too narrow."""
    file = path("made%d.qcow2" % n)
    raw = path("source.raw")
    rnd = random.Random(n)
    with open(raw, "wb") as f:
        f.truncate(8 << 20)
        for i in range(40):
            f.seek(rnd.randrange(8 << 20 >> 12) << 12)
            f.write(rnd.randbytes(2048) * rnd.choice((2, 8, 20)))
        f.truncate(8 << 20)
    compress = ["-c"] if n % 2 else []
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options,
        *compress, raw, file)
    writes = []
    if "refcount_bits=1" not in options.split(","):
        run("qemu-img", "snapshot", "-c", "one", file)
    for i in range(20):
        writes += ["-c", "write -P %d %d %d" % (
            i + 1, rnd.randrange(7 << 20 >> 9) << 9,
            rnd.choice((512, 4096, 100 << 10)))]
    run("qemu-io", "-f", "qcow2", *writes, file)
    run("qemu-img", "check", "-f", "qcow2", file)
    return file


def read(file):
    """What QEMU reads from the disk, and from its snapshot."""
    out = []
    for extra in ([], ["-l", "one"]):
        copy = path("copy.raw")
        p = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", *extra,
                file, copy, ok=(0, 1))
        if p.returncode == 0:
            with open(copy, "rb") as f:
                out.append(f.read())
        else:
            out.append(None)
    return out


def check(file, *options):
    p = subprocess.run([TOOL, "check", "--output=json", *options, file],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True)
    return p.returncode, json.loads(p.stdout) if p.stdout else {}, p.stderr


def qemu_check(file):
    p = run("qemu-img", "check", "-f", "qcow2", "--output=json", file,
            ok=(0, 1, 2, 3))
    return p.returncode


def repair(made, damage, seed):
    global repaired
    file = path("image.qcow2")
    name = "%s, %s, seed %d" % (made, damage.__name__, seed)
    rnd = random.Random(seed)
    shutil.copy(made, file)
    im = Image(file)
    damage(im, rnd)
    if im.v3 and rnd.randrange(2):
        im.put(72, im.number(72) | rnd.choice((1, 2)))
    im.write()
    want = read(made if damage in UNREADABLE else file)

    before, report, said = check(file)
    if before != qemu_check(file) and damage not in UNREADABLE:
        fail("%s: exits with %d, qemu-img with %d" % (name, before,
                                                      qemu_check(file)))
    status, report, said = check(file, "--repair=all")
    if status != 0:
        fail("%s: status %d after the repair\n%s%s" % (name, status, report,
                                                       said))
        return
    if qemu_check(file) != 0:
        fail("%s: qemu-img check exits with %d" % (name, qemu_check(file)))
    if read(file) != want:
        fail("%s: it reads otherwise" % name)
    im = Image(file)
    if im.v3 and im.number(72) & 3:
        fail("%s: still marked as dirty or corrupt" % name)
    repaired += 1
    # QEMU can go on writing it.
    run("qemu-io", "-f", "qcow2", "-c", "write -P 99 1M 300k", file)
    if qemu_check(file) != 0:
        fail("%s: damaged once it is written" % name)


for n, options in enumerate(FORMATS):
    made = make(n, options)
    for d, damage in enumerate(DAMAGES):
        if damage == used_twice and "refcount_bits=1" in options.split(","):
            continue  # which a refcount of one bit can't tell
        if ALL or (n + d) % 3 == 0:
            repair(made, damage, 1000 * n + d)
print("%d images repaired, %d failures" % (repaired, failures))
sys.exit(failures > 0)
