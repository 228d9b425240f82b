# SPDX-License-Identifier: BSD-3-Clause
"""The judges of what is written are right: histories that are possible pass,
and those that aren't are noticed."""

import os
import random
import sys

import diskmodel
import qtest
from qtest import path, check, Server
from qcow2make import Qcow2
from streams import noise
from stamps import Change, Units

U = 512


def change(units, ident, start, end, first=0, n=1, sure=True, stable=False):
    c = Change(ident, sure)
    c.start, c.end, c.stable = start, end, stable
    units.begin(c, first, n)
    return c


def histories():
    base = noise("base", 4 * U)
    u = Units(base, U)

    def can(ident, began, **kw):
        value = {0: bytes(U), "base": base[:U]}.get(ident) or \
            u.stamp(ident, 0, 1)
        return u.legal(0, value, began, **kw) is None
    check(can("base", 5), "nothing has happened")
    check(not can(0, 5), "zeros from nowhere")
    check(not can(7, 5), "a write from nowhere")
    change(u, 1, 10, 20)
    check(can("base", 15) and can(1, 15), "under way: old or new")
    check(not can("base", 25), "replaced")
    check(can(1, 25), "written")
    change(u, 2, 15, 30)
    check(can(1, 35) and can(2, 35), "two at once: either")
    change(u, 3, 40, 50)
    check(not can(1, 55) and not can(2, 55), "a later one has replaced both")
    check(can(3, 55) and can(2, 45), "the last, and before it was done")
    change(u, 0, 60, 70, sure=False)
    check(can(3, 75) and can(0, 75), "perhaps a trim")
    change(u, 0, 80, 90)
    check(can(0, 95) and not can(3, 95), "zeroed")
    change(u, 4, 100, None)
    check(can(0, 200) and can(4, 200), "never answered")

    # Who has read the new value has shown that it is there.
    u.base(base)
    change(u, 1, 10, 20)
    change(u, 2, 30, None)
    check(can(1, 40), "not yet seen")
    u.saw(0, u.stamp(2, 0, 1), 45)
    check(not can(1, 50), "new and then old again")
    check(can(2, 50), "seen")

    # Another unit's stamp, and half of one and half of another.
    u.base(base)
    change(u, 1, 10, 20, 0, 2)
    change(u, 2, 10, 20, 0, 2)
    check(u.legal(0, u.stamp(1, 1, 1), 15) is not None, "another unit's")
    half = u.stamp(1, 0, 1)[:U // 2] + u.stamp(2, 0, 1)[U // 2:]
    check(u.legal(0, half, 15) is not None, "torn")
    check(u.mixture(0, half, 15), "a mixture of two that are possible")
    junk = b"\xee" * (U // 2) + u.stamp(2, 0, 1)[U // 2:]
    check(not u.mixture(0, junk, 15), "a mixture with something else")


def crashes():
    base = noise("base", U)
    u = Units(base, U)

    def left(value):
        return u.legal(0, value, 1000, crash=True) is None
    change(u, 1, 10, 20)
    check(left(base) and left(u.stamp(1, 0, 1)), "not flushed: either")
    change(u, 2, 30, 40, stable=True)
    check(not left(base), "flushed, but the old is back")
    check(not left(u.stamp(1, 0, 1)), "flushed, but an older one is back")
    check(left(u.stamp(2, 0, 1)), "flushed")
    change(u, 0, 50, 60)
    check(left(bytes(U)) and left(u.stamp(2, 0, 1)), "zeroed, not flushed")
    change(u, 3, 70, None)
    check(left(u.stamp(3, 0, 1)), "not answered")
    check(not left(b"\xee" * U), "what the host had there")


def trims():
    """What a trim may leave."""
    def bad(old, got, **kw):
        d = diskmodel.Disk("t", bytes(4096), random.Random(0), cluster=1024,
                           **kw)
        d.last = "trim"
        before = len(qtest.failures)
        sys.stdout = open(os.devnull, "w")
        d.trimmed(512, 2048, old, got)
        sys.stdout = sys.__stdout__
        n = len(qtest.failures) - before
        del qtest.failures[before:]
        return n > 0
    old = noise("old", 2048)
    zeros = bytes(2048)
    kept = old[:512] + bytes(1024) + old[1536:]
    check(not bad(old, zeros), "all zeros")
    check(not bad(old, kept), "the parts at the ends are kept")
    check(bad(old, old), "nothing was done")
    check(not bad(old, old, trims=False), "nothing has to be done")
    check(bad(old, kept, granule=512), "subclusters were not trimmed")
    check(bad(old, noise("other", 2048), trims=False), "something else")


def served():
    """A model that is wrong in one byte, one that expects data, and maps."""
    img = Qcow2(path("self.qcow2"), 40 << 12, cluster_bits=12)
    img.write()
    for what in ("byte", "trim", "map"):
        disk = diskmodel.Disk("self", bytes(img.size), random.Random(what),
                              cluster=4096)
        before = len(qtest.failures)
        with Server("file=" + img.path) as srv:
            disk.handles = [srv.connect()]
            sys.stdout = open(os.devnull, "w")
            disk.store.put(77777, b"x")
            disk.last = "nothing"
            if what == "byte":
                disk.all()
            elif what == "map":
                disk.place = lambda: (0, disk.size)
                disk.status()
            else:
                disk.read(70000, 20000)
            sys.stdout = sys.__stdout__
            disk.disconnect()
        n = len(qtest.failures) - before
        del qtest.failures[before:]
        check(n > 0, "not noticed: %s" % what)


histories()
crashes()
trims()
served()
qtest.finish("those who judge what is written")
