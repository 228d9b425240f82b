# SPDX-License-Identifier: BSD-3-Clause
"""Every refusal at start is provoked; beside it the nearest thing that is
valid, which must be served.  Each case: nbdkit exits with a status that isn't
0 and no signal, says something that names the file and matches the case,
soon, in little memory, and leaves the file's bytes alone.

QEMU is asked about each too: what QEMU opens should be refused here only
where the case says that this is on purpose (strict=True)."""

import hashlib
import os
import resource
import struct
import subprocess
import sys

import qtest
from qtest import path, run, Server, StartError, check, fail
from qcow2make import (Qcow2, patch, be32, be64, EXT_FEATURES, EXT_DATAFILE,
                       EXT_CRYPTO, EXT_BACKING_FORMAT)
from streams import noise

CS = 65536
CASES = []


def make(name, cb=16, n=6, **kw):
    img = Qcow2(path(name), n << cb, cluster_bits=cb, seed=name, **kw)
    img.data(0)
    img.data(n - 1)
    return img.write()


def case(name, regex, strict=False, args=()):
    def deco(f):
        CASES.append((name, regex, strict, args, f))
        return f
    return deco


def simple(name, regex, *patches, strict=False, trunc=None, args=(), **kw):
    """A sound image with some bytes changed."""
    def f(file):
        img = make(os.path.basename(file), **kw)
        for off, data in patches:
            patch(file, off, data)
        if trunc is not None:
            os.truncate(file, trunc)
        return img
    CASES.append((name, regex, strict, args, f))


def content(name, regex, data, strict=False):
    def f(file):
        with open(file, "wb") as o:
            o.write(data)
    CASES.append((name, regex, strict, (), f))


NOTQ = r"not a? ?qcow2|magic"
SHORT = r"truncated|too short|short|not a? ?qcow2"
content("empty file", SHORT, b"")
content("one byte", SHORT, b"Q")
content("magic only", SHORT, b"QFI\xfb")
content("71 bytes", SHORT, b"QFI\xfb\0\0\0\2" + bytes(63))
content("zeros", NOTQ, bytes(CS))
content("raw data", NOTQ, noise("raw", CS))
content("text", NOTQ, b"#!/bin/sh\necho this is not an image\n" * 99)
content("qed", r"cluster size 0 ", b"QED\0" + bytes(CS))
content("magic in the other byte order", NOTQ, b"\xfbIFQ" + bytes(CS))
content("qcow version 1", "version 1",
        struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, 1 << 20, 12, 9,
                    0, 0, 48) + bytes(CS))
for v in (0, 4, 0x100, 0xffffffff):
    simple("version %d" % v, "version %d" % v, (4, be32(v)))
simple("v3 header cut at 80", SHORT, trunc=80, strict=True)
simple("v3 header cut at 103", SHORT, trunc=103, strict=True)

for cb in (0, 1, 8, 22, 31, 32, 40, 63, 64, 0xffffffff):
    simple("cluster_bits %d" % cb, r"cluster.*%d" % cb, (20, be32(cb)))
simple("extended L2 with 8 KiB clusters", r"cluster|extended",
       (72, be64(16)), cb=13, n=20)
for o in (7, 8, 63, 255, 0xffffffff):
    simple("refcount_order %d" % o, r"refcount.*%d" % o, (96, be32(o)))
for hl in (0, 8, 72, 96, 103):
    simple("header_length %d" % hl, r"header.*%d" % hl, (100, be32(hl)))
for hl in (CS + 8, 0x7fffffff, 0xffffffff):
    simple("header_length %d" % hl, r"header.*%d" % hl, (100, be32(hl)))
simple("header_length over a 512-byte cluster", r"header.*520",
       (100, be32(520)), cb=9)

# --- features


def feature_table(*rows):
    return b"".join(struct.pack("BB46s", k, b, n) for k, b, n in rows)


simple("unknown bit with a name", r"shiny new thing",
       features=False, incompat=1 << 5,
       exts=[(EXT_FEATURES, feature_table((1, 5, b"wrong kind"),
                                          (0, 6, b"wrong bit"),
                                          (0, 5, b"shiny new thing")))])
simple("unknown bit, name of full length", r"n{46}([^n]|$)",
       features=False, incompat=1 << 40,
       exts=[(EXT_FEATURES, feature_table((0, 40, b"n" * 46)))])
