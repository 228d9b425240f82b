# SPDX-License-Identifier: BSD-3-Clause
"""Persistent bitmaps are made, changed, merged and removed in images of every
kind by the tool, and in a copy by qemu-img: both must have the same bitmaps, and
the same bits as the tool dumps them, and now and then as qemu-nbd exports them;
qemu-img check must find nothing.

    manage-bitmaps.py TOOL
"""

import json
import random
import shutil
import struct

from bitmaps import qemu_dirty
from manage import KINDS, NARROW, SEED, TOOL, VOLUME
from manage import both, create, fill, info, options, path, requests, run, write

OURS = path("ours.qcow2")
THEIRS = path("theirs.qcow2")
OTHER = path("other.qcow2")
BASE = path("base.raw")
SIZE = (6 << 20) + 512
NAMES = ["a", "b", "c", "a longer name, ü", "n" * 1023]
commands = comparisons = 0

# Version 2 has none.
KINDS = [k for k in KINDS if "compat" not in k] + [NARROW]


def change(*args):
    """The same change of both."""
    global commands
    commands += 1
    return both([TOOL, "bitmap", *args[:-1], OURS, args[-1]],
                ["qemu-img", "bitmap", *args[:-1], THEIRS, args[-1]])


def bitmaps(image):
    """{name: (granularity, flags)}, as qemu-img has it."""
    return {b["name"]: (b["granularity"], sorted(b["flags"]))
            for b in info(image)["format-specific"]["data"].get("bitmaps", [])}


def dump(image, name):
    return [(r["start"], r["length"]) for r in
            json.loads(run(TOOL, "bitmap", "--dump", "--output=json", image,
                           name).stdout)]


def compare(what, by_qemu):
    global comparisons
    run("qemu-img", "check", "-q", OURS)
    a, b = bitmaps(OURS), bitmaps(THEIRS)
    if a != b:
        raise SystemExit("%s: %s is not %s" % (what, a, b))
    listed = json.loads(run(TOOL, "bitmap", "--output=json", OURS).stdout)
    if {i["name"]: (i["granularity"], sorted(i["flags"]))
            for i in listed} != a:
        raise SystemExit("%s: the list is %s" % (what, listed))
    for name in a:
        if "in-use" in a[name][1]:
            continue
        comparisons += 1
        if dump(OURS, name) != dump(THEIRS, name):
            raise SystemExit("%s: bitmap %s is %s and not %s" % (
                what, name, dump(OURS, name), dump(THEIRS, name)))
        # qemu-nbd has no exports of such names.
        if by_qemu and len(name) < 200:
            runs = [(s, e) for s, e, kind in qemu_dirty(OURS, name)
                    if kind == "dirty"]
            if runs != [(s, s + n) for s, n in dump(OURS, name)]:
                raise SystemExit("%s: bitmap %s is %s for QEMU, dumped is %s" %
                                 (what, name, runs, dump(OURS, name)))


def some(rnd):
    return requests(rnd, rnd.randrange(1, 5), SIZE,
                    ["write"] * 3 + ["write -z", "discard"],
                    (512, 5000, 65536, 900000))


def granularity(rnd):
    return rnd.choice([[]] * 2 +
                      [["-g", g] for g in ("512", "1k", "64k", "1M", "2G")])


def step(rnd, have):
    """One change; which may be impossible."""
    usual = [n for n in have if "in-use" not in have[n][1]]
    kind = rnd.choice(["add", "add", "fresh", "remove", "clear", "flip", "merge",
                       "again", "other", "odd"])
    name = rnd.choice(NAMES)
    if kind in ("add", "odd") or not usual:
        odd = rnd.choice([["--remove"], ["--clear"], ["--enable"],
                          ["--merge", "none"], ["--add", "-g", "100"],
                          ["--add", "-g", "256"], ["--add", "-g", "4G"]])
        return odd + [name] if kind == "odd" else \
            ["--add", *granularity(rnd), name]
    target, source = rnd.choice(usual), rnd.choice(usual)
    free = [n for n in NAMES if n not in have]
    if kind == "fresh" and free:
        return ["--add", "--disable", *granularity(rnd), "--merge", source,
                free[0]]
    if kind == "again" and source != target:
        return ["--remove", "--add", *granularity(rnd), "--merge", source,
                target]
    if kind == "other":
        return ["--merge", "o1", "-b", OTHER, "-F", "qcow2", "--merge", "o2",
                target]
    if kind == "clear":
        return ["--clear", target]
    if kind == "merge":
        return ["--merge", source, target]
    if kind == "flip":
        return [rnd.choice(["--enable", "--disable"]), target]
    return ["--remove", target]


