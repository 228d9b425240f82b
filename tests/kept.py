# SPDX-License-Identifier: BSD-3-Clause
"""Persistent bitmaps that follow what is written.  QEMU is the witness: the same
requests to a copy of the image through qemu-nbd leave the same bits; and after a
kill it takes the bitmaps for valid, with each sector that has changed.

With KEPT_KILLS the server is killed so often, and nothing else is done."""

import json
import os
import random
import shutil
import threading
import time

import nbd
import qtest
from bitmaps import QemuNbd, qemu_dirty
from qtest import path, run, check, equal, same_runs, volume, Server

SECTOR = 512


def make(file, size, options, bitmaps, rnd):
    """An image with some data, and bitmaps: (name, granularity, enabled)."""
    if os.path.exists(file):
        os.unlink(file)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, file,
        str(size))
    for name, granularity, enabled in bitmaps:
        run("qemu-img", "bitmap", "--add", "-g", str(granularity), file, name)
        at = rnd.randrange(size // 2) // 65536 * 65536
        run("qemu-io", "-f", "qcow2", "-c", "write -P 3 %d 128k" % at, file)
        if not enabled:
            run("qemu-img", "bitmap", "--disable", file, name)


def flags(file):
    info = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json",
                          file).stdout)
    return {b["name"]: sorted(b["flags"])
            for b in info["format-specific"]["data"].get("bitmaps", [])}


def request(rnd, size):
    """(method, arguments): many of them near to each other."""
    length = SECTOR * (1 + rnd.randrange(1 << rnd.randrange(11)))
    at = rnd.randrange(size) if rnd.random() < 0.5 \
        else size // 8 + rnd.randrange(size // 64)
    at = min(at, size - length) // SECTOR * SECTOR
    kind = rnd.randrange(8)
    fua = nbd.CMD_FLAG_FUA if rnd.random() < 0.2 else 0
    if kind < 4:
        return "pwrite", (bytes([1 + rnd.randrange(255)]) * length, at, fua)
    if kind == 4:
        return "zero", (length, at, nbd.CMD_FLAG_NO_HOLE | fua)
    if kind == 5:
        return "zero", (length, at, fua)
    if kind == 6:
        return "trim", (length, at, fua)
    return "flush", ()


def disk(file):
    raw = path("kept.raw")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, raw)
    with open(raw, "rb") as f:
        return f.read()


def sound(file, name):
    p = run("qemu-img", "check", "-f", "qcow2", file, ok=False)
    check(p.returncode == 0, "%s: qemu-img check: %s" % (name, p.stdout))


def as_qemu(name, size, options, bitmaps, args, seed):
    """The same requests by both, in several sessions."""
    rnd = random.Random(seed)
    ours, theirs = path("ours.qcow2"), path("theirs.qcow2")
    make(ours, size, options, bitmaps, rnd)
    shutil.copyfile(ours, theirs)
    before = flags(ours)
    qtest.images += 1
    for _ in range(3):
        requests = [request(rnd, size) for _ in range(volume(30))]
        with Server("file=" + ours, *args, readonly=False) as srv:
            h = srv.connect()
            for method, arguments in requests:
                getattr(h, method)(*arguments)
            h.shutdown()
        with QemuNbd(theirs) as q:
            h = q.connect()
            for method, arguments in requests:
                getattr(h, method)(*arguments)
            h.shutdown()
        sound(ours, name)
        # QEMU leaves alone what is trimmed of a cluster in part.
        if "extended" not in options:
            equal(disk(ours), disk(theirs), "%s: the disk" % name)
        check(flags(ours) == before, "%s: %s" % (name, flags(ours)))
        for bitmap, _, _ in bitmaps:
            same_runs(qemu_dirty(ours, bitmap), qemu_dirty(theirs, bitmap),
                      "%s: the bitmap %s" % (name, bitmap))
    run("qemu-img", "bitmap", "--add", "-g", "65536", "--merge", bitmaps[0][0],
        ours, "merged")
    sound(ours, name)


