# SPDX-License-Identifier: BSD-3-Clause
"""Images of every kind get another backing file, or none, by the tool and, a
copy, by qemu-img: the disk must stay what it was, the names recorded must be the
same, and qemu-img check must find nothing.

    manage-rebase.py TOOL
"""

import json
import os
import random
import shutil
import subprocess
import sys

TOOL = sys.argv[1]
VOLUME = float(os.environ.get("QTEST_VOLUME", "1"))
os.chdir(os.environ["QTEST_DIR"])
SIZE = 3 << 20
OURS, THEIRS, WANT = "ours.qcow2", "theirs.qcow2", "want.raw"
commands = comparisons = 0

KINDS = [
    {"cluster_size": 512},
    {"cluster_size": 512, "compat": "0.10"},
    {"cluster_size": 1024, "refcount_bits": 4},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"cluster_size": 65536},
    {"cluster_size": 65536, "compat": "0.10"},
    {"cluster_size": 65536, "extended_l2": "on"},
    {"cluster_size": 16384, "extended_l2": "on", "refcount_bits": 8},
    {"cluster_size": 2097152, "refcount_bits": 32},
    {"cluster_size": 65536, "lazy_refcounts": "on", "compression_type": "zstd"},
]

# Backing files: of other sizes, over one another, with much in common.
BASES = [("base.raw", "raw"), ("short.raw", "raw"), ("long.qcow2", "qcow2"),
         ("mid.qcow2", "qcow2"), ("v2.qcow2", "qcow2"), ("base.qed", "qed")]


def run(*cmd, ok=True):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, errors="replace")
    if ok and p.returncode != 0:
        raise SystemExit("%s: status %d\n%s" % (" ".join(cmd), p.returncode,
                                                p.stdout))
    return p


def write(rnd, fmt, image, size, nr):
    cmds = []
    for _ in range(nr):
        at = rnd.randrange(size)
        count = min(rnd.choice([512, 5000, 65536, 300000]), size - at)
        kind = rnd.choice(["write -P %d" % rnd.randrange(1, 256)] * 4 +
                          ["write -z", "write -z -u"])
        cmds += ["-c", "%s %d %d" % (kind, at, count)]
    run("qemu-io", "-f", fmt, *cmds, image)


def make_bases(rnd):
    run("qemu-img", "create", "-q", "-f", "raw", "base.raw", str(SIZE))
    write(rnd, "raw", "base.raw", SIZE, 30)
    run("qemu-img", "create", "-q", "-f", "raw", "short.raw",
        str(SIZE // 3 + 512))
    write(rnd, "raw", "short.raw", SIZE // 3, 5)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "base.raw",
        "long.qcow2")
    run("qemu-img", "resize", "-q", "long.qcow2", str(2 * SIZE))
    write(rnd, "qcow2", "long.qcow2", 2 * SIZE, 10)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw",
        "mid.qcow2")
    write(rnd, "qcow2", "mid.qcow2", SIZE, 5)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10",
        "v2.qcow2", str(SIZE))
    write(rnd, "qcow2", "v2.qcow2", SIZE, 10)
    run("qemu-img", "create", "-q", "-f", "qed", "base.qed", str(SIZE))
    write(rnd, "qed", "base.qed", SIZE, 10)


def names(image):
    info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
    info.pop("actual-size")
    for gone in "filename", "dirty-flag", "children":
        info.pop(gone, None)
    return info


def compare(what):
    global comparisons
    run("qemu-img", "check", "-q", "-f", "qcow2", OURS)
    if names(OURS) != names(THEIRS):
        raise SystemExit("%s: %s is not %s" % (what, names(OURS),
                                               names(THEIRS)))
    p = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", OURS, WANT,
            ok=False)
    if p.returncode != 0:
        raise SystemExit("%s: %s" % (what, p.stdout))
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
    opts = ",".join("%s=%s" % i for i in kind.items())
    back = ["-b", first[0], "-F", first[1]] if first else []
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, *back, OURS,
        str(SIZE))
    run("qemu-io", "-f", "qcow2", "-c", "write -c -P 9 2M 1M", OURS)
    write(rnd, "qcow2", OURS, SIZE, 3)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", OURS, WANT)
    shutil.copy(OURS, THEIRS)
    for step in range(steps):
        now = names(OURS).get("backing-filename")
        other = rnd.choice([b for b in BASES if b[0] != now] + [("", None)])
        what = "%s, %s, step %d" % (opts, now, step)
        rebase(what, *other, False)
        if other[0] and rnd.randrange(2):
            # The same file, by another name.
            name = rnd.choice(["./" * rnd.randrange(1, 9), os.getcwd() + "/"])
            rebase(what, name + other[0], other[1], True)


seed = int(os.environ.get("QTEST_SEED", "17"))
make_bases(random.Random(seed))
for i, kind in enumerate(KINDS):
    for j in range(max(1, int(VOLUME))):
        rnd = random.Random(seed * 1000 + i * 10 + j)
        sequence(kind, rnd.choice(BASES + [None]), rnd, 2)
print("%d commands, %d comparisons" % (commands, comparisons))
