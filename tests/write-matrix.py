# SPDX-License-Identifier: BSD-3-Clause
"""Random requests to images of every kind.  Each image is served for
writing, held against a model of its disk, ended, and must then be clean and
equal for QEMU, its snapshots and backing files as before; QEMU writes to it;
it is served again.  Arguments: which parts.

QTEST_VOLUME multiplies how many requests are made; unless it is more than 1
each cell has fewer images, and only every other image is served again.
QTEST_EVERY is for fewer: only each so many-th is made.
QTEST_FAR serves them from NBD servers: see qtest.py.
QTEST_ROUNDS multiplies how many images are made, each time others.
QTEST_ONLY takes a number that a failure named, and does that image alone."""

import hashlib
import os
import random
import signal
import struct
import sys

import diskmodel
import qtest
from qtest import path, run, check, equal, fail, Server, StartError
from filled import fill
from qcow2make import Qcow2, Raw, COMPAT_LAZY
from streams import noise, text

ROUNDS = int(os.environ.get("QTEST_ROUNDS", "1"))
ONLY = os.environ.get("QTEST_ONLY")
REQUESTS = qtest.volume(36)
EVERY = int(os.environ.get("QTEST_EVERY", "1"))
CANDIDATES = 300        # for the choice of an image

UNKNOWN_EXT = (0x12345678, b"an extension that nobody knows")
PAT = path("pattern")
with open(PAT, "wb") as f:
    f.write(text("qemu", 65536) + noise("qemu", 65536))

# What images are made of.  The first three say which cell of the matrix it
# is, and all of their combinations are made; of the others each pair.
CHOICES = {
    "below": ("none", "none", "raw-short", "raw-equal", "raw-long",
              "qcow2-short", "qcow2-equal", "qcow2-long", "chain"),
    "snaps": (0, 1, 3),
    "source": ("fill", "zstd", "fresh", "empty", "prealloc"),
    "layout": ("linear", "shuffled"),
    "lazy": (False, True),
    "tail": (0, 1, 2, 3, 4),
    "args": ((), ("cache-size=64K",), ("discard=keep",)),
    "end": (signal.SIGTERM, signal.SIGINT),
}


def cells(part):
    """(version, cluster bits, refcount order, extended L2); and of those with
    an external data file, whether it is a raw image.  Each of them so often
    that most pairs of choices are met."""
    more = qtest.VOLUME > 1
    if part == "v2":
        return [(2, cb, 4, False) for cb in (9, 10, 12, 16, 21)] * (
            10 if more else 3)
    if part == "small":
        return [(3, cb, o, False) for cb in (9, 10, 12)
                for o in range(7)] * (3 if more else 1)
    if part == "large":
        return [(3, cb, o, False) for cb in ((16, 21, 16) if more else
                                             (16, 21))
                for o in range(7)] * (2 if more else 1)
    if part == "extl2":
        return [(3, cb, o, True) for cb, o in
                qtest.pairs((14, 16, 17, 21), range(7), 2)] * (
                    2 if more else 1)
    if part == "data":
        return [(3, cb, 4, l2, raw) for raw in ("off", "on")
                for cb, l2 in ((12, False), (16, False), (16, True),
                               (21, False), (14, True), (9, False))]
    raise ValueError(part)


def valid(c):
    if c["version"] == 2 and (c["lazy"] or c["source"] == "zstd"):
        return False
    if c["source"] == "prealloc" and (c["below"] != "none" or c["snaps"]):
        return False
    if c["data"] is not None:
        if c["source"] not in ("fresh", "prealloc") or c["snaps"]:
            return False
        if c["data"] == "on" and c["below"] != "none":
            return False
    # Each snapshot counts, and so does the disk.
    return c["snaps"] + 1 < 1 << (1 << c["order"])


def choose(cell, rnd, seen):
    """The one of some random combinations with the most pairs not seen."""
    best, most = None, -1
    while best is None:
        for _ in range(CANDIDATES):
            c = {"data": None}
            c.update(zip(("version", "cb", "order", "extl2", "data"), cell))
            c.update((k, rnd.choice(v)) for k, v in CHOICES.items())
            if not valid(c):
                continue
            keys = sorted(c)
            pairs = {(a, c[a], b, c[b]) for a in keys for b in keys if a < b}
            if len(pairs - seen) > most:
                best, most, new = c, len(pairs - seen), pairs
    seen |= new
    return best


