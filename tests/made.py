# SPDX-License-Identifier: BSD-3-Clause
"""Images written by qcow2make.py in everything that the format allows, each
compared byte by byte and extent by extent.  Argument: which part."""

import os
import sys

import qtest
from qtest import pairs, path, verify
from filled import fill
from qcow2make import (Qcow2, Raw, INCOMPAT_DIRTY, INCOMPAT_CORRUPT,
                       COMPAT_LAZY, AUTOCLEAR_BITMAPS, EXT_BITMAPS)
from streams import (noise, deflate_stream, zstd_frame, ZSTD_FORMS,
                     DEFLATE_FORMS)

serial = 0


def fresh():
    global serial
    serial += 1
    return path("m%d.qcow2" % serial)


def go(img, name, **kw):
    img.write()
    verify(img, name, **kw)
    os.unlink(img.path)


def count_for(cb, full=64):
    """How many clusters make a disk of a bearable size."""
    return max(14, min(full, (4 << 20) >> cb))


def odd_size(cb, n, k):
    """n clusters, less something, with k choosing what."""
    cs = 1 << cb
    return n * cs - (0, 512, cs - 512, 1024 % cs, cs // 2)[k % 5]


def raw_base(name, size, holes=True):
    """A raw file with data, holes and a tail that is not a whole sector."""
    d = bytearray(size)
    step = 128 << 10
    for i in range(0, size, step):
        if not holes or (i // step) % 3 != 1:
            part = noise("%s%d" % (name, i), min(step, size - i))
            d[i:i + len(part)] = part
    return Raw(path(name), d)


def matrix(version):
    """Cluster sizes x refcount widths x layouts x with and without backing."""
    k = 0
    for cb in range(9, 22):
        big = cb >= 18
        orders = (4,) if version == 2 else ((k % 7,) if big else
                                            (k % 7, (k + 3) % 7))
        for order in orders:
            for layout in ("linear", "shuffled") if qtest.VOLUME > 1 and \
                    not big else (("linear", "shuffled")[k % 2],):
                k += 1
                n = count_for(cb)
                if order == 0:
                    n = min(n, 24)
                hl = 72 if version == 2 else (104, 112, 120, 144)[k % 4]
                kw = {}
                if hl > 112:
                    kw["unknown_fields"] = noise("hdr", hl - 112)
                backing = None
                if k % 3 == 0:
                    backing = raw_base("base%d.raw" % k,
                                       (3 << 20) // (k % 4 + 1) + k % 700)
                img = Qcow2(fresh(), odd_size(cb, n, k), cluster_bits=cb,
                            version=version, refcount_order=order,
                            header_length=hl, layout=layout, seed=k,
                            backing=backing,
                            backing_format="raw" if backing else None, **kw)
                fill(img, seed=k)
                go(img, "v%d cb=%d order=%d %s %s" % (
                    version, cb, order, layout,
                    "backing" if backing else "alone"))
                if backing:
                    os.unlink(backing.path)


def widths():
    """Every refcount width with clusters of every small size."""
    for order, cb in pairs(range(7), (9, 12, 16), 2):
        img = Qcow2(fresh(), (40 << cb) - 512, cluster_bits=cb,
                    refcount_order=order, seed=order * 100 + cb)
        fill(img, seed=order + cb)
        if order >= 3:
            img.snapshot("1", "s")
            fill(img, seed=order + cb + 1, count=12, first=5)
        go(img, "width order=%d cb=%d" % (order, cb))


def sparse():
    """Several L2 tables, empty ones, none at all, and longer L1 tables."""
    for cb, extl2 in ((9, False), (10, False), (12, False), (14, True),
                      (16, False), (16, True)):
        cs = 1 << cb
        l2n = cs // (16 if extl2 else 8)
        size = cs * l2n * 5 - 512
        if size > 200 << 20:
            continue
        img = Qcow2(fresh(), size, cluster_bits=cb, extl2=extl2, seed=cb,
                    l1_extra=7, layout="shuffled")
        img.data(0)
        img.data(l2n - 1)
        img.data(l2n)
        img.zero_plain(l2n + 1)
        img.empty_l2(2 * l2n)
        img.data(4 * l2n)
        img.compressed(img.clusters - 1)
        go(img, "sparse cb=%d ext=%d" % (cb, extl2), parallel=30)
    for size, version in pairs(
            (0, 512, 511 + 512, 1, 511, 65536, 65536 + 512, 12345), (3, 2), 2):
        img = Qcow2(fresh(), size, version=version, seed=size)
        if size >= 512:
            img.data(0)
        go(img, "size %d v%d" % (size, version), sound=True)
    img = Qcow2(fresh(), 1 << 20, l1_extra=3000)
    go(img, "empty")


def tails():
    """The file ends inside its last cluster."""
    keeps = (lambda cs: 1, lambda cs: 511, lambda cs: 512,
             lambda cs: 513 % cs, lambda cs: cs // 2, lambda cs: cs - 1,
             lambda cs: cs)
    for cb, kept in pairs((9, 12, 16, 21), keeps, 3):
        cs, n = 1 << cb, 3
        keep = kept(cs)
        img = Qcow2(fresh(), n * cs, cluster_bits=cb, seed=keep)
        img.data(0)
        img.tail_data(1 + keep % 2, keep)
        go(img, "tail cb=%d keep=%d" % (cb, keep))
    img = Qcow2(fresh(), 3 << 16, extl2=True)
    img.data(0)
    img.tail_data(2, 3000)
    go(img, "tail ext")


def headers():
    """What may stand in a header and must not disturb a reader."""
    def one(name, version=3, sound=True, cb=16, body=True, **kw):
        img = Qcow2(fresh(), 10 << cb, cluster_bits=cb, version=version,
                    seed=name, **kw)
        if body:
            fill(img, seed=name)
        go(img, "header: " + name, sound=sound)
    for hl in (104, 112, 120, 128, 200, 504, 512):
        one("length %d" % hl, header_length=hl, cb=9, features=False,
            end_marker=hl < 504,
            unknown_fields=noise("u", hl - 112) if hl > 112 else None)
    one("length is the cluster", header_length=4096, cb=12, features=False,
        end_marker=False, unknown_fields=noise("u", 4096 - 112))
    one("dirty", incompat=INCOMPAT_DIRTY)
    one("corrupt", incompat=INCOMPAT_CORRUPT)
    one("dirty, corrupt", incompat=INCOMPAT_DIRTY | INCOMPAT_CORRUPT)
    one("lazy", compat=COMPAT_LAZY)
    one("unknown compatible bits", compat=0x8000000000000ffe)
    one("unknown autoclear bits", autoclear=0x4000000000000ffc)
    one("unknown extension", exts=[(0x12345678, b"hello"), (7, b""),
                                   (0xffffffff, noise("e", 1000))])
    one("same unknown extension twice", exts=[(0x777, b"a"), (0x777, b"bc")])
    one("v2 with extensions", version=2, exts=[(0x12345678, b"hello")])
    one("v2 with a feature table", version=2,
        exts=[(0x6803f857, b"\0\0name" + bytes(42))])
    one("no end marker", end_marker=False)
    one("v2 without end marker", version=2, end_marker=False)
    one("no feature table", features=False)
    one("backing format but no backing", backing_format="raw")
    one("bitmaps extension, stale", exts=[(EXT_BITMAPS, bytes(24))],
        autoclear=0)
    one("512-byte clusters", cb=9, exts=[(0x12345678, noise("x", 300))])
    # extension that fills the first cluster to the last byte
    one("full cluster", cb=9, features=False, end_marker=False,
        exts=[(0x12345678, noise("x", 512 - 112 - 8))])
    # snapshots_offset and the like without meaning
    img = Qcow2(fresh(), 5 << 16, seed="bm")
    fill(img, seed="bm")
    img.autoclear |= AUTOCLEAR_BITMAPS
    img.bitmap("dirty")
    img.bitmap("second", granularity_bits=9)
    go(img, "header: bitmaps")

    base = raw_base("hbase.raw", 400000)

    def over(name, version=3, cb=16, **kw):
        kw.setdefault("backing_format", "raw")
        img = Qcow2(fresh(), 10 << cb, cluster_bits=cb, version=version,
                    seed=name, backing=base, **kw)
        img.data(1)
        img.compressed(2)
        go(img, "backing name: " + name)
    over("plain")
    over("at an odd offset", name_gap=3)
    over("at the end of the cluster", cb=12,
         name_offset=4096 - len("hbase.raw"))
    over("v2", version=2)
    over("v2 at an odd offset", version=2, name_gap=5)
    over("right behind the extensions", end_marker=False)
    over("512-byte clusters", cb=9)
    over("./ in front", backing_name="./hbase.raw")
    over("// inside", backing_name=".//hbase.raw")
    # an extension that isn't padded because the name follows at once
    img = Qcow2(fresh(), 10 << 16, seed="nopad", backing=base,
                features=False, end_marker=False, backing_format="raw",
                name_offset=112 + 8 + 3)
    img.data(1)
    go(img, "backing name: in the padding of the last extension")
    # v2: the name directly behind the header, so there are no extensions
    img = Qcow2(fresh(), 10 << 16, version=2, seed="v2name", backing=base,
                end_marker=False, name_offset=72)
    img.write()
    verify(img, "backing name: v2 at 72", use_qemu=False,
           args=("backing-format=raw",))
    # an empty name is no backing file
    img = Qcow2(fresh(), 10 << 16, seed="noname", backing_name=b"",
                name_offset=1024)
    img.data(3)
    go(img, "backing name: empty")


def extl2():
    """Extended L2: every shape of every subcluster size, over everything."""
    k = 0
    for cb, comp in pairs(range(14, 22), ("deflate", "zstd"), 2):
        k += 1
        n = max(34, min(60, (4 << 20) >> cb)) if cb < 19 else 22
        backing = None
        if k % 4 in (1, 2):
            backing = raw_base("e%d.raw" % k, (n << cb) * 2 // 3 + 100)
        img = Qcow2(fresh(), odd_size(cb, n, k), cluster_bits=cb,
                    extl2=True, comp=comp, seed=k,
                    refcount_order=k % 7,
                    layout=("linear", "shuffled")[k // 2 % 2],
                    backing=backing,
                    backing_format="raw" if backing else None)
        fill(img, seed=k)
        go(img, "extl2 cb=%d %s %s" % (cb, comp, bool(backing)))
        if backing:
            os.unlink(backing.path)
    # sizes that end inside a subcluster
    for tail in (512, 1024, 2048, 2560, 65536 - 512):
        img = Qcow2(fresh(), (3 << 16) + tail, extl2=True, seed=tail)
        img.sub(3, "du" * 16)
        img.sub(0, "zd" * 16)
        go(img, "extl2 size +%d" % tail)


def compressed():
    """Compressed clusters in every form that decoders must take."""
    for cb, (comp, forms) in pairs(
            (9, 10, 12, 14, 16, 18, 21),
            (("deflate", DEFLATE_FORMS), ("zstd", ZSTD_FORMS)), 2):
        img = Qcow2(fresh(), (2 * len(forms) + 4) << cb, cluster_bits=cb,
                    comp=comp, seed="c%d" % cb, refcount_order=4)
        ci = 0
        for form in forms:
            for slack in (0, 3):
                data = img.pattern(ci, True)
                if slack:
                    n = len(data)
                    data = (noise(ci, n // 3) + data)[:n]
                if cb < 11:
                    slack = 0
                try:
                    img.compressed(ci, form, data, slack=slack,
                                   gap=ci * 37 % 200)
                except AssertionError:
                    pass
                ci += 1
        # data that grows: a stream longer than its cluster
        data = img.pattern(ci)
        stream = (deflate_stream(data, "stored") if comp == "deflate"
                  else zstd_frame(data))
        if len(stream) > img.cs and cb >= 12:
            img.compressed(ci, data=data, stream=stream)
        ci += 1
        # all zeros, and one byte repeated
        img.compressed(ci, data=bytes(img.cs))
        img.compressed(ci + 1, data=b"Q" * img.cs)
        go(img, "compressed %s cb=%d" % (comp, cb), parallel=60)
    # one host cluster shared by as many as its refcount can count
    for order in range(7):
        img = Qcow2(fresh(), 80 << 12, cluster_bits=12, seed="share",
                    refcount_order=order)
        for ci in range(80):
            img.compressed(ci, data=bytes([ci + 1]) * 4096)
        go(img, "compressed, shared, order=%d" % order)
    # backing below compressed ones; a read that crosses all kinds
    base = raw_base("cb.raw", 1 << 20)
    for version in (2, 3):
        img = Qcow2(fresh(), 1 << 20, cluster_bits=12, version=version,
                    backing=base, backing_format="raw", seed="mix")
        for ci in range(0, 256, 2):
            if ci % 6 == 0:
                img.data(ci)
            else:
                img.compressed(ci)
        go(img, "compressed over backing v%d" % version, parallel=60)


def selftest():
    """The comparisons notice what they are for: one flipped byte, one wrong
    extent, a wrong size."""
    img = Qcow2(path("self.qcow2"), 20 << 12, cluster_bits=12)
    fill(img, seed="self")
    img.data(3)
    img.zero_alloc(4)
    img.write()
    good, runs = bytes(img.render()), img.runs()

    def must_fail(what, want, r):
        before = len(qtest.failures)
        refused = 0
        try:
            qtest.verify_image("self", img.path, want, r, use_qemu=False)
        except qtest.nbd.Error:
            refused = 1         # a read beyond the end: noticed as well
        n = len(qtest.failures) - before + refused
        del qtest.failures[before:]
        qtest.check(n > 0, "not noticed: " + what)
    bad = bytearray(good)
    bad[3 * 4096 + 1234] ^= 1
    sys.stdout = open(os.devnull, "w")
    must_fail("a flipped byte", bytes(bad), runs)
    must_fail("a longer disk", good + bytes(512), runs)
    worse = [(s, e, "hole" if k == "zero" else k) for s, e, k in runs]
    must_fail("zero taken for hole", good, worse)
    sys.stdout = sys.__stdout__
    # and on disk, against qemu-img's and our reading
    e = img._get(3)
    with open(img.path, "r+b") as f:
        f.seek(e.host + 77)
        c = f.read(1)[0]
        f.seek(e.host + 77)
        f.write(bytes([c ^ 0x80]))
    sys.stdout = open(os.devnull, "w")
    must_fail("a byte flipped in the file", good, runs)
    sys.stdout = sys.__stdout__


PARTS = {
    "v2": lambda: matrix(2), "v3": lambda: matrix(3), "widths": widths,
    "sparse": sparse, "tails": tails, "headers": headers, "extl2": extl2,
    "compressed": compressed, "selftest": selftest,
}

for part in sys.argv[1:]:
    PARTS[part]()
qtest.finish("matrix %s" % " ".join(sys.argv[1:]))
