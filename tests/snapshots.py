# SPDX-License-Identifier: BSD-3-Clause
"""Internal snapshots as exports: each at its own size, equal to the model and
to what qemu-img convert -l reads, beside the live disk."""

import json
import os
import re
import struct
import sys

import nbd
import qtest
from qtest import path, run, Server, check, equal, fail, same_runs
from filled import fill
from qcow2make import Qcow2, Raw, patch, be64, be32
from streams import noise

os.environ["TZ"] = "UTC"


def listing(srv):
    p = run("nbdinfo", "--list", "--json", srv.uri(), ok=False)
    if not check(p.returncode == 0, "nbdinfo --list: %s" % p.stderr):
        return {}
    out = {}
    for e in json.loads(p.stdout)["exports"]:
        out[e["export-name"]] = (e.get("description"), e["export-size"])
    return out


def compare(srv, img, export, snap, name):
    want = bytes(img.render(snap))
    h = srv.connect(export)
    check(h.get_size() == len(want), "%s: size %d instead of %d" % (
        name, h.get_size(), len(want)))
    check(h.is_read_only(), "%s: writable" % name)
    check(h.can_multi_conn(), "%s: no multi-conn" % name)
    equal(qtest.read_all(h), want, name)
    import random
    qtest.random_reads(h, want, 20, random.Random(name), name, img.cs)
    same_runs(qtest.extents(h, what=name), img.runs(snap), name + ": map")
    h.shutdown()


def qemu_compare(img, snap, name):
    """qemu-img has each snapshot at the size of the live disk."""
    want = bytes(img.render(snap))
    out = path("snap.out")
    run("qemu-img", "convert", "-f", "qcow2", "-l",
        "snapshot.id=%s" % snap.id.decode(), "-O", "raw", img.path, out)
    with open(out, "rb") as f:
        got = f.read()
    n = min(len(got), len(want))
    equal(got[:n], want[:n], name + ": qemu-img convert -l")
    os.unlink(out)


def several(k, **kw):
    qtest.images += 1
    cb = kw.get("cluster_bits", 16)
    img = Qcow2(path("s%d.qcow2" % k), 40 << cb, seed="a%d" % k, **kw)
    fill(img, seed=k)
    snaps = [img.snapshot("1", "first", date=1000000000)]
    img.seed = "b%d" % k
    fill(img, seed=k + 1000, count=25, first=3)
    img.unmap(7)
    snaps.append(img.snapshot("2", "second one", date=1500000000))
    img.seed = "c%d" % k
    fill(img, seed=k + 2000, count=10, first=9)
    snaps.append(img.snapshot("3", "third/\u00fcnic\u00f6de", date=1700000000))
    if k % 2:
        img.seed = "d%d" % k
        fill(img, seed=k + 3000, count=30)
    img.write()
    name = "snapshots %d" % k
    p = run("qemu-img", "check", "-f", "qcow2", img.path, ok=False)
    check(p.returncode == 0, "%s: qemu-img check: %s" % (
        name, (p.stdout + p.stderr).decode()))
    for s in snaps:
        qemu_compare(img, s, "%s/%s" % (name, s.name.decode()))
    if qtest.ONLY_QEMU:
        return
    args = ("follow=beneath",) if img.backing else ()
    with Server("file=" + img.path, *args) as srv:
        ls = listing(srv)
        want = {""} | {"snapshot/" + s.name.decode() for s in snaps}
        check(set(ls) == want, "%s: exports %s" % (name, sorted(ls)))
        for s, day in zip(snaps, ("2001-09-09", "2017-07-14", "2023-11-14")):
            d, size = ls.get("snapshot/" + s.name.decode(), ("", 0))
            check(d and day in d, "%s: no date in '%s'" % (name, d))
            check(size == img.size, "%s: listed size %s" % (name, size))
        # side by side
        live = srv.connect("")
        for s in snaps:
            compare(srv, img, "snapshot/" + s.name.decode(), s,
                    "%s/%s" % (name, s.name.decode()))
        equal(qtest.read_all(live), bytes(img.render()), name + ": live")
        same_runs(qtest.extents(live), img.runs(), name + ": live map")
        live.shutdown()


def matrix():
    base = Raw(path("sbase.raw"), noise("sbase", 900000))
    k = 0
    for kw in ({}, dict(version=2), dict(extl2=True), dict(comp="zstd"),
               dict(cluster_bits=9), dict(cluster_bits=12, refcount_order=3),
               dict(cluster_bits=12, refcount_order=6, layout="shuffled"),
               dict(backing=base, backing_format="raw"),
               dict(extl2=True, backing=base, backing_format="raw",
                    cluster_bits=14),
               dict(cluster_bits=20)):
        k += 1
        several(k, **kw)


