# SPDX-License-Identifier: BSD-3-Clause
"""Overlays of every kind are committed into base images of every kind by the
tool, and copies by qemu-img: the overlay must read as before, and the base must be
as qemu-img's; qemu-img check must find nothing.

    manage-commit.py TOOL
"""

import os
import random
import shutil
import sys

import manage
from manage import KINDS, NARROW, SEED, SOME_ZEROS, TOOL, VOLUME
from manage import create, path, requests, run

SIZE = 6 << 20
commits = comparisons = 0

KINDS = KINDS + [NARROW]
BASES = ["raw", "qed"] + KINDS


def write(rnd, image, fmt, size):
    # qemu-io compresses only what has no cluster yet.
    first = ["-c", "write -c -P 9 2M 2M"] if fmt == "qcow2" else []
    manage.write(first + requests(rnd, rnd.randrange(3, 12), size,
                                  SOME_ZEROS + ["write -P 0"]), image, fmt=fmt)


def same(a, name_a, b, name_b):
    global comparisons
    comparisons += 1
    manage.same(a, b, name_a, name_b)


def chain(top, base, depth, seed):
    """Make base, images between, and the top one; each side has a copy."""
    rnd = random.Random(seed)
    # qemu-img is no witness for QED that grows beside others.
    size = SIZE if base == "qed" else rnd.choice([SIZE, SIZE, SIZE - (1 << 20),
                                                  SIZE + 70000 // 512 * 512])
    ours, theirs = path("ours"), path("theirs")
    for d in ours, theirs:
        shutil.rmtree(d, ignore_errors=True)
    os.makedirs(ours)
    file = os.path.join(ours, "base")
    fmt = create(file, size, base)
    write(rnd, file, fmt, size)
    for i in range(depth):
        below = (os.path.basename(file), fmt)
        file = os.path.join(ours, "top" if i == depth - 1 else "mid%d" % i)
        fmt = create(file, SIZE, top, below)
        write(rnd, file, fmt, SIZE)
    run("qemu-img", "convert", "-O", "raw", file, path("content.raw"))
    run("cp", "-r", "--sparse=always", ours, theirs)
    return "qcow2" if not isinstance(base, str) else base


def commit(top, base, depth, seed):
    global commits
    name = chain(top, base, depth, seed)
    ours, theirs = (path(side) for side in ("ours", "theirs"))
    keep = seed % 3 == 0
    args = ["-d"] if keep else []
    for d, cmd in (ours, [TOOL, "commit", "--follow=any"]), \
                  (theirs, ["qemu-img", "commit", "-f", "qcow2"]):
        if depth > 1:
            args = ["-b", os.path.join(d, "base")]
        run(*cmd, "-q", *args, os.path.join(d, "top"))
    commits += 1
    for f in ("top", "base"):
        kind = "qcow2" if f == "top" else name
        if kind != "raw":
            run("qemu-img", "check", "-q", "-f", kind, os.path.join(ours, f))
        same(os.path.join(ours, f), kind, os.path.join(theirs, f), kind)
    content = path("content.raw")
    same(os.path.join(ours, "top"), "qcow2", content, "raw")
    if depth == 1 and not keep:
        m = run("qemu-img", "map", "--output=json", os.path.join(ours, "top"))
        if '"depth": 0, "present": true' in m.stdout:
            raise SystemExit("not emptied: " + m.stdout)


seed = SEED
for i, top in enumerate(KINDS):
    for j, base in enumerate(BASES):
        if (i + j) % 5 and VOLUME <= 1:
            continue
        seed += 1
        try:
            commit(top, base, 1 + (i + j) // 5 % 3, seed)
        except SystemExit:
            print("%s over %s, seed %d" % (top, base, seed), file=sys.stderr)
            raise
print("%d commits, %d comparisons" % (commits, comparisons))
