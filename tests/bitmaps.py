# SPDX-License-Identifier: BSD-3-Clause
"""Persistent bitmaps as exports, against what QEMU says of them: it makes the
bitmaps, qemu-nbd -B exports them, and qemu-img makes an increment."""

import json
import os
import random
import signal
import struct
import subprocess
import time

import nbd
import qtest
from qtest import path, run, check, equal, same_runs, Server
from qcow2make import merge, patch

CONTEXT = "qemu:dirty-bitmap:"
MOST = 0xffffffff // 512 * 512


class QemuNbd:
    """qemu-nbd that exports a bitmap for reading, or the disk for writing."""
    count = 0

    def __init__(self, file, bitmap=None):
        QemuNbd.count += 1
        self.sock = path("qemu%d.sock" % QemuNbd.count)
        self.bitmap = bitmap
        options = ["--discard=unmap"] if bitmap is None else ["-r", "-B", bitmap]
        self.p = subprocess.Popen(
            ["qemu-nbd", "-t", "-f", "qcow2", "-k", self.sock] + options +
            [file], stdin=subprocess.DEVNULL)

    def connect(self):
        end = time.monotonic() + 60
        while True:
            h = nbd.NBD()
            if self.bitmap is not None:
                h.add_meta_context(CONTEXT + self.bitmap)
            try:
                h.connect_unix(self.sock)
                return h
            except nbd.Error:
                if self.p.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.p.send_signal(signal.SIGTERM)
        try:
            self.p.wait(20)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()


def qemu_dirty(file, bitmap):
    """What is dirty as QEMU has it: runs."""
    out = []
    with QemuNbd(file, bitmap) as q:
        h = q.connect()
        check(h.can_meta_context(CONTEXT + bitmap), "qemu-nbd has no bitmap")
        at, size = 0, h.get_size()
        while at < size:
            got = []
            h.block_status(min(size - at, MOST), at,
                           lambda c, o, entries, e: got.extend(entries) or 0)
            for n, flags in zip(got[0::2], got[1::2]):
                out.append((at, at + n, "dirty" if flags & 1 else "clean"))
                at += n
        h.shutdown()
    return merge(out)


def intersect(bits, live):
    """What the export's map must be: of the bitmap's runs and the disk's."""
    out, k = [], 0
    for lo, hi, bit in bits:
        if bit == "clean":
            out.append((lo, hi, "hole-not-zero"))
            continue
        while live[k][1] <= lo:
            k += 1
        j = k
        while j < len(live) and live[j][0] < hi:
            kind = "data" if live[j][2] == "data" else "zero"
            out.append((max(lo, live[j][0]), min(hi, live[j][1]), kind))
            j += 1
    return merge(out)


def compare(srv, file, bitmap, name):
    bits = qemu_dirty(file, bitmap)
    live = srv.connect()
    h = srv.connect("bitmap/" + bitmap)
    check(h.is_read_only(), "%s: writable" % name)
    check(h.get_size() == live.get_size(), "%s: its size" % name)
    want = intersect(bits, qtest.extents(live))
    same_runs(qtest.extents(h, what=name), want, "%s: map" % name)
    rnd = random.Random(name)
    size = h.get_size()
    for _ in range(4):
        lo = rnd.randrange(size) // 512 * 512
        hi = min(size, lo + 512 * (1 + rnd.randrange(1 << rnd.randrange(24))))
        part = [(max(lo, a), min(hi, b), k) for a, b, k in want
                if a < hi and b > lo]
        same_runs(qtest.extents(h, lo, hi, what=name), part,
                  "%s: map of %d to %d" % (name, lo, hi))
        first = qtest.extents(h, lo, hi, nbd.CMD_FLAG_REQ_ONE, what=name)
        same_runs(first, part, "%s: one by one" % name)
    n = min(size, 1 << 20)
    equal(h.pread(n, 0), live.pread(n, 0), "%s: data" % name)
    h.shutdown()
    live.shutdown()
    return bits


def writes(rnd, size, n):
    """Commands for qemu-io: over all of the disk, many of them near to each
    other."""
    out, near = [], rnd.randrange(size)
    for _ in range(n):
        at = near + rnd.randrange(1 << 20) if rnd.random() < 0.7 \
            else rnd.randrange(size)
        at = min(at, size - 512) // 512 * 512
        length = min(size - at, 512 * (1 + rnd.randrange(300)))
        out += ["-c", rnd.choice(("write -P 7 %d %d", "write -z %d %d",
                                  "discard %d %d", "write -P 9 %d %d"))
                % (at, length)]
    return out


def directory(file):
    """(offset of the table, its entries, offset of the entry) of each bitmap,
    by name."""
    out = {}
    with open(file, "rb") as f:
        head = f.read(65536)
        at = struct.unpack(">I", head[100:104])[0]
        while True:
            kind, length = struct.unpack(">II", head[at:at + 8])
            if kind == 0x23852875:
                break
            at += 8 + (length + 7) // 8 * 8
        nr, _, _, at = struct.unpack(">IIQQ", head[at + 8:at + 32])
        for _ in range(nr):
            f.seek(at)
            table, entries, _, _, _, namelen, extra = struct.unpack(
                ">QIIBBHI", f.read(24))
            f.seek(extra, 1)
            out[f.read(namelen).decode()] = table, entries, at
            at += (24 + namelen + extra + 7) // 8 * 8
    return out


