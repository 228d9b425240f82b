# SPDX-License-Identifier: BSD-3-Clause
"""Time and memory of a check of large images, beside those of qemu-img.

    check-large.py TOOL [CLUSTERS]
    check-large.py --make FILE CLUSTERS SHUFFLED
"""

import os
import subprocess
import sys
import time

BITS = 16
SIZE = 1 << BITS
COPIED = 1 << 63


def big_endian(words):
    import array
    a = array.array("Q", words)
    a.byteswap()
    return a.tobytes()


def make(file, clusters, shuffled):
    """A version 3 image with so many clusters of data, all holes."""
    import random
    import struct
    tables = -(-clusters // (SIZE // 8))
    l1_clusters = -(-tables * 8 // SIZE)
    data = 1 + l1_clusters + tables
    used = data + clusters
    blocks = 1
    while blocks * (SIZE // 2) < used + blocks + 1:
        blocks += 1
    assert blocks <= SIZE // 8
    table = used + blocks
    order = list(range(clusters))
    if shuffled:
        random.Random(1).shuffle(order)
    with open(file, "wb") as f:
        f.truncate((table + 1) * SIZE)
        f.write(struct.pack(">IIQIIQIIQQIIQQQQII", 0x514649fb, 3, 0, 0, BITS,
                            clusters * SIZE, 0, tables, SIZE, table * SIZE, 1,
                            0, 0, 0, 0, 0, 4, 104))
        f.seek(SIZE)
        f.write(big_endian((1 + l1_clusters + i) * SIZE | COPIED
                           for i in range(tables)))
        f.seek((1 + l1_clusters) * SIZE)
        f.write(big_endian((data + i) * SIZE | COPIED for i in order))
        f.seek(used * SIZE)
        f.write(b"\0\1" * (table + 1))
        f.seek(table * SIZE)
        f.write(big_endian((used + i) * SIZE for i in range(blocks)))


def make_elsewhere(*args):
    """In another process: what this one has counts as a child's at first."""
    subprocess.run([sys.executable, __file__, "--make"] +
                   [str(a) for a in args], check=True)


def measure(*cmd):
    """Seconds, and the most memory in MiB, the better of two runs.  It is at
    least what this process has, some 10 MiB.
    """
    best = []
    for _ in range(2):
        start = time.monotonic()
        p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(p.pid, 0)
        seconds = time.monotonic() - start
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode != 0:
            sys.exit("%s: status %d" % (" ".join(cmd), p.returncode))
        best.append((seconds, usage.ru_maxrss / 1024))
    return min(best)


def compare(name, file):
    theirs = measure("qemu-img", "check", "-f", "qcow2", file)
    ours = measure(TOOL, "check", file)
    print("%-32s %7.2f s %6.1f MiB; qemu-img %7.2f s %6.1f MiB" %
          ((name,) + ours + theirs), flush=True)
    # A machine that is busy with other tests gets some allowance; and what
    # this process has, which both figures may be, varies.
    if ours[0] > 2 * theirs[0] + 1 or ours[1] > theirs[1] + 1:
        print("FAIL: slower, or more memory")
        return 1
    return 0


if sys.argv[1] == "--make":
    make(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True")
    sys.exit(0)

TOOL = sys.argv[1]
CLUSTERS = int(sys.argv[2]) if len(sys.argv) > 2 else 1 << 20
failures = 0
image = os.path.join(os.environ["QTEST_DIR"], "image.qcow2")
make_elsewhere(image, CLUSTERS, False)
failures += compare("%d clusters" % CLUSTERS, image)
make_elsewhere(image, CLUSTERS // 16, True)
failures += compare("%d clusters, in random order" % (CLUSTERS // 16), image)
os.unlink(image)
subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16T"],
               check=True)
failures += compare("16 TiB, empty", image)
os.unlink(image)
subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                "preallocation=metadata", image, "64G"], check=True)
failures += compare("64 GiB, metadata preallocated", image)
sys.exit(failures > 0)
