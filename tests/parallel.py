# SPDX-License-Identifier: BSD-3-Clause
"""Several connections with many random reads in flight, on images of every
kind and in the smallest cache, first on a fresh server and then again;
the live disk, its snapshots and its map all at once.  Each byte is held
against the model."""

import random
import threading

import qtest
from qtest import path, Server, concurrent_reads, same_runs
from qcow2make import Qcow2, Raw, fill, noise

SMALL = "cache-size=64K"


def image(name, size, backing=None, **kw):
    fmt = None
    if backing is not None:
        fmt = "raw" if isinstance(backing, Raw) else "qcow2"
    img = Qcow2(path(name), size, seed=name, backing=backing,
                backing_format=fmt, layout="shuffled", **kw)
    return fill(img, seed=name)


def exercise(what, img, *args, connections=4, depth=16, n=600, snaps=()):
    qtest.images += 1
    disks = [("", bytes(img.render()), img.runs())]
    disks += [("snapshot/%s" % s.name.decode(), bytes(img.render(s)),
               img.runs(s)) for s in snaps]

    def reads(srv, k, turn):
        export, want, _ = disks[k]
        concurrent_reads(srv, want, connections, depth, n,
                         random.Random("%s-%d-%s" % (what, k, turn)),
                         "%s %r, %s" % (what, export, turn), img.cs, export)

    def maps(srv, k, turn):
        try:
            h = srv.connect(disks[k][0])
            for _ in range(5):
                same_runs(qtest.extents(h, what=what), disks[k][2],
                          "%s %r, %s: map" % (what, disks[k][0], turn))
            h.shutdown()
        except Exception as e:
            qtest.fail("%s: map: %r" % (what, e))

    with Server("file=" + img.path, *args) as srv:
        for turn in ("cold", "warm"):
            threads = [threading.Thread(target=f, args=(srv, k, turn))
                       for k in range(len(disks)) for f in (reads, maps)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()


def kinds():
    for args in ((SMALL,), ()):
        for comp in ("deflate", "zstd"):
            img = image("c-%s.qcow2" % comp, 90 << 16, comp=comp).write()
            exercise("%s, 64 KiB clusters" % comp, img, *args)
        exercise("extended L2", image("e.qcow2", 90 << 16, extl2=True).write(),
                 *args, connections=8)
    # more tables than the cache has room for
    for cb, version in ((9, 2), (10, 3)):
        img = image("t%d.qcow2" % cb, 6000 << cb, cluster_bits=cb,
                    version=version).write()
        exercise("clusters of %d" % img.cs, img, SMALL, n=1600)


def only_compressed():
    """So many of them that the decoded ones don't all fit."""
    img = Qcow2(path("z.qcow2"), 24 << 20, cluster_bits=20, seed="z")
    for ci in range(24):
        img.compressed(ci)
    exercise("large compressed clusters", img.write(), SMALL, n=160,
             connections=8, depth=4)


def chains():
    b = Raw(path("b.raw"), noise("b", 1 << 20) + bytes(1 << 20) +
            noise("c", 300001))
    low = image("low.qcow2", 50 << 16, backing=b, cluster_bits=12,
                version=2).write()
    img = image("top.qcow2", 70 << 16, backing=low, cluster_bits=14,
                extl2=True).write()
    exercise("chain", img, SMALL, "follow=beneath")
    exercise("chain", img, "follow=beneath", connections=8)


def snapshots():
    img = image("s.qcow2", 40 << 16)
    snaps = []
    for k in range(3):
        snaps.append(img.snapshot(str(k), "s%d" % k))
        img.seed = "after-%d" % k
        fill(img, seed=img.seed, count=20, first=7 * k)
    img.write()
    exercise("live disk and snapshots", img, SMALL, snaps=snaps,
             connections=3, n=300)
    exercise("live disk and snapshots", img, snaps=snaps, connections=3,
             n=300)


kinds()
only_compressed()
chains()
snapshots()
qtest.finish("parallel reads")
