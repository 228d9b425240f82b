# SPDX-License-Identifier: BSD-3-Clause
"""Damaged QED images: the tool's verdict is that of `qemu-img check', before a
repair and after it.  QTEST_VOLUME multiplies how many images there are;
QTEST_ONLY takes a number that a failure named."""

import json
import os
import random
import struct

import qtest
from qtest import path, run, check

TOOL = os.environ["TOOL"]
ONLY = os.environ.get("QTEST_ONLY")
IMG, COPY, COPY2 = path("c.qed"), path("d.qed"), path("e.qed")


def made(rnd):
    """A sound image, as bytes, and where the entries of its tables are."""
    cluster, table = 4096, rnd.choice((2, 4, 8))
    header = rnd.choice((1, 1, 2))
    nr = table * cluster // 8
    size = rnd.randrange(1, 3 * nr) * cluster
    out = bytearray((header + table) * cluster)
    struct.pack_into("<4sIIIQQQQQ", out, 0, b"QED\0", cluster, table, header,
                     rnd.choice((0, 0, 2)), 0, 0, header * cluster, size)
    l1 = header * cluster
    tables, places = {}, []
    for _ in range(rnd.randrange(30)):
        c = rnd.randrange(size // cluster)
        if c // nr not in tables:
            tables[c // nr] = len(out)
            struct.pack_into("<Q", out, l1 + c // nr * 8, len(out))
            out += bytes(table * cluster)
        at = tables[c // nr] + c % nr * 8
        places.append(at)
        if rnd.random() < 0.2:
            struct.pack_into("<Q", out, at, 1)
        else:
            struct.pack_into("<Q", out, at, len(out))
            out += b"d" * cluster
    if rnd.random() < 0.3:
        out += bytes(rnd.randrange(4) * cluster)
    return out, cluster, places + [l1 + t * 8 for t in tables] + [l1 + 16]


def damage(rnd, out, cluster, places):
    for _ in range(rnd.choice((0, 0, 1, 1, 2, 3, 6))):
        value = rnd.randrange(len(out) // cluster + 3) * cluster
        if rnd.random() < 0.2:
            value += rnd.randrange(cluster)
        elif rnd.random() < 0.1:
            value = rnd.randrange(1 << 64)
        struct.pack_into("<Q", out, rnd.choice(places), value)
    if rnd.random() < 0.15:
        del out[max(places) // cluster * cluster + cluster * 17:]
    if rnd.random() < 0.15:
        out += b"x" * rnd.randrange(cluster)


def verdict(cmd, what):
    p = run(*cmd, ok=False)
    check(p.returncode in (0, 1, 2, 3), "%s: exit %d" % (what, p.returncode))
    if not p.stdout:
        return p.returncode, None
    j = json.loads(p.stdout)
    return p.returncode, [j.get(k, 0) for k in (
        "check-errors", "corruptions", "leaks", "total-clusters",
        "allocated-clusters", "fragmented-clusters")]


def write(file, data):
    with open(file, "wb") as f:
        f.write(data)


def one(number):
    rnd = random.Random("qed-check-%d" % number)
    out, cluster, places = made(rnd)
    damage(rnd, out, cluster, places)
    what = "image %d" % number
    for f in (IMG, COPY, COPY2):
        write(f, out)
    ours = verdict((TOOL, "check", "--output=json", "--messages=0", IMG), what)
    theirs = verdict(("qemu-img", "check", "-f", "qed", "--output=json", IMG),
                     what)
    check(ours == theirs, "%s: %s instead of %s" % (what, ours, theirs))
    with open(IMG, "rb") as f:
        check(f.read() == out, what + ": a check has changed it")
    # QEMU clears entries, too, and stops there.
    verdict((TOOL, "check", "-r", "all", "--output=json", "--messages=0",
             COPY), what)
    run("qemu-img", "check", "-f", "qed", "-r", "all", COPY2, ok=False)
    a, b = (verdict(("qemu-img", "check", "-f", "qed", "--output=json", f),
                    what) for f in (COPY, COPY2))
    if a[1][1] != b[1][1] and b[1][1] > 0:
        # Something has two uses.  Then QEMU clears entries all the same, though
        # they may be a guest's data; ours leaves everything as it is.
        with open(COPY, "rb") as f:
            check(f.read() == out, what + ": a repair that must not be was")
        return
    check(a[1][1] == b[1][1], "%s: repaired it has %d errors instead of %d" % (
        what, a[1][1], b[1][1]))
    check(a[1][2] <= b[1][2], what + ": a repair leaves more leaks")


for i in [int(ONLY)] if ONLY else range(qtest.volume(25)):
    one(i)
    qtest.images += 1
qtest.finish("qed-check")
