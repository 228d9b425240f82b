# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps that begin and end at the point of a snapshot, while a guest writes.  QEMU
is the witness of what they have: exactly what was touched between the points; and
after a kill the snapshot and both bitmaps are there together, or not, and have each
sector that has changed."""

import random
import re
import threading
import time

import nbd
import qtest
from bitmaps import qemu_dirty
from kept import SECTOR, dirty_sectors, disk, flags, sound
from points import KINDS, SIZE, Guest, make, must_fail
from qtest import path, run, check, equal, Server
from take import names

PARAMS = ("point-in-time=true", "point-in-time-linger=0")
GRANULARITY = 4096


def union(ranges):
    out = []
    for lo, hi in sorted(ranges):
        if out and lo <= out[-1][1]:
            out[-1] = (out[-1][0], max(hi, out[-1][1]))
        else:
            out.append((lo, hi))
    return out


def dirty_runs(file, bitmap):
    return union((lo, hi) for lo, hi, kind in qemu_dirty(file, bitmap)
                 if kind == "dirty")


def granules(ranges):
    """What is dirty if these were touched."""
    g = GRANULARITY
    return union((lo // g * g, min(-(-hi // g) * g, SIZE)) for lo, hi in ranges)


def take(srv, asked, want, name):
    h = srv.connect("take/" + asked)
    equal(qtest.read_all(h), want, name)
    h.shutdown()


def each_kind(kind, options, unit):
    qtest.images += 1
    rnd = random.Random("rotate" + kind)
    file, params = make(kind, options, rnd)
    run("qemu-img", "bitmap", "--add", "-g", str(GRANULARITY), file, "a&b?")
    srv = Server(file, *PARAMS, *params, readonly=False)
    guest = Guest(srv, rnd, unit)
    touched, contents = [], []
    for i in range(3):
        guest.steps(20)
        touched.append(guest.touched)
        guest.touched = []
        contents.append(bytes(guest.disk))
        asked = "day%d?bitmap=n%d&disable=%s&granularity=%d" % (
            i, i, "n%d" % (i - 1) if i > 0 else "a%26b%3F", GRANULARITY)
        take(srv, asked, contents[i], "%s: %d" % (kind, i))
        listed = run("nbdinfo", "--list", srv.uri()).stdout.decode()
        listed = set(re.findall(r'^export="(.*)":', listed, re.M))
        check("bitmap/n%d" % i in listed and "snapshot/day%d" % i in listed and
              not any("/bitmap/" in x or x.startswith("take/") for x in listed),
              "%s: %s" % (kind, listed))
    # What an increment is made of.
    for i, bitmap in enumerate(("a&b?", "n0", "n1")):
        h = srv.connect("snapshot/day%d/bitmap/%s" % (i, bitmap))
        equal(qtest.read_all(h), contents[i], "%s: snapshot %d" % (kind, i))
        runs = union((lo, hi) for lo, hi, flag in qtest.extents(h, what=kind)
                     if flag != "hole-not-zero")
        check(runs == granules(touched[i]), "%s: extents of %s" % (kind, bitmap))
        h.shutdown()
    guest.steps(20)
    guest.h.shutdown()
    srv.stop(quiet=False)
    sound(file, kind)
    equal(flags(file), {"a&b?": [], "n0": [], "n1": [], "n2": ["auto"]},
          "%s: flags" % kind)
    check(names(file)[-3:] == ["day0", "day1", "day2"], "%s: names" % kind)
    for bitmap, ranges in zip(("a&b?", "n0", "n1", "n2"),
                              touched + [guest.touched]):
        check(dirty_runs(file, bitmap) == granules(ranges),
              "%s: the bits of %s" % (kind, bitmap))
    run("qemu-img", "bitmap", "--remove", file, "n0")
    sound(file, kind + ", one removed by QEMU")


def covers(file, bitmap, a, b, name):
    dirty = dirty_sectors(file, bitmap, SIZE)
    for i in range(SIZE // SECTOR):
        at = i * SECTOR
        if not dirty[i] and a[at:at + SECTOR] != b[at:at + SECTOR]:
            check(False, "%s: sector %d has changed, and is clean in %s" % (
                name, i, bitmap))
            return
    check(True, name)


def snapshot(file):
    run("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=x", "-O",
        "raw", file, path("x.raw"))
    with open(path("x.raw"), "rb") as f:
        return f.read()


def write_until_killed(srv, seed):
    try:
        Guest(srv, random.Random(seed), 4096).steps(1 << 30)
    except nbd.Error:
        pass


def killed():
    rnd = random.Random(3)
    took, taken = 0.1, 0
    kills = qtest.volume(10)
    for i in range(kills):
        name = "killed, %d" % i
        file, _ = make("killed", "cluster_size=4k", rnd)
        run("qemu-img", "bitmap", "--add", "-g", "512", file, "a")
        before = disk(file)
        srv = Server(file, *PARAMS, readonly=False)
        writer = threading.Thread(target=write_until_killed, args=(srv, i))
        writer.start()
        time.sleep(rnd.random() * 0.1)
        begun = time.monotonic()
        if i > 0:
            threading.Timer(rnd.random() * 0.7 * took, srv.p.kill).start()
        try:
            srv.connect("take/x?bitmap=n&disable=a").shutdown()
            took = time.monotonic() - begun
            made = True
        except nbd.Error:
            made = False
        srv.p.kill()
        srv.p.wait()
        writer.join()
        is_there = "x" in names(file)
        taken += is_there
        check(is_there or not made, "%s: it is not there" % name)
        equal(flags(file), {"a": [], "n": ["auto"]} if is_there else
              {"a": ["auto"]}, "%s: flags" % name)
        now = disk(file)
        point = snapshot(file) if is_there else now
        covers(file, "a", before, point, name)
        if is_there:
            covers(file, "n", point, now, name)
        with Server(file, readonly=False, opts=()) as srv:
            h = srv.connect()
            equal(qtest.read_all(h), now, "%s: served again" % name)
            h.pwrite(b"x" * 512, 0)
            h.shutdown()
            srv.stop(quiet=False)  # it tells of a repair
        sound(file, name)
        equal(len(flags(file)), 2 if is_there else 1, "%s: flags" % name)
        covers(file, "n" if is_there else "a", point if is_there else before,
               b"x" * 512 + now[512:], name)
    print("killed %d times; %d times it was made" % (kills, taken), flush=True)


def refused():
    file, _ = make("v2", "compat=0.10", random.Random(1))
    with Server(file, *PARAMS, readonly=False) as srv:
        must_fail(srv, "take/x?bitmap=n", "version 2 images can't have bitmaps")
        srv.stop(quiet=False)
    file, _ = make("refused", "", random.Random(1))
    run("qemu-img", "bitmap", "--add", file, "a")
    with Server(file, *PARAMS, readonly=False) as srv:
        must_fail(srv, "take/x?bitmap=a", "there is a bitmap \"a\" already")
        must_fail(srv, "take/x?bitmap=n&disable=m", "there is no bitmap \"m\"")
        must_fail(srv, "take/x?disable=a", "is none")
        srv.stop(quiet=False)
    check(flags(file) == {"a": ["auto"]} and names(file) == [], "refused")
    with Server(file, *PARAMS, "bitmaps=invalidate", readonly=False) as srv:
        must_fail(srv, "take/x?bitmap=n", "so that none can begin")
        srv.stop(quiet=False)


for k in KINDS:
    if k[0] not in ("v2", "luks"):
        each_kind(*k)
killed()
refused()
qtest.finish("bitmaps that begin and end with snapshots")