def qemu_made(k, size, granularity, *options):
    """An image with two bitmaps, of which the second one is disabled after a
    while, and has parts that are all ones where there are several."""
    qtest.images += 1
    file = path("q%d.qcow2" % k)
    rnd = random.Random(k)
    name = "%d: %s" % (k, " ".join(options))
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, file, str(size))
    run("qemu-io", "-f", "qcow2", *writes(rnd, size, 10), file)
    for b in "enabled", "gone-by":
        run("qemu-img", "bitmap", "--add", "-g", str(granularity), file, b)
    run("qemu-io", "-f", "qcow2", *writes(rnd, size, 10), file)
    run("qemu-img", "bitmap", "--disable", file, "gone-by")
    run("qemu-io", "-f", "qcow2", *writes(rnd, size, 10), file)
    table, entries, _ = directory(file)["gone-by"]
    for i in range(min(entries, 300)):
        if entries > 1 and rnd.random() < 0.2:
            patch(file, table + 8 * i, struct.pack(">Q", rnd.randrange(2)))
    with Server("file=" + file, "follow=beneath") as srv:
        a = compare(srv, file, "enabled", name + ": enabled")
        b = compare(srv, file, "gone-by", name + ": disabled")
        check(any(k == "dirty" for _, _, k in a + b), name + ": nothing dirty")


def matrix():
    G = 1 << 30
    c = "cluster_size="
    qemu_made(1, 64 << 20, 512, "-o", c + "512")
    qemu_made(2, (100 << 20) + 512, 4096, "-o", c + "4k")
    qemu_made(3, 3 * G + 1536, 512, "-o", c + "16k,extended_l2=on")
    qemu_made(4, 20 * G, 65536)
    qemu_made(5, 5 * G + 512, 2 * G)
    qemu_made(6, 5 * G - 512, 1024, "-o", c + "2M")
    qemu_made(7, 40 * G, 32768, "-o", c + "128k,extended_l2=on")
    qemu_made(8, 16 << 20, 65536, "-o", "data_file=%s" % path("q8.data"))
    run("qemu-img", "create", "-q", "-f", "raw", path("base.raw"), "9M")
    run("qemu-io", "-f", "raw", "-c", "write -P 3 0 9M", path("base.raw"))
    qemu_made(9, 24 << 20, 4096, "-b", path("base.raw"), "-F", "raw")


def exports(srv):
    """The names that are listed, and their descriptions."""
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(srv.sock)
    listed = {}
    h.opt_list(lambda name, d: listed.update({name: d}) or 0)
    h.opt_abort()
    return listed


def shared():
    """Another process may write, since no lock keeps it from that: no bitmap
    of then is right.  test-host-locks.sh has the rest of this."""
    file = path("names.qcow2")
    far = qtest.Far(file)
    for args, why in ((("file=" + file, "force-share=true"), "(force-share)"),
                      (("file=" + file, "locking=off"), "(locking=off)"),
                      (("uri=" + far.uri,), "(no lock can be had on it)")):
        with Server(*args) as srv:
            check(list(exports(srv)) == [""],
                  "%s: listed: %s" % (why, exports(srv)))
            for _ in range(2):
                try:
                    srv.connect("bitmap/plain")
                    check(False, "%s: a bitmap can be opened" % why)
                except nbd.Error:
                    pass
            log = srv.log()
            check(log.count(why) == 1, "%s: log: %s" % (why, log))
            srv.stop(quiet=False)
    far.kill()


def names():
    """Listed with what they are, but for those that can't be used: why not is
    logged once."""
    qtest.images += 1
    file = path("names.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", file, "1M")
    all_names = ("plain", "a/b %41", "\u00fcn\u00efcode", "x" * 1023, "odd")
    for n in all_names:
        run("qemu-img", "bitmap", "--add", file, n)
    run("qemu-img", "bitmap", "--disable", file, "plain")
    place = directory(file)["odd"][2]
    patch(file, place + 12, struct.pack(">I", 3))
    with Server("file=" + file) as srv:
        listed = exports(srv)
        for n in all_names:
            if n == "odd":
                continue
            d = listed.get("bitmap/" + n, "")
            check("granularity 65536" in d and
                  ("disabled" if n == "plain" else "enabled") in d,
                  "%s: listed as '%s'" % (n[:9], d))
            h = srv.connect("bitmap/" + n)
            same_runs(qtest.extents(h), [(0, 1 << 20, "hole-not-zero")], n[:9])
            h.shutdown()
        # nbdinfo --list opens all of them, and ends at the first that it can't.
        check("bitmap/odd" not in listed,
              "in use: listed as '%s'" % listed.get("bitmap/odd"))
        for export in ("bitmap/odd", "bitmap/odd", "bitmap/none", "bitmap/",
                       "bitmap/plai"):
            try:
                srv.connect(export)
                check(False, "%s can be opened" % export)
            except nbd.Error:
                pass
        log = srv.log()
        check(log.count("is marked as in use") == 1, "in use: log: " + log)
        srv.stop(quiet=False)
        p = run(os.path.join(os.environ["BUILD"], "tool/nbdkit-qcow2-tool"),
                "info", "--output=json", file)
        ours = json.loads(p.stdout)["bitmaps"]
        p = run("qemu-img", "info", "--output=json", file)
        theirs = json.loads(p.stdout)["format-specific"]["data"]["bitmaps"]
        check([b["name"] for b in ours] == [b["name"] for b in theirs] and
              [b["granularity"] for b in ours] ==
              [b["granularity"] for b in theirs] and
              [sorted(b["flags"]) for b in ours] ==
              [sorted(b["flags"]) for b in theirs],
              "info: %s, but QEMU has %s" % (ours, theirs))