def sizes():
    """A snapshot has its own disk size, larger or smaller than the disk."""
    qtest.images += 1
    img = Qcow2(path("sizes.qcow2"), 100 << 12, cluster_bits=12, seed="sz")
    fill(img, seed="sz")
    a = img.snapshot("1", "small")
    img.resize((4000 << 12) + 512)
    for ci in (99, 100, 2000, 4000):
        img.data(ci)
    b = img.snapshot("2", "large")
    img.resize((50 << 12) + 1024)
    c = img.snapshot("3", "odd", disk_size=(50 << 12) + 700)
    d = img.snapshot("4", "none", disk_size=0)
    for t in (100, 4000):
        img.unmap(t)
    img.write()
    if qtest.ONLY_QEMU:
        return
    with Server("file=" + img.path) as srv:
        ls = listing(srv)
        for s in (a, b, c, d):
            name = s.name.decode()
            compare(srv, img, "snapshot/" + name, s, "sizes: " + name)
            desc, size = ls.get("snapshot/" + name, ("", None))
            check(size == len(img.render(s)), "sizes: %s listed with %s" % (
                name, size))
        compare(srv, img, "", None, "sizes: live")


def shared_disk(name, snaps, version=3):
    qtest.images += 1
    img = Qcow2(path(name + ".qcow2"), 20 << 12, cluster_bits=12,
                version=version, seed=name)
    fill(img, seed=name)
    out = []
    for k, kw in enumerate(snaps):
        img.seed = "%s%d" % (name, k)
        img.data(k)
        out.append(img.snapshot(**kw))
    img.data(15)
    img.write()
    return img, out


def names():
    """By ID where a name repeats, is empty, or is no UTF-8."""
    img, s = shared_disk("names", [
        dict(id="1", name="twice"), dict(id="2", name="once"),
        dict(id="3", name="twice"), dict(id="4", name=""),
        dict(id="5", name=b"\xff\xfe latin"), dict(id="77", name=" spaces "),
        dict(id="8", name="a" * 255), dict(id="9", name="sn/../ap"),
        dict(id="10", name="?&%20#"), dict(id="11", name="caf\u00e9 \U0001f4be")])
    want = {"": None, "snapshot/1": s[0], "snapshot/once": s[1],
            "snapshot/3": s[2], "snapshot/4": s[3], "snapshot/5": s[4],
            "snapshot/ spaces ": s[5], "snapshot/" + "a" * 255: s[6],
            "snapshot/sn/../ap": s[7], "snapshot/?&%20#": s[8],
            "snapshot/caf\u00e9 \U0001f4be": s[9]}
    if qtest.ONLY_QEMU:
        return
    with Server("file=" + img.path) as srv:
        ls = listing(srv)
        check(set(ls) == set(want), "names: %s" % sorted(
            set(ls) ^ set(want)))
        for export, snap in want.items():
            try:
                compare(srv, img, export, snap, "names: '%s'" % export)
            except nbd.Error as e:
                fail("names: '%s': %s" % (export, e))
    srv = Server("file=" + img.path)
    for bad in ("snapshot/twice", "snapshot/", "snapshot/nope", "nope",
                "snapshot", "/", "snapshot/once/", "Snapshot/once",
                "snapshot/1\x01", "x" * 4000):
        try:
            srv.connect(bad)
        except nbd.Error:
            check(True, "")
        else:
            fail("names: export '%s' was opened" % bad)
    h = srv.connect("")
    equal(qtest.read_all(h), bytes(img.render()), "names: live after that")
    h.shutdown()
    srv.stop(quiet=False)


def long_names():
    """Longer than NBD can name: the others are listed all the same."""
    img, s = shared_disk("long", [
        dict(id="1", name="x" * 4000), dict(id="2", name="y" * 5000),
        dict(id="3", name="z" * 65535), dict(id="4", name="short"),
        dict(id="i" * 300, name="zero\0inside"),
        dict(id="6", name="line\nbreak\x1b[31m")])
    if qtest.ONLY_QEMU:
        return
    srv = Server("file=" + img.path)
    ls = listing(srv)
    check("" in ls and "snapshot/short" in ls, "long: %s" % [
        n[:30] for n in ls])
    compare(srv, img, "snapshot/short", s[3], "long: short")
    compare(srv, img, "", None, "long: live")
    srv.stop(quiet=False)


def extra_data():
    """0, 8, 16, 24 and more bytes of extra data; a v2 image of old."""
    for version in (2, 3):
        img, s = shared_disk("extra%d" % version, [
            dict(id="1", name="0", extra_len=0),
            dict(id="2", name="8", extra_len=8),
            dict(id="3", name="16", extra_len=16),
            dict(id="4", name="24", extra_len=24),
            dict(id="5", name="25", extra_tail=b"u"),
            dict(id="6", name="1000", extra_tail=noise("x", 976)),
            dict(id="7", name="t0", extra_len=0)], version)
        for k, snap in enumerate(s):
            qemu_compare(img, snap, "extra")
        if qtest.ONLY_QEMU:
            continue
        with Server("file=" + img.path) as srv:
            for snap in s:
                name = snap.name.decode()
                compare(srv, img, "snapshot/" + name, snap,
                        "extra v%d: %s" % (version, name))


