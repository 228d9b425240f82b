# SPDX-License-Identifier: BSD-3-Clause
"""What base:allocation says.  The expectations are written down here by
hand, and where that would be long they are the model's; qemu-img's map is
asked as well."""

import os
import random
import time

import qtest
from qtest import nbd, path, check, same_runs, Server, META, KINDS
from filled import scattered
from qcow2make import Qcow2, Raw, patch, be64, merge, clip
from streams import noise

CS = 65536
SS = CS // 32
MOST = 0xffffffff // 512 * 512  # the longest request


def status(h, length, at, flags=0):
    """The answer to one request, as it comes."""
    out = []

    def cb(ctx, offset, entries, error):
        if ctx == META:
            pos = offset
            for n, fl in zip(entries[0::2], entries[1::2]):
                out.append((pos, pos + n, KINDS.get(fl, fl)))
                pos += n
        return 0
    h.block_status(length, at, cb, flags)
    return out


def served(img, *args):
    if img.backing is not None:
        args += ("follow=beneath",)
    qtest.images += 1
    return Server("file=" + img.path, *args)


def clusters(*runs, unit=CS):
    """[(units, kind)] to runs."""
    out, pos = [], 0
    for n, kind in runs:
        out.append((pos * unit, (pos + n) * unit, kind))
        pos += n
    return out


def kinds():
    """Each kind, and equal neighbours as one, wherever they lie."""
    img = Qcow2(path("k.qcow2"), 16 * CS, layout="shuffled", seed="k")
    for ci in (0, 1, 2):
        img.data(ci)            # not in a row in the file
    img.compressed(3)
    img.data(4, bytes(CS))      # zeros that were written are data
    img.zero_plain(5)
    # 6, 7: unallocated
    img.zero_plain(8)
    img.zero_alloc(9)
    img.zero_alloc(10)
    img.data(11)
    img.zero_alloc(12)
    img.compressed(14)
    img.compressed(15)
    img.write()
    want = clusters((5, "data"), (4, "hole"), (2, "zero"), (1, "data"),
                    (1, "zero"), (1, "hole"), (2, "data"))
    same_runs(img.runs(), want, "the model's map")
    same_runs(qtest.qemu_map(img.path, img.size), want, "qemu-img's map")
    with served(img) as srv:
        h = srv.connect()
        same_runs(status(h, img.size, 0), want, "kinds: one answer")

        # Clipped to what was asked, and all of it in one answer.
        rnd = random.Random("clip")
        ranges = [(CS * 2, 512), (CS * 9 - 512, 1024), (CS * 5, CS * 4),
                  (0, 1), (CS * 5 - 1, 2), (img.size - 1, 1)]
        for _ in range(200):
            at = rnd.randrange(img.size)
            ranges.append((at, rnd.randrange(1, img.size - at + 1)))
        for at, n in ranges:
            inside = merge(clip(want, at, at + n))
            if not same_runs(status(h, n, at), inside,
                             "kinds: [%d,%d)" % (at, at + n)):
                break
            # One is the first of these, and no more.
            if not same_runs(status(h, n, at, nbd.CMD_FLAG_REQ_ONE),
                             inside[:1], "kinds: one of [%d,%d)" % (
                                 at, at + n)):
                break
        h.shutdown()


def subclusters():
    img = Qcow2(path("s.qcow2"), 6 * CS, extl2=True, seed="s")
    img.sub(0, "d" * 3 + "z" * 5 + "u" * 24)
    img.sub(1, "u" * 31 + "d")
    img.sub(2, "d" + "zu" * 15 + "z")
    img.sub(3, "z" * 10 + "u" * 22, host=False)
    img.sub(4, "u" * 32, host=True)
    img.data(5)
    img.write()
    alternating = [(1, "zero"), (1, "hole")] * 15 + [(1, "zero")]
    want = merge(clusters(
        (3, "data"), (5, "zero"), (24 + 31, "hole"), (2, "data"),
        *alternating, (32 + 32, "hole"), (32, "data"), unit=SS))
    same_runs(img.runs(), want, "subclusters: the model's map")
    same_runs(qtest.qemu_map(img.path, img.size), want,
              "subclusters: qemu-img's map")
    with served(img) as srv:
        h = srv.connect()
        same_runs(status(h, img.size, 0), want, "subclusters")
        for at in range(0, img.size, SS):
            for n in (1, SS, SS + 1, 3 * SS):
                n = min(n, img.size - at)
                inside = merge(clip(want, at, at + n))
                same_runs(status(h, n, at), inside, "subclusters at %d" % at)
                same_runs(status(h, n, at, nbd.CMD_FLAG_REQ_ONE), inside[:1],
                          "one subcluster at %d" % at)
        h.shutdown()


