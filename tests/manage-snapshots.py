# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots are made, applied and deleted in images of every kind by the tool,
and these are resized, and a copy by qemu-img: the disk and each snapshot must be the same, and the
lists of them but for the times; qemu-img check must find nothing.

    manage-snapshots.py TOOL
"""

import json
import os
import random
import shutil
import subprocess
import sys

TOOL = sys.argv[1]
DIR = os.environ["QTEST_DIR"]
VOLUME = float(os.environ.get("QTEST_VOLUME", "1"))
OURS = os.path.join(DIR, "ours.qcow2")
THEIRS = os.path.join(DIR, "theirs.qcow2")
BASE = os.path.join(DIR, "base.raw")
SIZE = 6 << 20
commands = comparisons = 0

KINDS = [
    {"cluster_size": 512},
    {"cluster_size": 512, "compat": "0.10"},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"cluster_size": 1024, "refcount_bits": 4},
    {"cluster_size": 65536},
    {"cluster_size": 65536, "compat": "0.10"},
    {"cluster_size": 65536, "extended_l2": "on"},
    {"cluster_size": 16384, "extended_l2": "on", "refcount_bits": 8},
    {"cluster_size": 2097152, "refcount_bits": 32},
    {"cluster_size": 65536, "lazy_refcounts": "on", "compression_type": "zstd"},
]


def run(*cmd, ok=True):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, errors="replace")
    if ok and p.returncode != 0:
        raise SystemExit("%s: status %d\n%s" % (" ".join(cmd), p.returncode,
                                                p.stdout))
    return p


def both(args):
    """The same command on both."""
    global commands
    commands += 1
    a = run(TOOL, *args, OURS, ok=False)
    b = run("qemu-img", *args, THEIRS, ok=False)
    if (a.returncode == 0) != (b.returncode == 0):
        raise SystemExit("%s: %s\nqemu-img: %s" % (args, a.stdout, b.stdout))
    return a.returncode == 0


def write(rnd, offset_limit):
    """The same requests to both."""
    cmds = []
    for _ in range(rnd.randrange(1, 6)):
        at = rnd.randrange(offset_limit)
        count = min(rnd.choice([512, 5000, 65536, 300000]), offset_limit - at)
        kind = rnd.choice(["write -P %d" % rnd.randrange(1, 256)] * 4 +
                          ["write -z", "write -z -u", "discard"])
        if kind == "discard":
            at, count = at >> 21 << 21, 1 << 21
            count = min(count, offset_limit - at)
        cmds += ["-c", "%s %d %d" % (kind, at, count)]
    for image in OURS, THEIRS:
        run("qemu-io", "-f", "qcow2", *cmds, image)


def snapshots(image):
    info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
    return [(s["id"], s["name"], s["vm-state-size"])
            for s in info.get("snapshots", [])], info["virtual-size"]


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
    run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", OURS, THEIRS)
    comparisons += 1
    for id, name, _ in b[0]:
        if names.count(name) > 1:
            continue
        for i, f in enumerate((OURS, THEIRS)):
            run("qemu-img", "convert", "-l", "snapshot.name=" + name, "-O",
                "raw", f, os.path.join(DIR, "sn%d.raw" % i))
        run("cmp", os.path.join(DIR, "sn0.raw"), os.path.join(DIR, "sn1.raw"))
        comparisons += 1


def resize(rnd, backing):
    global commands
    size = snapshots(OURS)[1]
    new = rnd.choice([SIZE, SIZE // 2 + 512, SIZE + (3 << 20), SIZE // 3])
    # qemu-img hides what the backing file has beyond the end, the tool refuses.
    if size == new or (backing and size < new and size < SIZE):
        return
    commands += 1
    a = run(TOOL, "resize", "-q", "--shrink", "--follow=any", OURS, str(new),
            ok=False)
    b = run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", THEIRS,
            str(new), ok=False)
    if (a.returncode == 0) != (b.returncode == 0):
        raise SystemExit("resize %d: %s\nqemu-img: %s" % (new, a.stdout,
                                                          b.stdout))


def sequence(kind, backing, rnd, steps):
    opts = ",".join("%s=%s" % i for i in kind.items())
    back = ["-b", BASE, "-F", "raw"] if backing else []
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, *back, OURS,
        str(SIZE))
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
        done = both(["snapshot", what, name])
        if not done and what == "-a" and name != "none":
            # Too narrow refcounts: the tool has changed nothing, and qemu-img
            # has resized the disk already.
            run("qemu-img", "check", "-q", OURS)
            return
        compare("%s, backing %s, step %d: %s %s" % (opts, backing, step, what,
                                                    name))
        if rnd.randrange(3) == 0:
            resize(rnd, backing)
            compare("%s, backing %s, step %d: resize" % (opts, backing, step))
        size = snapshots(OURS)[1]


with open(BASE, "wb") as f:
    f.write(random.Random(1).randbytes(SIZE))
seed = int(os.environ.get("QTEST_SEED", "17"))
for i, kind in enumerate(KINDS):
    for j, backing in enumerate((False, True)):
        if (i + j) % 2 and VOLUME <= 1:
            continue
        rnd = random.Random(seed * 1000 + i * 2 + j)
        sequence(kind, backing, rnd, int(4 * VOLUME))
print("%d commands, %d comparisons" % (commands, comparisons))
