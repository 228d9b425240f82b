# SPDX-License-Identifier: BSD-3-Clause
"""Overlays of every kind are committed into base images of every kind by the
tool, and copies by qemu-img: the overlay must read as before, and the base must be
as qemu-img's; qemu-img check must find nothing.

    manage-commit.py TOOL
"""

import os
import random
import subprocess
import sys

TOOL = sys.argv[1]
DIR = os.environ["QTEST_DIR"]
VOLUME = float(os.environ.get("QTEST_VOLUME", "1"))
SIZE = 6 << 20
commits = comparisons = 0

KINDS = [
    {"cluster_size": 512},
    {"cluster_size": 512, "compat": "0.10"},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"cluster_size": 1024, "refcount_bits": 1},
    {"cluster_size": 65536},
    {"cluster_size": 65536, "extended_l2": "on"},
    {"cluster_size": 16384, "extended_l2": "on", "refcount_bits": 8},
    {"cluster_size": 2097152, "refcount_bits": 32},
    {"cluster_size": 65536, "lazy_refcounts": "on",
     "compression_type": "zstd"},
]
BASES = ["raw", "qed"] + KINDS


def run(*cmd, ok=True):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, errors="replace")
    if ok and p.returncode != 0:
        raise SystemExit("%s: status %d\n%s" % (" ".join(cmd), p.returncode,
                                                p.stdout))
    return p


def create(kind, path, size, backing=None):
    """Returns its format."""
    name = kind if isinstance(kind, str) else "qcow2"
    opts = [] if isinstance(kind, str) else [
        "-o", ",".join("%s=%s" % i for i in kind.items())]
    back = ["-b", os.path.basename(backing[0]), "-F", backing[1]] \
        if backing else []
    run("qemu-img", "create", "-q", "-f", name, *opts, *back, path, str(size))
    return name


def write(rnd, path, name, size):
    cmds = []
    if name == "qcow2":
        # qemu-io compresses only what has no cluster yet.
        cmds = ["-c", "write -c -P 9 2M 2M"]
    for _ in range(rnd.randrange(3, 12)):
        at = rnd.randrange(size)
        count = min(rnd.choice([512, 5000, 65536, 300000]), size - at)
        kind = rnd.choice(["write -P %d" % rnd.randrange(1, 256)] * 4 +
                          ["write -P 0", "write -z", "write -z -u"])
        cmds += ["-c", "%s %d %d" % (kind, at, count)]
    run("qemu-io", "-f", name, *cmds, path)


def same(a, name_a, b, name_b):
    global comparisons
    comparisons += 1
    run("qemu-img", "compare", "-f", name_a, "-F", name_b, a, b)


def chain(top, base, depth, seed):
    """Make base, images between, and the top one; each side has its own."""
    rnd = random.Random(seed)
    # qemu-img is no witness for QED that grows beside others.
    size = SIZE if base == "qed" else rnd.choice([SIZE, SIZE, SIZE - (1 << 20),
                                                  SIZE + 70000 // 512 * 512])
    for side in "ours", "theirs":
        d = os.path.join(DIR, side)
        os.makedirs(d, exist_ok=True)
        r = random.Random(seed)
        below = (os.path.join(d, "base"), None)
        below = (below[0], create(base, below[0], size))
        write(r, *below, size)
        for i in range(depth):
            path = os.path.join(d, "top" if i == depth - 1 else "mid%d" % i)
            name = create(top, path, SIZE, below)
            write(r, path, name, SIZE)
            below = (path, name)
        if side == "ours":
            run("qemu-img", "convert", "-O", "raw", path,
                os.path.join(DIR, "content.raw"))
    return "qcow2" if not isinstance(base, str) else base


def commit(top, base, depth, seed):
    global commits
    name = chain(top, base, depth, seed)
    ours, theirs = (os.path.join(DIR, side) for side in ("ours", "theirs"))
    keep = seed % 3 == 0
    args = ["-d"] if keep else []
    if depth > 1:
        args = ["-b", "base"]
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
    content = os.path.join(DIR, "content.raw")
    same(os.path.join(ours, "top"), "qcow2", content, "raw")
    if depth == 1 and not keep:
        m = run("qemu-img", "map", "--output=json", os.path.join(ours, "top"))
        if '"depth": 0, "present": true' in m.stdout:
            raise SystemExit("not emptied: " + m.stdout)


seed = int(os.environ.get("QTEST_SEED", "17"))
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
