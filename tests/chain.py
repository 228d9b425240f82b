# SPDX-License-Identifier: BSD-3-Clause
"""Backing chains: deep, of mixed kinds and sizes, each byte and extent held
against the model and against qemu-img."""

import os
import random

import qtest
from qtest import path, verify, run, Server, StartError, check, fail
from qcow2make import Qcow2, Raw
from streams import noise


def base(name, size, holes=True):
    d = bytearray(size)
    for i in range(0, size, 1 << 17):
        if not holes or i // (1 << 17) % 3 != 1:
            part = noise(name + str(i), min(1 << 17, size - i))
            d[i:i + len(part)] = part
    return Raw(path(name), d)


def sparse_fill(img, rnd, share):
    """A few clusters of every kind, so that much shows through."""
    kinds = ["data", "comp"] + (["zp", "za"] if img.version > 2 else []) + \
        (["sub"] if img.extl2 else [])
    for ci in range(img.clusters):
        if rnd.random() > share:
            continue
        kind = rnd.choice(kinds)
        if kind == "data":
            img.data(ci)
        elif kind == "comp":
            img.compressed(ci)
        elif kind == "zp":
            img.zero_plain(ci)
        elif kind == "za":
            img.zero_alloc(ci)
        else:
            img.sub(ci, "".join(rnd.choice("dzuuuu") for _ in range(32)))


def deep(k, depth, raw):
    rnd = random.Random("chain%d" % k)
    layer = base("c%d.raw" % k, 1500000 + 77 * k) if raw else None
    for n in range(depth):
        size = rnd.choice((1 << 20, 3 << 20, 2 << 20, (1 << 20) + 512,
                           (2 << 20) - 1024))
        if n == depth - 1:
            size = 3 << 20
        ext = rnd.random() < 0.3
        img = Qcow2(path("c%d-%d.qcow2" % (k, n)), size,
                    cluster_bits=rnd.choice((14, 16) if ext else
                                            (9, 10, 12, 14, 16, 18)),
                    version=3 if ext else rnd.choice((2, 3)), extl2=ext,
                    comp="deflate", seed="%d/%d" % (k, n), backing=layer,
                    backing_format=None if layer is None else
                    "raw" if isinstance(layer, Raw) else "qcow2",
                    layout=rnd.choice(("linear", "shuffled")))
        sparse_fill(img, rnd, 0.12)
        layer = img.write()
    verify(layer, "chain %d of %d" % (k, depth), parallel=60,
           raw_depth=depth if raw else None)


def lengths():
    """A backing file shorter or longer than the overlay, in odd ways."""
    for k, (top, low) in enumerate((
            (1 << 20, 1), (1 << 20, 511), (1 << 20, 513), (1 << 20, 65536),
            (1 << 20, 65535), (1 << 20, 65537), (1 << 20, 300001),
            (300 << 10, 1 << 20), (65536 + 512, 65536 + 1000), (1 << 20, 0))):
        for ext in (False, True):
            for raw in (True, False):
                if raw:
                    b = base("len.raw", low, holes=False)
                else:
                    b = Qcow2(path("lenb.qcow2"), low, cluster_bits=12,
                              seed="low")
                    for ci in range(b.clusters):
                        b.data(ci)
                    b.write()
                img = Qcow2(path("len.qcow2"), top, extl2=ext, seed="top",
                            backing=b,
                            backing_format="raw" if raw else "qcow2")
                img.data(1)
                if ext:
                    img.sub(0, "ud" * 16)
                    if img.clusters > 4:
                        img.sub(4, "uzud" * 8)
                img.write()
                verify(img, "lengths %d over %d ext=%s raw=%s" % (
                    top, low, ext, raw), reads=15)


def short_and_stale():
    """What a short backing file does not fill is zeros, not old memory."""
    b = base("short.raw", 70000, holes=False)
    img = Qcow2(path("short.qcow2"), 4 << 20, seed="x", backing=b,
                backing_format="raw", cluster_bits=21)
    img.write()
    full = Qcow2(path("full.qcow2"), 4 << 20, cluster_bits=21, seed="f")
    full.data(0)
    full.data(1)
    full.write()
    if qtest.ONLY_QEMU:
        return
    want = bytes(img.render())
    with Server("file=" + img.path, "follow=beneath") as srv:
        h = srv.connect()
        rnd = random.Random(5)
        for _ in range(300):
            n = rnd.choice((65536, 100000, 1 << 20))
            at = rnd.randrange((4 << 20) - n)
            if not qtest.equal(bytes(h.pread(n, at)), want[at:at + n],
                               "short backing at %d" % at):
                break
        h.shutdown()


def limits():
    """250 deep is served, 300 deep and every loop are refused."""
    def tower(depth, first):
        name = first
        for n in range(depth):
            img = Qcow2(path("t%d.qcow2" % n), 64 << 9, cluster_bits=9,
                        features=False, backing_name=name,
                        backing_format=None if name is None else "qcow2",
                        seed="t%d" % n)
            img.data(n % 60)
            img.write()
            name = "t%d.qcow2" % n
        return img
    if qtest.ONLY_QEMU:
        return
    qtest.images += 6
    top = tower(250, None)
    with Server("file=" + top.path, "follow=beneath") as srv:
        h = srv.connect()
        want = bytearray(64 << 9)
        for n in range(250):
            want[n % 60 * 512:(n % 60 + 1) * 512] = noise(
                "t%d-%d" % (n, n % 60), 512)
        qtest.equal(qtest.read_all(h), bytes(want), "250 deep")
        h.shutdown()

    def refused(what, file, regex, *args):
        import re
        try:
            Server("file=" + file, *(args or ("follow=any",)),
                   timeout=20).stop()
        except StartError as e:
            check(e.rc != "hang", "%s: hangs" % what)
            check(e.rc != "hang" and 0 < e.rc < 126, "%s: %s" % (what, e))
            check(re.search(regex, e.log), "%s: message: %s" % (what, e.log))
            if os.environ.get("QTEST_VERBOSE"):
                print(what, e.log.strip())
        else:
            fail("%s: was served" % what)
    top = tower(300, None)
    refused("300 deep", top.path, r"256|deep|depth|chain")
    tower(1, "t0.qcow2")
    refused("its own backing file", path("t0.qcow2"), r"loop|itself|own")
    refused("its own backing file, beneath", path("t0.qcow2"),
            r"loop|itself|own", "follow=beneath")
    tower(3, "t2.qcow2")
    refused("loop of three", path("t2.qcow2"), r"loop|itself|own|already")
    tower(2, "t1.qcow2")
    top = Qcow2(path("over.qcow2"), 64 << 9, cluster_bits=9, features=False,
                backing_name="t1.qcow2", backing_format="qcow2").write()
    refused("loop below", top.path, r"loop|itself|own|already")
    os.symlink("t0.qcow2", path("alias.qcow2"))
    tower(1, "alias.qcow2")
    refused("loop through a symlink", path("t0.qcow2"),
            r"loop|itself|own|already")
    os.link(path("t0.qcow2"), path("hard.qcow2"))
    tower(1, "./hard.qcow2")
    os.unlink(path("hard.qcow2"))
    os.link(path("t0.qcow2"), path("hard.qcow2"))
    refused("loop through a hard link", path("t0.qcow2"),
            r"loop|itself|own|already")


for k in range(6):
    deep(k, (16, 16, 16, 5, 9, 3)[k], k % 2 == 0)
lengths()
short_and_stale()
limits()
qtest.finish("chains")
