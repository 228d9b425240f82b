# SPDX-License-Identifier: BSD-3-Clause
"""Images of every kind get another backing file, or none, by the tool and, a
copy, by qemu-img: the disk must stay what it was, the names recorded must be the
same, and qemu-img check must find nothing.

    manage-rebase.py TOOL
"""

import os
import random
import shutil

import manage
from manage import DIR, KINDS, SEED, SOME_ZEROS, TOOL, VOLUME
from manage import create, info, options, requests, run, same

os.chdir(DIR)
SIZE = 3 << 20
OURS, THEIRS, WANT = "ours.qcow2", "theirs.qcow2", "want.raw"
commands = comparisons = 0

# Backing files: of other sizes, over one another, with much in common.
BASES = [("base.raw", "raw"), ("short.raw", "raw"), ("long.qcow2", "qcow2"),
         ("mid.qcow2", "qcow2"), ("v2.qcow2", "qcow2"), ("base.qed", "qed")]


def write(rnd, fmt, image, size, nr):
    manage.write(requests(rnd, nr, size, SOME_ZEROS), image, fmt=fmt)


def make_bases(rnd):
    create("base.raw", SIZE, "raw")
    write(rnd, "raw", "base.raw", SIZE, 30)
    create("short.raw", SIZE // 3 + 512, "raw")
    write(rnd, "raw", "short.raw", SIZE // 3, 5)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "base.raw",
        "long.qcow2")
    run("qemu-img", "resize", "-q", "long.qcow2", str(2 * SIZE))
    write(rnd, "qcow2", "long.qcow2", 2 * SIZE, 10)
    create("mid.qcow2", SIZE, {"compat": "1.1"}, ("base.raw", "raw"))
    write(rnd, "qcow2", "mid.qcow2", SIZE, 5)
    create("v2.qcow2", SIZE, {"compat": "0.10"})
    write(rnd, "qcow2", "v2.qcow2", SIZE, 10)
    create("base.qed", SIZE, "qed")
    write(rnd, "qed", "base.qed", SIZE, 10)


def names(image):
    is_ = info(image)
    is_.pop("actual-size")
    for gone in "filename", "dirty-flag", "children":
        is_.pop(gone, None)
    return is_


def compare(what):
    global comparisons
    run("qemu-img", "check", "-q", "-f", "qcow2", OURS)
    if names(OURS) != names(THEIRS):
        raise SystemExit("%s: %s is not %s" % (what, names(OURS),
                                               names(THEIRS)))
    same(OURS, WANT, "qcow2", "raw")
    comparisons += 1


def rebase(what, name, fmt, unsafe):
    global commands
    args = ["-u"] if unsafe else []
    args += ["-b", name] + (["-F", fmt] if fmt else [])
    commands += 1
    run(TOOL, "rebase", "-q", "--follow=any", *args, OURS)
    run("qemu-img", "rebase", "-f", "qcow2", *args, THEIRS)
    compare("%s: %s" % (what, args))


def sequence(kind, first, rnd, steps):
    create(OURS, SIZE, kind, first)
    run("qemu-io", "-f", "qcow2", "-c", "write -c -P 9 2M 1M", OURS)
    write(rnd, "qcow2", OURS, SIZE, 3)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", OURS, WANT)
    shutil.copy(OURS, THEIRS)
    for step in range(steps):
        now = names(OURS).get("backing-filename")
        other = rnd.choice([b for b in BASES if b[0] != now] + [("", None)])
        what = "%s, %s, step %d" % (options(kind), now, step)
        rebase(what, *other, False)
        if other[0] and rnd.randrange(2):
            # The same file, by another name.
            name = rnd.choice(["./" * rnd.randrange(1, 9), os.getcwd() + "/"])
            rebase(what, name + other[0], other[1], True)


make_bases(random.Random(SEED))
for i, kind in enumerate(KINDS):
    for j in range(max(1, int(VOLUME))):
        rnd = random.Random(SEED * 1000 + i * 10 + j)
        sequence(kind, rnd.choice(BASES + [None]), rnd, 2)
print("%d commands, %d comparisons" % (commands, comparisons))
