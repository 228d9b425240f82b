# SPDX-License-Identifier: BSD-3-Clause
"""Several connections with many random reads in flight, on images of every
kind and in the smallest cache, first on a fresh server and then again;
the live disk, its snapshots and its map all at once.  Each byte is held
against the model."""

import random
import threading

import qtest
from qtest import path, Server, concurrent_reads, same_runs
from filled import fill
from qcow2make import Qcow2, Raw, clip
from streams import noise

SMALL = "cache-size=64K"


def image(name, size, backing=None, **kw):
    fmt = None
    if backing is not None:
        fmt = "raw" if isinstance(backing, Raw) else "qcow2"
    img = Qcow2(path(name), size, seed=name, backing=backing,
                backing_format=fmt, layout="shuffled", **kw)
    return fill(img, seed=name)


def exercise(what, img, *args, connections=4, depth=16, n=240, snaps=()):
    qtest.images += 1
    n = qtest.volume(n)
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
        exercise("clusters of %d" % img.cs, img, SMALL, n=800)


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


def tables():
    """Maps alone, many at once, of more tables than there is room for: what
    one thread looks at another one throws out."""
    cs, per, n = 4096, 512, 96
    img = Qcow2(path("tables.qcow2"), n * per * cs, cluster_bits=12)
    rnd = random.Random("tables")
    for ci in range(n * per):
        if rnd.random() < 0.5:
            img.zero_plain(ci)
    # each table has preallocated zeros at places of its own
    for t in range(n):
        for ci in rnd.sample(range(per), 60):
            img.zero_alloc(t * per + ci)
    img.write()
    want = []
    for t in range(n):
        flat = []
        for s, e, k in clip(img.runs(), t * per * cs, (t + 1) * per * cs):
            flat += [e - s, {"zero": 2, "hole": 3}[k]]
        want.append(flat)
    bad = []
    answers = []

    def work(srv, k):
        try:
            ask(srv, k)
        except Exception as e:
            qtest.fail("maps alone: %r" % e)

    def ask(srv, k):
        rnd = random.Random(k)
        h = srv.connect()

        def asked(t):
            def cb(ctx, offset, entries, error):
                answers.append(t)
                if list(entries) != want[t]:
                    bad.append(t)
                return 0
            return cb
        for _ in range(120):
            flight = []
            for _ in range(16):
                t = rnd.randrange(n)
                flight.append(h.aio_block_status(per * cs, t * per * cs,
                                                 asked(t)))
            while flight:
                h.poll(-1)
                flight = [c for c in flight if not h.aio_command_completed(c)]
        h.shutdown()

    qtest.images += 1
    with Server("file=" + img.path, SMALL) as srv:
        threads = [threading.Thread(target=work, args=(srv, k))
                   for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    qtest.check(len(answers) == 8 * 120 * 16, "maps alone: %d answers" %
                len(answers))
    qtest.check(not bad, "%d maps wrong, of tables %s" % (len(bad), bad[:9]))


kinds()
tables()
only_compressed()
chains()
snapshots()
qtest.finish("parallel reads")
