# SPDX-License-Identifier: BSD-3-Clause
"""Damage that is only met when its place is read: that request fails with
EIO, the log has one line about it however often it is read, extents call it
data without a word, and the rest of the disk goes on.

Each image has some sound clusters of other kinds around the bad one."""

import errno
import os
import random
import re
import struct

import qtest
from qtest import nbd, path, check, fail, equal, same_runs, Server
from qcow2make import Qcow2, patch, be64, COMPRESSED, COPIED
from streams import noise, deflate_stream, zstd_frame

CB = 14
CS = 1 << CB
BAD = 5                         # the cluster that is damaged
N = 12


def make(file, n=N, bad=None, **kw):
    """bad: how the cluster that will be damaged is written."""
    img = Qcow2(file, n << CB, cluster_bits=CB, seed=os.path.basename(file),
                **kw)
    for ci in range(n):
        if ci == BAD:
            if bad is None:
                img.data(ci)
            else:
                bad(img, ci)
        elif ci % 4 == 0:
            img.compressed(ci)
        elif ci % 4 == 3 and ci != n - 1:
            pass
        else:
            img.data(ci)
    return img


def read_words(file, offset, n=1):
    with open(file, "rb") as f:
        f.seek(offset)
        return struct.unpack(">%dQ" % n, f.read(8 * n))


def as_data(runs, lo, hi):
    from qcow2make import clip, merge
    end = runs[-1][1]
    return merge(clip(runs, 0, lo) + [(lo, hi, "data")] +
                 clip(runs, hi, end))


def fails(h, length, at, what):
    try:
        h.pread(length, at)
        fail("%s: read of %d at %d succeeds" % (what, length, at))
    except nbd.Error as e:
        check(e.errnum == errno.EIO, "%s: read of %d at %d: %s instead of "
              "EIO" % (what, length, at, e))


def others(h, want, lo, hi, rnd, what):
    """Everything outside [lo, hi) reads right, whole and in pieces."""
    size = len(want)
    for a, b in ((0, lo), (hi, size)):
        if a >= b:
            continue
        equal(bytes(h.pread(b - a, a)), want[a:b], "%s: beside it" % what)
        for _ in range(20):
            at = rnd.randrange(a, b)
            n = min(rnd.choice((1, 512, 4096, CS, 3 * CS)), b - at)
            equal(bytes(h.pread(n, at)), want[at:at + n],
                  "%s: read of %d at %d" % (what, n, at))


def examine(what, img, regex, lo=BAD << CB, hi=(BAD + 1) << CB, names=None,
            export="", snap=None, args=(), where=None):
    """[lo, hi) of the disk is bad, everything else as the model has it."""
    qtest.images += 1
    rnd = random.Random(what)
    want = bytes(img.render(snap))
    size = len(want)
    hi = min(hi, size)
    with Server("file=" + img.path, *args) as srv:
        h = srv.connect(export)
        check(h.get_size() == size, "%s: size" % what)
        same_runs(qtest.extents(h, what=what),
                  as_data(img.runs(snap), lo, hi), "%s: map" % what)
        others(h, want, lo, hi, rnd, what)
        check(not srv.errors(), "%s: logged before it was read: %s" % (
            what, srv.errors()))
        second = srv.connect(export)
        for c in (h, second):
            for length, at in ((hi - lo, lo), (1, lo), (1, hi - 1),
                               (512, lo), (100, lo + 1000),
                               (hi - lo, lo), (1, lo)):
                fails(c, length, at, what)
            if lo:
                fails(c, CS, lo - 1, what)
                fails(c, CS + 1, lo - CS, what)
            if hi < size:
                fails(c, CS, hi - 1, what)
            fails(c, min(size, 33 << 20), 0, what)
            others(c, want, lo, hi, rnd, what)
        same_runs(qtest.extents(h, what=what),
                  as_data(img.runs(snap), lo, hi), "%s: map again" % what)
        e = srv.errors()
        check(len(e) == 1, "%s: %d lines logged: %s" % (what, len(e), e[:3]))
        for line in e[:1]:
            check(re.search(regex, line), "%s: does not match '%s': %s" % (
                what, regex, line))
            check(os.path.basename(names or img.path) in line,
                  "%s: the file is not named: %s" % (what, line))
            if where is not None:
                check("offset 0x%x:" % where in line,
                      "%s: offset %#x is not named: %s" % (what, where, line))
        h.shutdown()
        second.shutdown()
        srv.stop(quiet=False)