simple("two unknown bits", r"one fish.*two fish", features=False,
       incompat=1 << 7 | 1 << 63,
       exts=[(EXT_FEATURES, feature_table((0, 63, b"two fish"),
                                          (0, 7, b"one fish")))])
simple("unknown bit without a name", r"\b33\b", incompat=1 << 33)
simple("unknown bit without a table", r"\b5\b", incompat=1 << 5,
       features=False)
simple("unknown bit, table of odd length", r"\b9\b", incompat=1 << 9,
       features=False, exts=[(EXT_FEATURES, b"\0\5abc")])
simple("unknown bit, name with control characters", r"incompatible",
       incompat=1 << 9, features=False,
       exts=[(EXT_FEATURES, feature_table((0, 9, b"a\x1b[31mb\n")))])
simple("external data file", r"data.file", incompat=1 << 2, strict=True)
simple("external data file with its name", r"data.file", incompat=1 << 2,
       exts=[(EXT_DATAFILE, b"refuse-data.raw")], strict=True)
simple("AES", r"AES", crypt=1, strict=True)
simple("LUKS", r"LUKS", crypt=2,
       exts=[(EXT_CRYPTO, struct.pack(">QQ", 2 * CS, 1000))])
simple("LUKS without its header", r"LUKS", crypt=2)
simple("unknown encryption", r"crypt", crypt=77)
simple("compression type without the bit", r"compression",
       comptype_field=1)
simple("the bit without the type", r"compression", incompat=8)
simple("the bit without room for the type", r"compression", incompat=8,
       header_length=104)
for t in (2, 255):
    simple("compression type %d" % t, r"compression.*%d" % t, incompat=8,
           comptype_field=t)
simple("compression type 7 without the bit", r"compression",
       comptype_field=7)

# --- size and L1
simple("size 2^64-1", r"size|L1|big", (24, be64(2**64 - 1)))
simple("size 2^63", r"size|L1|big", (24, be64(2**63)))
simple("size 2^63-512", r"size|L1|big", (24, be64(2**63 - 512)))
simple("size 2^62", r"size|L1|big", (24, be64(2**62)))
simple("size 2^56", r"size|L1|big", (24, be64(2**56)))
simple("size one L1 entry too many", r"L1", (24, be64(CS * 8192 + 1)),
       strict=False)
