# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots are made, applied and deleted in images of every kind by the tool,
and these are resized, and a copy by qemu-img: the disk and each snapshot must be
the same, and the lists of them but for the times; qemu-img check must find
nothing.

    manage-snapshots.py TOOL
"""

import json
import random
import shutil

import manage
from manage import KINDS, SEED, SOME_ZEROS, TOOL, VOLUME
from manage import both, create, fill, info, options, path, requests, run, same
from manage import same_snapshot

OURS = path("ours.qcow2")
THEIRS = path("theirs.qcow2")
BASE = path("base.raw")
SIZE = 6 << 20
commands = comparisons = 0


def write(rnd, size):
    manage.write(requests(rnd, rnd.randrange(1, 6), size,
                          SOME_ZEROS + ["discard"],
                          discard=(1 << 21, 1 << 21)), OURS, THEIRS)


def snapshots(image):
    is_ = info(image)
    return [(s["id"], s["name"], s["vm-state-size"])
            for s in is_.get("snapshots", [])], is_["virtual-size"]


def compare(what):
    global comparisons
    run("qemu-img", "check", "-q", OURS)
    a, b = snapshots(OURS), snapshots(THEIRS)
    if a != b:
        raise SystemExit("%s: %s is not %s" % (what, a, b))
    listed = json.loads(run(TOOL, "snapshot", "-l", "--output=json",
                            OURS).stdout)
    if [(s["id"], s["name"], s["vm-state-size"]) for s in listed] != b[0]:
        raise SystemExit("%s: the list is %s" % (what, listed))
    names = [name for _, name, _ in b[0]]
    same(OURS, THEIRS)
    comparisons += 1
    for id, name, _ in b[0]:
        if names.count(name) > 1:
            continue
        same_snapshot(name, OURS, THEIRS)
        comparisons += 1


def resize(kind, rnd, backing):
    global commands
    size = snapshots(OURS)[1]
    new = rnd.choice([SIZE, SIZE // 2 + 512, SIZE + (3 << 20), SIZE // 3])
    # In version 2 qemu-img can't hide what the backing file has beyond the end.
    if size == new or (backing and size < new and size < SIZE and
                       kind.get("compat") == "0.10"):
        return
    how = ["--preallocation=" + rnd.choice(["off", "metadata", "falloc",
                                            "full"])] if size < new else []
    commands += 1
    both([TOOL, "resize", "-q", "--shrink", "--follow=any", *how, OURS,
          str(new)],
         ["qemu-img", "resize", "-q", "--shrink", *how, "-f", "qcow2", THEIRS,
          str(new)])


def sequence(kind, backing, rnd, steps):
    global commands
    opts = options(kind)
    create(OURS, SIZE, kind, (BASE, "raw") if backing else None)
    # qemu-io compresses only what has no cluster yet.
    run("qemu-io", "-f", "qcow2", "-c", "write -c -P 9 2M 2M", OURS)
    shutil.copy(OURS, THEIRS)
    size = SIZE
    for step in range(steps):
        write(rnd, size)
        have, _ = snapshots(THEIRS)
        what = rnd.choice(["-c", "-c", "-a", "-d"]) if have else "-c"
        if what == "-c":
            name = rnd.choice(["a", "b", "2", "3", "ü x", "long" * 50])
        else:
            # An ID is a name for -a, too, and not for -d.
            name = rnd.choice([s[1] for s in have] + [have[0][0], "none"])
        commands += 1
        done = both([TOOL, "snapshot", what, name, OURS],
                    ["qemu-img", "snapshot", what, name, THEIRS])
        if not done and what == "-a" and name != "none":
            # Too narrow refcounts: the tool has changed nothing, and qemu-img
            # has resized the disk already.
            run("qemu-img", "check", "-q", OURS)
            return
        compare("%s, backing %s, step %d: %s %s" % (opts, backing, step, what,
                                                    name))
        if rnd.randrange(3) == 0:
            resize(kind, rnd, backing)
            compare("%s, backing %s, step %d: resize" % (opts, backing, step))
        size = snapshots(OURS)[1]


fill(BASE, SIZE)
for i, kind in enumerate(KINDS):
    for j, backing in enumerate((False, True)):
        if (i + j) % 2 and VOLUME <= 1:
            continue
        rnd = random.Random(SEED * 1000 + i * 2 + j)
        sequence(kind, backing, rnd, int(4 * VOLUME))
print("%d commands, %d comparisons" % (commands, comparisons))