def entry(what, regex, change, bad=None, **kw):
    """A bad L2 entry: change(img, word, bitmap) makes it."""
    file = path("damage-%d.qcow2" % qtest.images)
    img = make(file, bad=bad, **kw).write()
    off = img.l2_entry_offset(BAD)
    if img.extl2:
        patch(file, off, b"".join(map(be64, change(
            img, *read_words(file, off, 2)))))
    else:
        patch(file, off, be64(change(img, *read_words(file, off))))
    examine(what, img, regex, where=off)
    os.unlink(file)


def plain_entries():
    for v in (2, 3):
        entry("misaligned entry, v%d" % v, r"L2 entry.*multiple",
              lambda img, w: w + 512, version=v)
        entry("entry beyond the end, v%d" % v, r"L2 entry.*beyond the end",
              lambda img, w: COPIED | 1 << 40, version=v)
        entry("entry at the very end, v%d" % v, r"L2 entry.*beyond the end",
              lambda img, w: COPIED | os.path.getsize(img.path), version=v)
        entry("highest offset, v%d" % v, r"L2 entry.*beyond the end",
              lambda img, w: (1 << 56) - CS, version=v)
        entry("compressed, offset 0, v%d" % v, r"L2 entry",
              lambda img, w: COMPRESSED, version=v)
        entry("compressed beyond the end, v%d" % v,
              r"L2 entry.*beyond the end",
              lambda img, w: COMPRESSED | 1 << 40, version=v)
    entry("zero flag in a v2 image", r"L2 entry.*zero flag.*version 2",
          lambda img, w: w | 1, version=2)
    entry("zero flag alone in a v2 image", r"L2 entry.*zero flag.*version 2",
          lambda img, w: 1, version=2)
    entry("zero flag on a misaligned entry", r"L2 entry.*multiple",
          lambda img, w: w + 512 | 1)


def extended_entries():
    entry("subcluster allocated and zero", r"L2 entry.*both",
          lambda img, w, b: (w, b | 1 << 32), extl2=True)
    entry("last subcluster allocated and zero", r"L2 entry.*both",
          lambda img, w, b: (w, 1 << 63 | 1 << 31), extl2=True)
    entry("subcluster without a cluster", r"L2 entry.*no cluster offset",
          lambda img, w, b: (0, 1 << 7), extl2=True)
    entry("misaligned extended entry", r"L2 entry.*multiple",
          lambda img, w, b: (w + 512, b), extl2=True)
    entry("extended entry beyond the end", r"L2 entry.*beyond the end",
          lambda img, w, b: (1 << 40, b), extl2=True)