# ---------------------------------------------------------------- the images

class Image:
    """One that is made as the combination says, and what must be in it."""

    def __init__(self, nr, c):
        self.c, self.nr = c, nr
        self.rnd = random.Random("matrix-%s" % nr)
        self.file = path("w.qcow2")
        self.cs = 1 << c["cb"]
        made = c["source"] in ("fill", "zstd")
        self.clusters = max(9 if made else 5, min(140, (3 << 20) >> c["cb"]))
        if c["extl2"] and c["cb"] < 21 and made:
            self.clusters = max(self.clusters, 40)
        self.size = self.clusters * self.cs - (
            0, 512, self.cs - 512, 1024 % self.cs, self.cs // 2)[c["tail"]]
        self.snapshots = []         # (name, content)
        self.compressed = set()
        self.data = None            # an external data file
        self.files = []
        self.below = self.backing()
        self.sums = [self.sum(f) for f in self.files]
        if made or c["source"] == "empty":
            self.make()
        else:
            self.size = self.size // 512 * 512
            self.qemu_make()

    def sum(self, file):
        with open(file, "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()

    def backing(self):
        kind, size, seed = self.c["below"], self.size, self.nr
        if kind == "none":
            return None
        length = {"short": size * 3 // 5 + 77, "equal": size,
                  "long": size + 3 * self.cs + 5}.get(kind[-5:].strip("-"),
                                                      size)
        if kind.endswith("long"):
            length = size + 3 * self.cs + 5

        def raw(name, length):
            d = bytearray(length)
            for at in range(0, length, 1 << 16):
                if self.rnd.random() < 0.7:
                    n = min(1 << 16, length - at)
                    d[at:at + n] = noise("%s-%d" % (seed, at), n)
            self.files.append(path(name))
            return Raw(path(name), d)
        if kind.startswith("raw"):
            return raw("below.raw", length)
        low = None
        if kind == "chain":
            low = raw("lowest.raw", size // 2 + 1000)
        cb = self.rnd.choice((9, 12, 16))
        length = length // 512 * 512
        img = Qcow2(path("below.qcow2"), length, cluster_bits=cb,
                    seed="b%s" % seed, backing=low,
                    version=self.rnd.choice((2, 3)),
                    backing_format="raw" if low else None)
        kinds = self.rnd
        for ci in range(min(img.clusters, 3000)):
            r = kinds.random()
            if r < 0.3:
                img.data(ci)
            elif r < 0.36:
                img.compressed(ci)
        img.write()
        self.files.append(img.path)
        return img

    def format_below(self):
        if self.below is None:
            return None
        return "raw" if isinstance(self.below, Raw) else "qcow2"

    def make(self):
        """By our own writer, with clusters of every kind."""
        c, rnd = self.c, self.rnd
        kw = {}
        if c["version"] == 3:
            hl = rnd.choice((104, 112, 112, 144)) if c["source"] != "zstd" \
                else rnd.choice((112, 144))
            kw["header_length"] = hl
            if hl > 112:
                kw["unknown_fields"] = noise("fields", hl - 112)
        img = Qcow2(self.file, self.size, cluster_bits=c["cb"],
                    version=c["version"], refcount_order=c["order"],
                    extl2=c["extl2"], layout=c["layout"], seed=self.nr,
                    comp="zstd" if c["source"] == "zstd" else "deflate",
                    compat=COMPAT_LAZY if c["lazy"] else 0,
                    exts=[UNKNOWN_EXT], backing=self.below,
                    backing_format=self.format_below(), **kw)

        def more(turn, **kw):
            if c["source"] != "empty":
                fill(img, seed="%s-%s" % (self.nr, turn), **kw)
            elif turn:
                img.data(rnd.randrange(img.clusters))
        # A cluster of compressed data is counted by each snapshot as well.
        top, img.refmax = img.refmax, img.refmax // (c["snaps"] + 1)
        more(0)
        snaps = []
        for k in range(c["snaps"]):
            snaps.append(img.snapshot(str(k), "s%d" % k))
            img.seed = "%s-after-%d" % (self.nr, k)
            more(k + 1, count=rnd.randrange(1, img.clusters),
                 first=rnd.randrange(img.clusters // 2))
        img.refmax = top
        img.write()
        self.size = img.size
        self.content = bytes(img.render())
        self.snapshots = [("s%d" % k, bytes(img.render(s)))
                          for k, s in enumerate(snaps)]
        for i, t in img.active.items():
            for j, e in t.entries.items():
                if e.kind == "comp":
                    self.compressed.add(i * img.l2n + j)

    def qemu_make(self):
        c = self.c
        o = ["cluster_size=%d" % self.cs,
             "compat=%s" % ("0.10" if c["version"] == 2 else "1.1")]
        if c["version"] == 3:
            o += ["refcount_bits=%d" % (1 << c["order"]),
                  "extended_l2=%s" % ("on" if c["extl2"] else "off"),
                  "lazy_refcounts=%s" % ("on" if c["lazy"] else "off")]
        if c["data"] is not None:
            self.data = path("w.data")
            o += ["data_file=" + self.data, "data_file_raw=" + c["data"]]
        if c["source"] == "prealloc":
            o.append("preallocation=%s" % self.rnd.choice(
                ("metadata", "falloc", "full")))
        b = []
        if self.below is not None:
            b = ["-b", self.below.path, "-F", self.format_below()]
        if os.path.exists(self.file):
            os.unlink(self.file)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(o), *b,
            self.file, str(self.size))
        self.content = bytearray(self.size)
        if self.below is not None:
            d = self.below.render()[:self.size]
            self.content[:len(d)] = d
        for k in range(c["snaps"]):
            self.by_qemu(3)
            run("qemu-img", "snapshot", "-c", "s%d" % k, self.file)
            self.snapshots.append(("s%d" % k, bytes(self.content)))
        self.content = bytes(self.content)

    def by_qemu(self, n, store=None):
        """A few writes of QEMU's, to the content or to this model."""
        rnd, cmds = self.rnd, []
        store = store or diskmodel.Memory(self.content)
        with open(PAT, "rb") as f:
            pattern = f.read()
        for _ in range(n):
            at = rnd.randrange(self.size // 512) * 512
            length = min(rnd.choice((512, 4096, self.cs, 2 * self.cs,
                                     self.cs + 512)), self.size - at, 1 << 21)
            if rnd.random() < 0.7:
                cmds += ["-c", "write -s %s %d %d" % (PAT, at, length)]
                store.put(at, (pattern * (length // len(pattern) + 1))
                          [:length])
            else:
                cmds += ["-c", "write -z %s %d %d" % (
                    rnd.choice(("", "-u")), at, length)]
                store.clear(at, length)
        p = run("qemu-io", "-f", "qcow2", *cmds, self.file)
        out = p.stdout + p.stderr
        if b"fail" in out.lower() or b"error" in out.lower():
            raise RuntimeError("qemu-io: %s" % out.decode())
        self.content = store.get(0, self.size)

    def __str__(self):
        return "%s: %s" % (self.nr, " ".join(
            "%s=%s" % (k, getattr(v, "name", v)) for k, v in
            sorted(self.c.items())))


# -------------------------------------------------------------- the sessions

def header(file):
    """The header and all behind it in its cluster, without what a writer
    has to change: the place of the refcount table, the dirty bit."""
    with open(file, "rb") as f:
        h = bytearray(f.read(512))
        cb, = struct.unpack(">I", h[20:24])
        h += f.read((1 << cb) - 512)
    h[48:60] = bytes(12)
    h[79] &= ~1 & 0xff
    return bytes(h)


def dirty(file):
    with open(file, "rb") as f:
        h = f.read(80)
    return h[7] == 3 and h[79] & 1


def session(im, disk, n):
    args = ["file=" + im.file] + list(im.c["args"])
    if im.below is not None or im.data is not None:
        args.append("follow=beneath")
    before = header(im.file)
    try:
        # One request at a time needs no 16 threads, each with its buffer.
        srv = Server(*args, opts=("-t", "2"), readonly=False)
    except StartError as e:
        fail("%s: %s" % (im, e))
        return False
    with srv:
        try:
            if not disk.connect(srv) or not disk.many(n) or not disk.all():
                return False
            snapshots(im, srv)
        finally:
            disk.disconnect()
        if im.c["end"] != signal.SIGTERM:
            srv.p.send_signal(im.c["end"])
    check(header(im.file) == before, "%s: the header has changed" % im)
    check(not dirty(im.file), "%s: the dirty bit is left" % im)
    return True


def snapshots(im, srv):
    """Those beside the disk that is being written."""
    for name, want in im.snapshots:
        h = srv.connect("snapshot/" + name)
        equal(qtest.read_all(h), want, "%s: snapshot %s" % (im, name))
        h.shutdown()


def check_image(im, disk, when, last=True):
    """What QEMU finds in the image; of its snapshots, at the end."""
    bad = len(qtest.failures)
    p = run("qemu-img", "check", "-f", "qcow2", im.file, ok=False)
    check(p.returncode == 0, "%s: %s: qemu-img check: exit %d: %s" % (
        im, when, p.returncode, (p.stdout + p.stderr).decode()[-400:]))
    out = path("w.out")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", im.file, out)
    qtest.file_equal(out, disk.store.get(0, disk.size),
                     "%s: %s: qemu-img convert" % (im, when))
    for name, want in im.snapshots if last else ():
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l",
            "snapshot.name=" + name, im.file, out)
        qtest.file_equal(out, want, "%s: %s: snapshot %s" % (im, when, name))
    if im.c["data"] == "on":
        # QEMU makes it longer, up to a whole cluster.
        with open(im.data, "rb") as f:
            equal(f.read(disk.size), bytes(disk.store.get(0, disk.size)),
                  "%s: %s: the raw data file" % (im, when))
    for f, s in zip(im.files, im.sums):
        check(im.sum(f) == s, "%s: %s: %s was changed" % (im, when, f))
    return len(qtest.failures) == bad


def one(nr, c, twice):
    """twice: QEMU writes to it, too, and it is served again."""
    im = Image(nr, c)
    qtest.images += 1
    disk = diskmodel.Disk(
        str(im), im.content, random.Random("requests-%s" % nr),
        cluster=im.cs, granule=im.cs // 32 if c["extl2"] else im.cs,
        trims=(c["version"] == 3 or im.below is None) and
        not (c["data"] == "on" and "discard=keep" in c["args"]),
        compressed=im.compressed)
    if session(im, disk, REQUESTS) and \
       check_image(im, disk, "written", not twice) and twice:
        im.by_qemu(4, disk.store)
        if session(im, disk, REQUESTS // 2):
            check_image(im, disk, "after QEMU")
    keep(im)
    for f in im.files:
        os.unlink(f)


def keep(im):
    """A failed image may be wanted afterwards."""
    to = os.environ.get("QTEST_KEEP")
    if to and qtest.failures:
        run("cp", im.file, os.path.join(to, "%s.qcow2" % im.nr))


def part_of(part):
    seen = set()
    turns = {}              # of each cell: twice, once, twice...
    for turn in range(ROUNDS):
        rnd = random.Random("cells-%s-%d" % (part, turn))
        for k, cell in enumerate(cells(part)):
            nr = "%s-%d-%d" % (part, turn, k)
            c = choose(cell, rnd, seen)
            turns[cell] = turns.get(cell, k) + 1
            if ONLY == nr or (ONLY is None and k % EVERY == turn % EVERY):
                one(nr, c, qtest.every_other(turns[cell]))


for arg in sys.argv[1:]:
    part_of(arg)
print("requests: %d (%s)" % (diskmodel.requests, ", ".join(
    "%s %d" % i for i in sorted(diskmodel.kinds.items()))))
qtest.finish("writing %s" % " ".join(sys.argv[1:]))