simple("l1_size 0", r"L1", (36, be32(0)))
simple("l1_size over 32 MiB", r"L1.*(4194305|33554432|32)",
       (36, be32((32 << 20) // 8 + 1)))
simple("l1_size 2^32-1", r"L1", (36, be32(0xffffffff)))
simple("l1_size 2^29", r"L1", (36, be32(1 << 29)))
simple("L1 misaligned", r"L1", (40, be64(CS + 512)))
simple("L1 at 1", r"L1", (40, be64(1)))
simple("L1 at 0", r"L1", (40, be64(0)), strict=True)
simple("L1 farther than any file", r"L1.*outside", (40, be64(1 << 55)),
       strict=True)
simple("an L1 of no entries, misaligned", r"L1 table offset 0x10200",
       (24, be64(0)), (36, be32(0)), (40, be64(CS + 512)))
simple("L1 at 2^63", r"L1", (40, be64(1 << 63)))
simple("L1 at 2^64-65536", r"L1", (40, be64(2**64 - CS)))
simple("L1 at 2^63-65536", r"L1", (40, be64(2**63 - CS)))


# --- refcount table
simple("refcount table misaligned", r"refcount", (48, be64(CS + 8)))
simple("refcount table at 2^63", r"refcount", (48, be64(1 << 63)))
simple("refcount table at 2^64-65536", r"refcount", (48, be64(2**64 - CS)))
simple("refcount table outside the file", r"refcount",
       (48, be64(CS << 20)), strict=True)
simple("refcount table of 0 clusters", r"refcount", (56, be32(0)))
simple("refcount table over 8 MiB", r"refcount.*(129|8388608|8)",
       (56, be32(129)))
simple("refcount table of 2^32-1 clusters", r"refcount",
       (56, be32(0xffffffff)))
simple("refcount table of 2^31 clusters", r"refcount",
       (56, be32(0x80000000)))
simple("refcount table reaches beyond the end", r"refcount",
       (56, be32(100)), strict=True)
simple("cut off in the first cluster", r"refcount.*the file of 1000 bytes",
       trunc=1000, strict=True)

# --- extensions
for length in (0xffffffff, 0x7fffffff, CS, CS - 112, CS - 112 - 7):
    simple("extension length %#x" % length, r"extension",
           (112, struct.pack(">II", 0x12345678, length)))
simple("the second extension's length", r"extension",
       (112, struct.pack(">II8xII", 0x12345678, 8, 0x777, CS - 112)))
simple("v2, extension length", r"extension",
       (72, struct.pack(">II", 0x12345678, 0x10000)), version=2)
simple("extension across the backing name", r"extension",
       (112, struct.pack(">II", 0x12345678, 200)), backing_name="x.raw",
       features=False, name_offset=200)
simple("the backing name leaves 4 bytes for an extension",
       r"extension at offset 112.*cut off.* 116", backing_name="x.raw",
       features=False, name_offset=116)
simple("the end of extensions is said to have data", r"extension 0x00000000",
       (112, struct.pack(">II", 0, CS)), features=False)
simple("backing format of 64 KiB less some", r"backing.format|extension",
       (112, struct.pack(">II", EXT_BACKING_FORMAT, 60000)), features=False)

# --- backing name
FOLLOW = ("follow=any", "backing-format=raw")
simple("backing name outside the first cluster", r"backing",
       (8, be64(CS + 1)), (16, be32(10)), args=FOLLOW)
simple("backing name far outside", r"backing", (8, be64(1 << 63)),
       (16, be32(10)), args=FOLLOW)
simple("backing name at 2^64-1", r"backing", (8, be64(2**64 - 1)),
       (16, be32(10)), args=FOLLOW)
simple("backing name across the cluster's end", r"backing",
       (8, be64(CS - 4)), (16, be32(10)), args=FOLLOW)
simple("backing name of 1024 bytes", r"backing.*1024", (8, be64(1024)),
       (16, be32(1024)), args=FOLLOW)
simple("backing name of 2^32-1 bytes", r"backing", (8, be64(1024)),
       (16, be32(0xffffffff)), args=FOLLOW)
simple("backing name with a zero byte", r"backing", (8, be64(1024)),
       (16, be32(9)), (1024, b"good\0evil"), args=FOLLOW, strict=True)

# --- snapshots


def snaps(name, regex, *patches, strict=False, trunc=None, extra=b"", n=2,
          entry=()):
    def f(file):
        img = Qcow2(file, 4 * CS, seed=name)
        img.data(0)
        for k in range(n):
            img.snapshot(str(k + 1), "s%d" % k, extra_tail=extra)
        img.write()
        for off, d in patches:
            patch(file, off, d)
        for k, off, d in entry:
            patch(file, img.snapshots[k].entry_offset + off, d)
        if trunc is not None:
            os.truncate(file, trunc(img))
        return img
    CASES.append((name, regex, strict, (), f))


snaps("65537 snapshots", r"65537 snapshots at offset 60", (60, be32(65537)))
snaps("2^32-1 snapshots", r"snapshot", (60, be32(0xffffffff)))
snaps("2^31 snapshots", r"snapshot", (60, be32(1 << 31)))
snaps("snapshot table misaligned", r"snapshot", (64, be64(CS + 8)))
snaps("snapshot table outside the file", r"snapshot", (64, be64(CS << 24)),
      strict=True)
snaps("no snapshots, their table misaligned",
      r"snapshot table offset 0x10008 \(at offset 64\)",
      (60, be32(0)), (64, be64(CS + 8)))
snaps("no snapshots, their table at 2^63", r"snapshot table offset",
      (60, be32(0)), (64, be64(1 << 63)))
snaps("snapshot table at 2^63", r"snapshot", (64, be64(1 << 63)))
snaps("snapshot table at 2^64-65536", r"snapshot", (64, be64(2**64 - CS)))
snaps("snapshot with 2^32-1 of extra data", r"snapshot",
      entry=[(0, 36, be32(0xffffffff))])
snaps("snapshot with 64 MiB of extra data", r"snapshot",
      entry=[(1, 36, be32(64 << 20))])


@case("snapshot table cut by the end of the file", r"snapshot", strict=True)
def _(file):
    img = Qcow2(file, 4 * CS)
    img.snapshot("1", "s")
    img.write()
    os.truncate(file, img.next * CS + 8)
    patch(file, 60, be32(900))
    patch(file, 64, be64(img.next * CS - CS))
    # entries that are all as long as can be
    e = struct.pack(">QIHHIIQII", img.l1_offset, 1, 60000, 60000, 0, 0, 0, 0,
                    0)
    patch(file, img.next * CS - CS, e)
    return img


# ---------------------------------------------------------------- valid ones

VALID = []


def valid(name, args=()):
    def deco(f):
        VALID.append((name, args, f))
        return f
    return deco


@valid("L1 of 32 MiB")
def _(file):
    img = Qcow2(file, 1 << 20, l1_extra=(32 << 20) // 8 - 1)
    img.data(0)
    return img.write()


@valid("refcount table of 8 MiB")
def _(file):
    img = Qcow2(file, 1 << 20)
    img.data(0)
    img.write()
    # a second, longer table, with the same blocks in front
    end = img.next * CS
    with open(file, "r+b") as f:
        f.truncate(end + (8 << 20))
    patch(file, end, b"".join(be64(b) for b in img.refblocks))
    patch(file, 48, be64(end))
    patch(file, 56, be32(128))
    img.unsound = True
    return img


@valid("65536 snapshots")
def _(file):
    img = Qcow2(file, 1 << 20, version=2)
    img.data(0)
    img.write()
    table = b"".join(
        (lambda e: e + bytes(-len(e) % 8))(
            struct.pack(">QIHHIIQII", img.l1_offset, 1, len(b"%d" % k), 1, 0,
                        0, 0, 0, 0) + b"%d" % k + b"n")
        for k in range(65536))
    end = img.next * CS
    with open(file, "r+b") as f:
        f.seek(end)
        f.write(table)
        f.write(bytes(-len(table) % CS))
    patch(file, 60, be32(65536))
    patch(file, 64, be64(end))
    img.unsound = True
    return img


@valid("snapshot with 1024 of extra data")
def _(file):
    img = Qcow2(file, 1 << 20)
    img.snapshot("1", "s", extra_tail=bytes(1000))
    return img.write()


@valid("snapshot whose L1 is bad")
def _(file):
    img = Qcow2(file, 1 << 20)
    img.data(1)
    img.snapshot("1", "s")
    img.write()
    patch(file, img.snapshots[0].entry_offset, be64(CS * 1000 + 5))
    img.unsound = True
    img.bad_export = "snapshot/s"
    return img


@valid("no refcounts at all")
def _(file):
    # A reader needs none: the first block's entry points to nowhere.
    img = Qcow2(file, 1 << 20)
    img.data(1)
    img.write()
    patch(file, img.reftable_offset, be64(0))
    img.unsound = True
    return img


@valid("backing name of 1023 bytes", ("follow=beneath",))
def _(file):
    name = "./" * 509 + "b.raw"
    assert len(name) == 1023
    with open(path("b.raw"), "wb") as f:
        f.write(noise("b", 1 << 20))
    from qcow2make import Raw
    return Qcow2(file, 1 << 20, backing=Raw(path("b.raw")), backing_name=name,
                 backing_format="raw").write()


@valid("backing name up to the cluster's end", ("follow=beneath",))
def _(file):
    from qcow2make import Raw
    return Qcow2(file, 1 << 20, backing=Raw(path("b.raw")),
                 backing_format="raw", name_offset=CS - 5).write()


@valid("backing name, size without offset")
def _(file):
    # The size is undefined if there is no backing file.
    img = Qcow2(file, 1 << 20)
    img.data(2)
    img.write()
    patch(file, 16, be32(0xdeadbeef))
    return img


@valid("large v2 disk")
def _(file):
    img = Qcow2(file, 4 << 40, version=2)
    img.data(0)
    img.data((4 << 40) // CS - 1)
    return img.write()


@valid("reserved bits in the entries")
def _(file):
    # They matter to a checker, not to a reader.
    img = Qcow2(file, 6 * CS)
    for ci in range(6):
        img.data(ci)
    img.write()
    for k, bit in enumerate((1, 8, 56, 57, 61)):
        off = img.l2_entry_offset(k)
        with open(file, "r+b") as f:
            f.seek(off)
            w = struct.unpack(">Q", f.read(8))[0] | 1 << bit
            f.seek(off)
            f.write(be64(w))
    with open(file, "r+b") as f:
        f.seek(img.l1_offset)
        w = struct.unpack(">Q", f.read(8))[0] | 1 << 62 | 1 << 3
        f.seek(img.l1_offset)
        f.write(be64(w))
    img.unsound = True
    return img


@valid("extended L2: bit 0 is no zero flag, compressed ones ignore bitmaps")
def _(file):
    img = Qcow2(file, 6 * CS, extl2=True)
    img.data(0)
    img.compressed(1)
    img.write()
    off = img.l2_entry_offset(0)
    with open(file, "r+b") as f:
        f.seek(off)
        w = struct.unpack(">Q", f.read(8))[0] | 1
        f.seek(off)
        f.write(be64(w))
    patch(file, img.l2_entry_offset(1) + 8, be64(0xffffffffffffffff))
    img.unsound = True
    return img


# -------------------------------------------------------------------- running

def digest(file):
    with open(file, "rb") as f:
        d = hashlib.sha256(f.read()).hexdigest()
    s = os.stat(file)
    return d, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def cpu_of_children():
    """Seconds, of those that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def refused(name, regex, strict, args, f):
    import re
    qtest.images += 1
    file = path("refuse-%d.qcow2" % qtest.images)
    f(file)
    before = digest(file)
    q = subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512",
                        file], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not strict:
        check(q.returncode != 0, "%s: qemu opens it" % name)
    elif q.returncode != 0 and os.environ.get("QTEST_VERBOSE"):
        print("%s: qemu refuses it too" % name)
    if qtest.ONLY_QEMU:
        os.unlink(file)
        return
    t = cpu_of_children()
    try:
        srv = Server("file=" + file, *args)
    except StartError as e:
        log = e.log
        if os.environ.get("QTEST_VERBOSE"):
            print("%-45s %s" % (name, log.strip()))
        if e.rc == "hang":
            fail("%s: hangs" % name)
        else:
            check(0 < e.rc < 126, "%s: exit status %s: %s" % (name, e.rc, log))
        lines = [x for x in log.splitlines() if "error:" in x]
        check(len(lines) == 1, "%s: %d error lines: %s" % (
            name, len(lines), log))
        check(os.path.basename(file) in log,
              "%s: the message does not name the file: %s" % (name, log))
        check(re.search(regex, log), "%s: the message does not match '%s': %s"
              % (name, regex, log))
        check("\x1b" not in log, "%s: raw control characters: %r" % (
            name, log))
        check(cpu_of_children() - t < 5, "%s: slow" % name)
    else:
        fail("%s: served, with %d bytes" % (name, srv.connect().get_size()))
        srv.stop()
    check(digest(file) == before, "%s: the file has changed" % name)
    os.unlink(file)


def served(name, args, f):
    qtest.images += 1
    file = path("valid-%d.qcow2" % qtest.images)
    img = f(file)
    before = digest(file)
    try:
        run("qemu-img", "info", "-f", "qcow2", file)
    except RuntimeError as e:
        fail("%s: qemu does not open it: %s" % (name, e))
    if qtest.ONLY_QEMU:
        os.unlink(file)
        return
    try:
        srv = Server("file=" + file, *args)
    except StartError as e:
        fail("%s: %s" % (name, e))
    else:
        with srv:
            h = srv.connect()
            check(h.get_size() == img.size, "%s: size" % name)
            if img.size <= 64 << 20:
                qtest.equal(qtest.read_all(h), bytes(img.render()), name)
            else:
                for ci in (0, img.clusters - 1):
                    qtest.equal(bytes(h.pread(CS, ci * CS)),
                                img._get(ci).data, name)
            qtest.same_runs(qtest.extents(h, what=name), img.runs(), name)
            h.shutdown()
            bad_export = getattr(img, "bad_export", None)
            if bad_export is not None:
                try:
                    srv.connect(bad_export)
                    fail("%s: export %s can be opened" % (name, bad_export))
                except qtest.nbd.Error:
                    pass
                check(len(srv.errors()) == 1, "%s: logged: %s" % (
                    name, srv.errors()))
                # and the live disk is still there
                h = srv.connect()
                check(h.get_size() == img.size, "%s: size" % name)
                h.shutdown()
            p = run("nbdinfo", "--list", srv.uri(), ok=False)
            if p.returncode and os.environ.get("QTEST_VERBOSE"):
                print("%s: nbdinfo --list: %s" % (name, p.stderr.decode()))
            srv.stop(quiet=bad_export is None)
    check(digest(file) == before, "%s: the file has changed" % name)
    os.unlink(file)


if "refused" in sys.argv[1:]:
    for c in CASES:
        refused(*c)
if "valid" in sys.argv[1:]:
    for c in VALID:
        served(*c)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
check(peak < 400 * 1024, "a child took %d KiB" % peak)
qtest.finish("refusals" if "refused" in sys.argv else "nearly refused")