def dirty_sectors(file, bitmap, size):
    out = bytearray(size // SECTOR)
    for lo, hi, kind in qemu_dirty(file, bitmap):
        if kind == "dirty":
            out[lo // SECTOR:hi // SECTOR] = b"\1" * ((hi - lo) // SECTOR)
    return out


def is_superset(file, bitmap, before, name):
    dirty, now = dirty_sectors(file, bitmap, len(before)), disk(file)
    for i in range(len(dirty)):
        at = i * SECTOR
        if now[at:at + SECTOR] != before[at:at + SECTOR] and not dirty[i]:
            return check(False, "%s: sector %d has changed, and is clean in "
                         "%s" % (name, i, bitmap))
    return check(True, name)


def some_requests(srv, requests):
    h = srv.connect()
    for method, arguments in requests:
        getattr(h, method)(*arguments)
    h.shutdown()


def parallel(bits):
    """Many connections: what all of them have touched, and nothing else."""
    size, name = 48 << 20, "parallel"
    bitmaps = [("fine", 512, True), ("coarse", 65536, True)]
    file = path("parallel.qcow2")
    rnd = random.Random(bits)
    make(file, size, "cluster_size=%d" % (1 << bits), bitmaps, rnd)
    qtest.images += 1
    lists = [[request(rnd, size) for _ in range(volume(60))] for _ in range(8)]
    want = {b: dirty_sectors(file, b, size) for b, _, _ in bitmaps}
    for method, arguments in sum(lists, []):
        if method == "flush":
            continue
        n = arguments[0] if isinstance(arguments[0], int) else len(arguments[0])
        for bitmap, granule, _ in bitmaps:
            per = granule // SECTOR
            lo = arguments[1] // granule * per
            hi = -(-(arguments[1] + n) // granule) * per
            want[bitmap][lo:hi] = b"\1" * (hi - lo)
    with Server("file=" + file, readonly=False) as srv:
        threads = [threading.Thread(target=some_requests, args=(srv, r))
                   for r in lists]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    sound(file, name)
    for bitmap, _, _ in bitmaps:
        equal(bytes(dirty_sectors(file, bitmap, size)), bytes(want[bitmap]),
              "%s: %s" % (name, bitmap))


def load(srv, seed, size):
    """Requests until the server is gone."""
    rnd = random.Random(seed)
    try:
        h = srv.connect()
        while True:
            method, arguments = request(rnd, size)
            getattr(h, method)(*arguments)
    except nbd.Error:
        pass


def killed(kills):
    size = 48 << 20
    bitmaps = [("fine", 512, True), ("coarse", 65536, True),
               ("old", 65536, False)]
    file = path("killed.qcow2")
    rnd = random.Random(kills)
    old, good = None, 0
    for k in range(kills):
        name = "kill %d" % k
        if k % 5 == 0:
            make(file, size, "cluster_size=%d" % (512 << k // 5 % 8), bitmaps,
                 rnd)
            before = disk(file)
            old = qemu_dirty(file, "old")
        srv = Server("file=" + file, readonly=False)
        threads = [threading.Thread(target=load, args=(srv, rnd.random(), size))
                   for _ in range(4)]
        for t in threads:
            t.start()
        time.sleep(rnd.random() * 0.3)
        srv.p.kill()
        srv.p.wait()
        for t in threads:
            t.join()
        sound_after_kill(file, name)
        valid = check(flags(file) == {"fine": ["auto"], "coarse": ["auto"],
                                      "old": []},
                      "%s: %s" % (name, flags(file)))
        supersets = [is_superset(file, bitmap, before, name)
                     for bitmap in ("fine", "coarse")]
        good += valid and all(supersets)
        same_runs(qemu_dirty(file, "old"), old, "%s: a disabled bitmap" % name)
    print("%d kills: bitmaps valid, and a superset, for QEMU, %d times" % (
        kills, good))


GIB = 1 << 30


def peak(pid):
    """The most memory that a process had, in MiB."""
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0


def extremes():
    """The finest and the coarsest bits, of a TiB: all of them would be 256 MiB in
    memory, twice; and what a kill leaves of them."""
    size, file = 1 << 40, path("extremes.qcow2")
    bitmaps = [("finest", 512, True), ("coarsest", 2 * GIB, True),
               ("other", 512, True), ("usual", 65536, True)]
    run("qemu-img", "create", "-q", "-f", "qcow2", file, str(size))
    for name, granularity, _ in bitmaps:
        run("qemu-img", "bitmap", "--add", "-g", str(granularity), file, name)
    qtest.images += 1
    srv = Server("file=" + file, "cache-size=1M", readonly=False)
    h = srv.connect()
    h.pwrite(b"x" * 512, 0)
    before = peak(srv.p.pid)
    touched = [(0, 512)]
    # A page of the finest bits stands for 16 MiB.
    for at in range(GIB + 512, 65 * GIB, 4 * GIB):
        h.zero(4 * GIB - 1024, at)
        touched.append((at, at + 4 * GIB - 1024))
    for at in (size - 512, size // 2 - 512, size // 3 // 512 * 512):
        h.pwrite(b"y" * 1024 if at < size - 512 else b"y" * 512, at)
        touched.append((at, at + 512))
    h.flush()
    grown = peak(srv.p.pid) - before
    check(grown < 64, "extremes: memory has grown by %d MiB" % grown)
    srv.p.kill()
    srv.p.wait()
    sound_after_kill(file, "extremes")
    check(flags(file) == {b: ["auto"] for b, _, _ in bitmaps},
          "extremes: %s" % flags(file))
    for bitmap, _, _ in bitmaps:
        dirty = [(lo, hi) for lo, hi, kind in qemu_dirty(file, bitmap)
                 if kind == "dirty"]
        for lo, hi in touched:
            if not check(any(x <= lo and hi <= y for x, y in dirty),
                         "extremes: %s: %d to %d is clean" % (bitmap, lo, hi)):
                break
    print("4 bitmaps of 1 TiB: %d MiB more" % grown)


def sound_after_kill(file, name):
    p = run("qemu-img", "check", "-f", "qcow2", file, ok=False)
    check(p.returncode in (0, 3), "%s: qemu-img check: %s" % (name, p.stdout))


def main():
    two = [("fine", 512, True), ("coarse", 65536, True), ("old", 4096, False)]
    cases = [
        ("64 KiB", 40 << 20, "cluster_size=64k", two, ()),
        ("512 bytes", 9 << 20, "cluster_size=512", two, ()),
        ("extended", 40 << 20, "cluster_size=64k,extended_l2=on", two, ()),
        ("2 MiB", 64 << 20, "cluster_size=2M", two, ()),
        ("lazy", 24 << 20, "cluster_size=4k,lazy_refcounts=on", two, ()),
        ("compressed", 24 << 20, "cluster_size=16k", two,
         ("compress=zlib",)),
        ("keep", 24 << 20, "cluster_size=64k", two, ("bitmaps=keep",)),
    ]
    kills = int(os.environ.get("KEPT_KILLS", 0))
    if kills == 0:
        for seed, case in enumerate(cases):
            as_qemu(*case, seed)
        for bits in 9, 16:
            parallel(bits)
        extremes()
    killed(kills or volume(6))
    qtest.finish("bitmaps that are kept")


if __name__ == "__main__":
    main()
