# SPDX-License-Identifier: BSD-3-Clause
"""What the tests share that hold commands of nbdkit-qcow2-tool against those of
qemu-img.  They are run with the tool's path, and QTEST_DIR, a private folder."""

import json
import os
import random
import subprocess
import sys

TOOL = sys.argv[1]
DIR = os.environ["QTEST_DIR"]
# More of everything: "make check-long".
VOLUME = float(os.environ.get("QTEST_VOLUME", "1"))
SEED = int(os.environ.get("QTEST_SEED", "17"))

# Options of images that can have snapshots.
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
# And of one that can not.
NARROW = {"cluster_size": 4096, "refcount_bits": 1}

SOME_ZEROS = ["write"] * 4 + ["write -z", "write -z -u"]


def path(name):
    return os.path.join(DIR, name)


def run(*cmd, ok=True):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, errors="replace")
    if ok and p.returncode != 0:
        raise SystemExit("%s: status %d\n%s" % (" ".join(cmd), p.returncode,
                                                p.stdout))
    return p


def both(ours, theirs):
    """Two commands, of which both must succeed or fail; returns which."""
    a, b = run(*ours, ok=False), run(*theirs, ok=False)
    if (a.returncode == 0) != (b.returncode == 0):
        raise SystemExit("%s: %s\nqemu-img: %s" % (" ".join(ours[1:]), a.stdout,
                                                   b.stdout))
    return a.returncode == 0


def info(image):
    return json.loads(run("qemu-img", "info", "--output=json", image).stdout)


def options(kind):
    return ",".join("%s=%s" % i for i in kind.items())


def create(image, size, kind, backing=None):
    """kind: options of qcow2, or another format's name; backing: a file and its
    format.  Returns the format."""
    name, opts = (kind, []) if isinstance(kind, str) else \
        ("qcow2", ["-o", options(kind)])
    back = ["-b", backing[0], "-F", backing[1]] if backing else []
    run("qemu-img", "create", "-q", "-f", name, *opts, *back, image, str(size))
    return name


def fill(file, size):
    """A raw file without zeros that matter."""
    with open(file, "wb") as f:
        f.write(random.Random(1).randbytes(size))


def requests(rnd, nr, size, kinds, counts=(512, 5000, 65536, 300000),
             discard=(512, 512)):
    """Arguments of qemu-io for so many requests: discards begin at multiples of
    the first number, and have as many bytes as the second."""
    args = []
    for _ in range(nr):
        at = rnd.randrange(size)
        count = min(rnd.choice(counts), size - at)
        pattern = rnd.randrange(1, 256)
        kind = rnd.choice(kinds)
        if kind == "write":
            kind = "write -P %d" % pattern
        elif kind == "discard":
            at = at // discard[0] * discard[0]
            count = min(discard[1], size - at)
        args += ["-c", "%s %d %d" % (kind, at, count)]
    return args


def write(args, *images, fmt="qcow2"):
    """The same requests to each."""
    for image in images:
        run("qemu-io", "-f", fmt, *args, image)


def same(a, b, fmt_a="qcow2", fmt_b="qcow2"):
    """Both read the same."""
    run("qemu-img", "compare", "-f", fmt_a, "-F", fmt_b, a, b)


def same_snapshot(name, *images):
    """It reads the same in both."""
    out = [path("sn%d.raw" % i) for i in range(2)]
    for image, raw in zip(images, out):
        run("qemu-img", "convert", "-l", "snapshot.name=" + name, "-O", "raw",
            image, raw)
    run("cmp", *out)