def increment():
    """As in the manual: a full copy, and later what has changed since."""
    qtest.images += 1
    file, full, inc = path("disk.qcow2"), path("full.qcow2"), path("inc.qcow2")
    size = 24 << 20
    run("qemu-img", "create", "-q", "-f", "qcow2", file, str(size))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 9M",
        "-c", "write -P 2 12M 3M", file)
    run("qemu-img", "bitmap", "--add", file, "monday")
    with Server("file=" + file) as srv:
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", srv.uri(), full)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 64k",
        "-c", "write -z 2M 128k", "-c", "write -P 0 13M 64k",
        "-c", "discard 8M 1M", "-c", "write -P 4 20M 1M", file)
    with Server("file=" + file) as srv:
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-B", full,
            "-F", "qcow2", srv.uri("bitmap/monday"), inc)
        # A client that knows nothing of bitmaps has all.
        run("qemu-img", "convert", "-f", "raw", "-O", "raw",
            srv.uri("bitmap/monday"), path("all.raw"))
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", file,
        path("want.raw"))
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", inc,
        path("got.raw"))
    with open(path("want.raw"), "rb") as f:
        want = f.read()
    qtest.file_equal(path("got.raw"), want, "increment")
    qtest.file_equal(path("all.raw"), want, "all of it")
    mine = [e for e in json.loads(run("qemu-img", "map", "--output=json",
                                      inc).stdout) if e["depth"] == 0]
    check(sum(e["length"] for e in mine if e["data"]) <= 2 << 20 and
          sum(e["length"] for e in mine) <= 3 << 20,
          "the increment has too much: %s" % mine)


def taken_for_nothing():
    """Clients that don't read what is clean, as the manual warns: if this
    fails, that may be out of date."""
    file, zeros = path("ones.qcow2"), path("zeros.raw")
    run("qemu-img", "create", "-q", "-f", "qcow2", file, "1M")
    run("qemu-img", "create", "-q", "-f", "raw", zeros, "1M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", file)
    run("qemu-img", "bitmap", "--add", file, "monday")
    need = {}
    with Server("file=" + file) as srv:
        for export, rc in ("bitmap/monday", 0), ("", 1):
            p = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F",
                                "raw", srv.uri(export), zeros],
                               stdout=subprocess.PIPE)
            equal(p.returncode, rc, "compare of '%s'" % export)
            p = run("qemu-img", "measure", "--output=json", "-f", "raw", "-O",
                    "qcow2", srv.uri(export))
            need[export] = json.loads(p.stdout)["required"]
    equal(need[""] - need["bitmap/monday"], 1 << 20, "measure: %s" % need)


def given_up():
    """Who reads a bitmap is told once that it is not right any more."""
    qtest.images += 1
    file = path("lost.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", file, "16M")
    run("qemu-img", "bitmap", "--add", file, "monday")
    run("qemu-img", "bitmap", "--add", file, "sunday")
    run("qemu-img", "bitmap", "--disable", file, "sunday")
    with Server("file=" + file, "bitmaps=invalidate", readonly=False) as srv:
        reader = srv.connect("bitmap/monday")
        other = srv.connect("bitmap/sunday")
        qtest.extents(reader)
        writer = srv.connect()
        qtest.extents(reader)
        writer.pwrite(b"x" * 512, 1 << 20)
        for _ in range(2):
            try:
                qtest.extents(reader)
                check(False, "a bitmap that lies is still served")
            except nbd.Error as e:
                check(e.errno == "EIO", "given up: %s" % e)
        same_runs(qtest.extents(other), [(0, 16 << 20, "hole-not-zero")],
                  "disabled")
        try:
            srv.connect("bitmap/monday")
            check(False, "a bitmap that lies can be opened")
        except nbd.Error:
            pass
        for h in reader, other, writer:
            h.shutdown()
        log = srv.log()
        check(log.count("is not valid any more") == 1, "log: " + log)
        srv.stop(quiet=False)


if __name__ == "__main__":
    matrix()
    names()
    shared()
    increment()
    taken_for_nothing()
    given_up()
    qtest.finish("bitmaps")