def vmstate():
    """VM state lies behind the disk in the L1 and is no part of it."""
    qtest.images += 1
    img = Qcow2(path("vm.qcow2"), 20 << 12, cluster_bits=12, seed="vm")
    fill(img, seed="vm")
    first = img.l1_needed() * img.l2n
    for k in range(3):
        img.data(first + k)
    s = img.snapshot("1", "running", vmstate=3 << 12, clock=3600 * 10**9)
    for k in range(3):
        img.unmap(first + k)
    img.data(2)
    img.write()
    p = run("qemu-img", "check", "-f", "qcow2", img.path, ok=False)
    check(p.returncode == 0, "vmstate: check")
    qemu_compare(img, s, "vmstate")
    if qtest.ONLY_QEMU:
        return
    with Server("file=" + img.path) as srv:
        compare(srv, img, "snapshot/running", s, "vmstate")
        compare(srv, img, "", None, "vmstate: live")


def damaged():
    """A snapshot whose L1 is bad: only that export can't be opened."""
    for what, off, data in (
            ("misaligned", 0, be64((1 << 20) + 8)),
            ("outside", 0, be64(1 << 40)),
            ("at 2^63", 0, be64(1 << 63)),
            ("at 2^64-4096", 0, be64(2**64 - 4096)),
            ("too long", 8, be32((32 << 20) // 8 + 1)),
            ("2^32-1 entries", 8, be32(0xffffffff))):
        img, s = shared_disk("damaged", [dict(id="1", name="good"),
                                         dict(id="2", name="bad"),
                                         dict(id="3", name="fine")])
        patch(img.path, s[1].entry_offset + off, data)
        if qtest.ONLY_QEMU:
            continue
        srv = Server("file=" + img.path)
        run("nbdinfo", "--list", srv.uri(), ok=False)
        try:
            srv.connect("snapshot/bad")
        except nbd.Error:
            check(True, "")
        else:
            fail("damaged: %s: opened" % what)
        e = [x for x in srv.errors() if "damaged.qcow2" in x]
        check(e, "damaged: %s: nothing logged that names the file: %s" % (
            what, srv.log()))
        for name, snap in (("snapshot/good", s[0]), ("snapshot/fine", s[2]),
                           ("", None)):
            compare(srv, img, name, snap, "damaged: %s: %s" % (what, name))
        srv.stop(quiet=False)


def by_qemu():
    """Snapshots that qemu-img made."""
    qtest.images += 1
    import random
    for k, opts in enumerate(("compat=1.1", "compat=0.10",
                              "compat=1.1,extended_l2=on",
                              "compat=1.1,cluster_size=4k,refcount_bits=64")):
        rnd = random.Random(k)
        file = path("qs%d.qcow2" % k)
        size = 3 << 20
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, file,
            str(size))
        pat = path("qs.pat")
        with open(pat, "wb") as f:
            f.write(noise("qs%d" % k, 99991))
        disk, past = bytearray(size), {}
        data = open(pat, "rb").read()
        for n in range(4):
            cmds = []
            for _ in range(6):
                at = rnd.randrange(size // 512) * 512
                length = min(rnd.choice((512, 65536, 200192)), size - at)
                if rnd.random() < 0.25:
                    cmds += ["-c", "write -z %d %d" % (at, length)]
                    disk[at:at + length] = bytes(length)
                else:
                    shift = bytes([n + 1]) * length
                    if rnd.random() < 0.5:
                        cmds += ["-c", "write -P %d %d %d" % (n + 1, at,
                                                              length)]
                        disk[at:at + length] = shift
                    else:
                        cmds += ["-c", "write -s %s %d %d" % (pat, at, length)]
                        disk[at:at + length] = (
                            data * (length // len(data) + 1))[:length]
            run("qemu-io", "-f", "qcow2", *cmds, file)
            if n < 3:
                run("qemu-img", "snapshot", "-c", "q%d" % n, file)
                past["q%d" % n] = bytes(disk)
        if qtest.ONLY_QEMU:
            continue
        with Server("file=" + file) as srv:
            ls = listing(srv)
            check(set(ls) == {""} | {"snapshot/" + n for n in past},
                  "by qemu: %s" % sorted(ls))
            past[""] = bytes(disk)
            for name, want in past.items():
                out = path("qs.out")
                qtest.nbdcopy(srv, out, "snapshot/" + name if name else "")
                qtest.file_equal(out, want, "by qemu %d: '%s'" % (k, name))
                if name:
                    run("qemu-img", "convert", "-f", "qcow2", "-l", name,
                        "-O", "raw", file, out)
                    qtest.file_equal(out, want, "qemu's own: " + name)


matrix()
sizes()
names()
long_names()
extra_data()
vmstate()
damaged()
by_qemu()
qtest.finish("snapshots")