def l1_entries():
    """A bad L1 entry takes all that its table maps with it."""
    span = (CS // 8) << CB      # of one table: 32 MiB

    def one(what, regex, change):
        file = path("l1-%d.qcow2" % qtest.images)
        img = Qcow2(file, 2 * span + 3 * CS, cluster_bits=CB, seed="l1")
        n = CS // 8
        for ci in (0, 1, n - 1, n, n + 1, 2 * n - 1, 2 * n, 2 * n + 1):
            img.data(ci)
        img.write()
        off = img.l1_entry_offset(n)
        patch(file, off, be64(change(img, *read_words(file, off))))
        examine(what, img, regex, span, 2 * span, where=off)
        os.unlink(file)
    one("misaligned L1 entry", r"L1 entry.*multiple", lambda img, w: w + 512)
    one("L1 entry beyond the end", r"L1 entry.*beyond the end",
        lambda img, w: COPIED | 1 << 50)
    one("L1 entry at the very end", r"L1 entry.*beyond the end",
        lambda img, w: COPIED | os.path.getsize(img.path))


def compressed():
    """Streams that don't decode, or yield too little."""
    rnd = random.Random("garbage")
    for comp, half in (
            ("deflate", deflate_stream(noise("half", CS // 2), "plain")),
            ("zstd", zstd_frame(noise("half", CS // 2)))):
        for what, stream in (
                ("ones", b"\xff" * 900), ("garbage", rnd.randbytes(900)),
                ("too short", half), ("half a stream", half[:len(half) // 2])):
            if what == "garbage":
                # which must not be a deflate stream by accident
                stream = b"\x07" + stream
            file = path("comp-%d.qcow2" % qtest.images)
            img = make(file, comp=comp, bad=lambda img, ci, s=stream:
                       img.compressed(ci, stream=s, new_arena=True)).write()
            examine("%s: %s" % (comp, what), img, r"compressed cluster",
                    where=img._get(BAD).host)
            os.unlink(file)


def below():
    """In a backing file: the line names that one."""
    low = make(path("low.qcow2")).write()
    off = low.l2_entry_offset(BAD)
    patch(low.path, off, be64(1 << 40))
    top = Qcow2(path("top.qcow2"), N << CB, cluster_bits=CB, backing=low,
                backing_format="qcow2", seed="top")
    top.data(BAD - 1)
    top.zero_plain(2)
    top.write()
    examine("in a backing file", top, r"L2 entry.*beyond", names="low.qcow2",
            args=("follow=beneath",), where=off)
    # ... and what hides it makes the disk sound.
    top = Qcow2(path("top.qcow2"), N << CB, cluster_bits=CB, backing=low,
                backing_format="qcow2", seed="top")
    top.data(BAD)
    top.write()
    qtest.images += 1
    with Server("file=" + top.path, "follow=beneath") as srv:
        h = srv.connect()
        equal(qtest.read_all(h), bytes(top.render()), "damage that is hidden")
        same_runs(qtest.extents(h), top.runs(), "damage that is hidden: map")
        h.shutdown()


def in_snapshot():
    """A snapshot's damage is its own, and a shared table's is logged once
    for all who read it."""
    file = path("snap.qcow2")
    img = make(file)
    s = img.snapshot("1", "s")
    for ci in range(N):
        img.data(ci)
    img.write()
    off = s.l1[0].host + BAD * 8
    patch(file, off, be64(1 << 40))
    examine("in a snapshot", img, r"L2 entry.*beyond", snap=s,
            export="snapshot/s", where=off)
    qtest.images += 1
    with Server("file=" + file) as srv:
        h = srv.connect()
        equal(qtest.read_all(h), bytes(img.render()), "beside a bad snapshot")
        h.shutdown()

    img = make(path("shared.qcow2"))
    s = img.snapshot("1", "s")
    img.write()
    patch(img.path, s.l1[0].host + BAD * 8, be64(1 << 40))
    qtest.images += 1
    with Server("file=" + img.path) as srv:
        for export in ("", "snapshot/s", ""):
            h = srv.connect(export)
            for _ in range(3):
                fails(h, CS, BAD << CB, "shared table")
            h.shutdown()
        check(len(srv.errors()) == 1, "shared table: %s" % srv.errors())
        srv.stop(quiet=False)


def many():
    """More damage than is remembered: the log is bounded."""
    n = 300
    file = path("many.qcow2")
    img = Qcow2(file, (n + 8) << CB, cluster_bits=CB, seed="many")
    for ci in range(n + 8):
        img.data(ci)
    img.write()
    for ci in range(n):
        patch(file, img.l2_entry_offset(ci), be64(CS * 3 + 512 * (1 + ci % 9)))
    qtest.images += 1
    want = bytes(img.render())
    with Server("file=" + file) as srv:
        h = srv.connect()
        for k in range(3):
            for ci in range(n):
                fails(h, 512, ci << CB, "many places")
            equal(bytes(h.pread(8 << CB, n << CB)), want[n << CB:],
                  "beside many")
            e = len(srv.errors())
            check(e == 64, "many places: %d lines after round %d" % (e, k))
        same_runs(qtest.extents(h), img.runs(), "many places: map")
        check(len(srv.log()) < 32768, "many places: %d bytes logged" %
              len(srv.log()))
        h.shutdown()
        srv.stop(quiet=False)


plain_entries()
extended_entries()
l1_entries()
compressed()
below()
in_snapshot()
many()
qtest.finish("damage")