def set_in_use(image, name):
    """As a writer that was killed leaves it."""
    with open(image, "r+b") as f:
        head = f.read(65536)
        at = struct.unpack_from(">I", head, 100)[0]
        while struct.unpack_from(">I", head, at)[0] != 0x23852875:
            at += 8 + (struct.unpack_from(">I", head, at + 4)[0] + 7) // 8 * 8
        nr, _, size, place = struct.unpack_from(">IIQQ", head, at + 8)
        f.seek(place)
        directory = bytearray(f.read(size))
        at = 0
        for _ in range(nr):
            length, extra = struct.unpack_from(">HI", directory, at + 18)
            if directory[at + 24 + extra:][:length] == name.encode():
                directory[at + 15] |= 1
            at += (24 + extra + length + 7) // 8 * 8
        f.seek(place)
        f.write(directory)


def sequence(kind, backing, rnd, steps):
    opts = options(kind)
    for image in OURS, OTHER:
        create(image, SIZE, kind, (BASE, "raw") if backing else None)
    for name, g in ("o1", "512"), ("o2", "64k"):
        run("qemu-img", "bitmap", "--add", "-g", g, OTHER, name)
        write(some(rnd), OTHER)
    shutil.copy(OURS, THEIRS)
    for n in range(steps):
        args = step(rnd, bitmaps(THEIRS))
        change(*args)
        what = "%s, backing %s, step %d: %s" % (opts, backing, n, args)
        compare(what, n % 6 == 5)
        if n % 3 == 0:
            write(some(rnd), OURS, THEIRS)
            compare(what + ", written", False)
        have = bitmaps(THEIRS)
        if n == steps // 2 and have:
            name = rnd.choice(sorted(have))
            for image in OURS, THEIRS:
                set_in_use(image, name)
            for args in ["--clear"], ["--enable"], ["--add"], ["--merge", name]:
                if change(*args, name):
                    raise SystemExit("%s: in use: %s is done" % (what, args))
            if rnd.randrange(2):
                change("--remove", name)
            compare(what + ", in use", False)
    # The last one goes, and the first one comes.
    for name in bitmaps(THEIRS):
        change("--remove", name)
    compare("%s: none" % opts, False)
    change("--add", "first")
    write(some(rnd), OURS, THEIRS)
    compare("%s: the first again" % opts, True)


def resized(kind, rnd):
    """Disabled bitmaps become what they become by qemu-img; enabled ones have the
    new part of the disk as well, from the granule on in which it begins."""
    global commands, comparisons
    opts = options(kind)
    create(OURS, SIZE, kind)
    grain = {}
    for name in NAMES[:4]:
        g = rnd.choice([512, 4096, 65536, 1 << 20, 1 << 31])
        run("qemu-img", "bitmap", "--add", "-g", str(g), OURS, name)
        grain[name] = g
        write(some(rnd), OURS)
    run("qemu-io", "-f", "qcow2", "-c", "write %d 512" % (SIZE - 512), OURS)
    for name in NAMES[:2]:
        run("qemu-img", "bitmap", "--disable", OURS, name)
    shutil.copy(OURS, THEIRS)
    size, added = SIZE, {name: [] for name in grain}
    cluster = kind["cluster_size"]
    for new in rnd.sample([SIZE + 512, SIZE // 1024 * 512, 2 << 20, 512,
                           SIZE + (1 << 20), SIZE + (cluster << 11),
                           SIZE + (cluster << 14)], 4):
        commands += 1
        run(TOOL, "resize", "-q", "--shrink", "--follow=any", OURS, str(new))
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", THEIRS,
            str(new))
        run("qemu-img", "check", "-q", OURS)
        for name, g in grain.items():
            add = [r for r in added[name] if r[0] < new]
            if new > size and name in NAMES[2:]:
                add.append((size // g * g, new))
            added[name] = [(s, min(e, new)) for s, e in add]
            # Shrunk within a granule that is new: all of it stays dirty.
            edge = -(-new // g) * g
            theirs = [(s, s + n) for s, n in dump(THEIRS, name)]
            want = join(theirs + [(s, min(-(-e // g) * g, edge, new))
                                  for s, e in added[name]])
            have = [(s, s + n) for s, n in dump(OURS, name)]
            comparisons += 1
            if have != want:
                raise SystemExit("%s, %d bytes after %d: %s is %s and not %s" %
                                 (opts, new, size, name, have, want))
        size = new


def join(ranges):
    out = []
    for s, e in sorted(ranges):
        if out and s <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], e))
        else:
            out.append((s, e))
    return out


fill(BASE, SIZE)
for i, kind in enumerate(KINDS):
    for j, backing in enumerate((False, True)):
        if (i + j) % 2 and VOLUME <= 1:
            continue
        rnd = random.Random(SEED * 1000 + i * 2 + j)
        sequence(kind, backing, rnd, int(8 * VOLUME))
        resized(kind, rnd)
print("%d commands, %d comparisons" % (commands, comparisons))