def chains():
    """A raw file with holes below, too short for the disk."""
    content = bytearray(10 * CS + 700)
    for ci in (1, 2, 5, 10):
        part = noise(ci, CS)[:len(content) - ci * CS]
        content[ci * CS:ci * CS + len(part)] = part
    raw = Raw(path("b.raw"), content)
    holes = any(k == "hole" for _, _, k in raw.runs())
    print("extents: the folder's file system %s holes" %
          ("has" if holes else "has no"))
    mid = Qcow2(path("m.qcow2"), 12 * CS, backing=raw, backing_format="raw",
                seed="m")
    mid.data(3)
    mid.zero_plain(2)
    mid.write()
    top = Qcow2(path("t.qcow2"), 14 * CS, backing=mid,
                backing_format="qcow2", extl2=True, seed="t")
    top.data(4)
    top.sub(5, "zu" * 16)
    top.sub(9, "u" * 31 + "d")
    top.write()
    want = top.runs()
    if holes and raw.runs()[0] == (0, CS, "hole"):
        # cluster 5 is zero and, through both, the raw file's data
        same_runs(want[:4], [(0, CS, "hole"), (CS, 2 * CS, "data"),
                             (2 * CS, 3 * CS, "hole"),
                             (3 * CS, 5 * CS, "data")], "chain: the model")
        same_runs(clip(want, 10 * CS, 14 * CS)[-1:], [
            (want[-1][0], 14 * CS, "hole")], "chain: the end")
    with served(top) as srv:
        h = srv.connect()
        same_runs(status(h, top.size, 0), want, "chain")
        rnd = random.Random("chain")
        for _ in range(100):
            at = rnd.randrange(top.size)
            n = rnd.randrange(1, top.size - at + 1)
            same_runs(status(h, n, at), merge(clip(want, at, at + n)),
                      "chain: [%d,%d)" % (at, at + n))
        h.shutdown()


def scattered_clusters():
    """1 TiB, 8192 clusters in it: every request is answered in whole, which
    makes as few requests as there can be, and soon."""
    rnd = random.Random("scattered")
    size = 1 << 40
    places = sorted(rnd.sample(range(size // CS), 8192))
    file = path("scattered.qcow2")
    tag = scattered(file, size, places)
    runs, pos = [], 0
    for ci in places:
        if ci * CS > pos:
            runs.append((pos, ci * CS, "hole"))
        runs.append((ci * CS, ci * CS + CS, "data"))
        pos = ci * CS + CS
    want = merge(runs + [(pos, size, "hole")])
    qtest.images += 1
    with Server("file=" + file) as srv:
        h = srv.connect()
        for turn in ("cold", "warm"):
            t = time.monotonic()
            got, at = [], 0
            while at < size:
                n = min(MOST, size - at)
                got += status(h, n, at)
                if not check(got[-1][1] == at + n, "scattered: the request "
                             "at %d was answered up to %d" % (
                                 at, got[-1][1])):
                    return
                at += n
            t = time.monotonic() - t
            same_runs(merge(got), want, "scattered, %s" % turn)
            check(t < 10, "scattered, %s: took %.1f seconds" % (turn, t))
            print("extents: 1 TiB with 8192 clusters, %s: %.3f s" % (turn, t))
        for ci in rnd.sample(places, 50):
            t = tag(ci)
            qtest.equal(bytes(h.pread(len(t), ci * CS)), t, "scattered")
        h.shutdown()
    os.unlink(file)


def beyond_4g():
    """Runs that are longer than a request can be, and places that need more
    than 32 bits."""
    g = 1 << 30
    at = 9 * g + 3 * CS
    tag = scattered(path("far.qcow2"), 17 * g + 512, [at // CS])
    qtest.images += 1
    with Server("file=" + path("far.qcow2")) as srv:
        h = srv.connect()
        same_runs(status(h, MOST, 0), [(0, MOST, "hole")], "the longest")
        same_runs(status(h, MOST, 512), [(512, 512 + MOST, "hole")],
                  "the longest at 512")
        same_runs(status(h, MOST, 6 * g),
                  clip([(at, at + CS, "data")], 6 * g, 6 * g + MOST),
                  "data in the longest")
        same_runs(qtest.extents(h), [(0, at, "hole"), (at, at + CS, "data"),
                                     (at + CS, 17 * g + 512, "hole")],
                  "17 GiB")
        qtest.equal(bytes(h.pread(len(tag(at // CS)), at)), tag(at // CS),
                    "data beyond 4 GiB")
        h.shutdown()
    # The same in a raw backing file: one hole there, longer than 4 GiB.
    with open(path("far.raw"), "wb") as f:
        f.truncate(12 * g)
        f.seek(at)
        f.write(noise("far", CS))
    img = Qcow2(path("over.qcow2"), 17 * g, backing_name="far.raw",
                backing_format="raw")
    img.data(0)
    img.write()
    want = merge([(0, CS, "data")] +
                 clip(Raw(path("far.raw")).runs(), CS, 17 * g))
    with Server("file=" + img.path, "follow=beneath") as srv:
        qtest.images += 1
        h = srv.connect()
        same_runs(qtest.extents(h), want, "17 GiB over raw")
        qtest.equal(bytes(h.pread(CS, at)), noise("far", CS),
                    "raw data beyond 4 GiB")
        h.shutdown()


def damaged():
    """Data, so that who copies it meets the error; nothing is logged for
    those who only ask."""
    img = Qcow2(path("d.qcow2"), 8 * CS)
    img.data(0)
    img.data(4)
    img.write()
    patch(img.path, img.l2_entry_offset(4), be64(CS + 512))
    patch(img.path, img.l2_entry_offset(6), be64(1 << 40))
    want = clusters((1, "data"), (3, "hole"), (1, "data"), (1, "hole"),
                    (1, "data"), (1, "hole"))
    with served(img) as srv:
        h = srv.connect()
        for _ in range(3):
            same_runs(status(h, img.size, 0), want, "damaged")
            same_runs(status(h, 512, 4 * CS), [(4 * CS, 4 * CS + 512,
                                                "data")], "damaged")
        check(not srv.errors(), "extents log: %s" % srv.errors())
        # ... and these are the places that fail
        try:
            h.pread(1, 4 * CS)
            qtest.fail("the place is not damaged at all")
        except nbd.Error:
            pass
        check(len(srv.errors()) == 1, "reading logs: %s" % srv.errors())
        h.shutdown()
        srv.stop(quiet=False)


kinds()
subclusters()
chains()
scattered_clusters()
beyond_4g()
damaged()
qtest.finish("extents")
