# SPDX-License-Identifier: BSD-3-Clause
"""QED images of QEMU's making are written, with QEMU as the judge: random
requests to all sizes of clusters and tables, over backing files of every kind;
QEMU writes to them in between; the server is killed.  Arguments: which parts
(matrix, kill).  QTEST_VOLUME multiplies how many images there are."""

import os
import random
import sys

import qtest
from qtest import path, run, check, equal, Server

IMG, BASE = path("w.qed"), path("base")
SIZE = 3 << 20
FLAGS = (0, 0, 0, 1)            # FUA, now and then
KINDS = ("none", "raw", "short", "qcow2", "qed")
ALLOC = [(4096, 2), (4096, 4), (4096, 16), (8192, 2), (65536, 4), (65536, 16),
         (262144, 2), (1 << 20, 4)]


def pattern(rnd, n):
    return bytes([rnd.randrange(1, 256)]) * n


def make(rnd, cell, below):
    """Make the image; returns what is on its disk, and parameters."""
    cluster, table = cell
    size = SIZE - rnd.choice((0, 512, 33 * 512))
    args, fmt = [], None
    disk = bytearray(size)
    for f in (IMG, BASE):
        if os.path.exists(f):
            os.remove(f)
    if below != "none":
        fmt = "raw" if below in ("raw", "short") else below
        length = size if below != "short" else size // 2 // 512 * 512
        run("qemu-img", "create", "-q", "-f", fmt, BASE, str(length))
        cmds = []
        for _ in range(8):
            at = rnd.randrange(length - 200000) & -512
            n = rnd.randrange(1, 200) * 512
            p = rnd.randrange(1, 256)
            cmds += ["-c", "write -P %d %d %d" % (p, at, n)]
            disk[at:at + n] = bytes([p]) * n
        run("qemu-io", "-f", fmt, *cmds, BASE)
        args = ["follow=beneath"]
        if fmt != "raw":
            args.append("backing-format=" + fmt)
    cmd = ["qemu-img", "create", "-q", "-f", "qed", "-o",
           "cluster_size=%d,table_size=%d" % (cluster, table)]
    if fmt is not None:
        cmd += ["-b", BASE, "-F", fmt]
    run(*cmd, IMG, str(size))
    return disk, args


def qemu_writes(rnd, disk):
    at = rnd.randrange(len(disk) - 100000) & -512
    p = rnd.randrange(1, 256)
    run("qemu-io", "-f", "qed", "-c", "write -P %d %d 51200" % (p, at), IMG)
    disk[at:at + 51200] = bytes([p]) * 51200


def place(rnd, disk, cluster):
    """A range: of any bytes, or of whole clusters."""
    if rnd.random() < 0.3:
        at = rnd.randrange(len(disk)) // cluster * cluster
        n = cluster * rnd.randrange(1, 5)
    else:
        at = rnd.randrange(len(disk))
        n = rnd.choice((1, 511, 512, 4096, rnd.randrange(1, 300000)))
    return at, min(n, len(disk) - at)


def request(rnd, h, disk, cluster):
    at, n = place(rnd, disk, cluster)
    fua = rnd.choice(FLAGS)
    kind = rnd.random()
    if kind < 0.6:
        data = pattern(rnd, n)
        h.pwrite(data, at, fua)
        disk[at:at + n] = data
    elif kind < 0.8:
        h.zero(n, at, fua | rnd.choice((0, 2)))    # 2: NO_HOLE
        disk[at:at + n] = bytes(n)
    elif kind < 0.9:
        h.trim(n, at, fua)
        got = h.pread(n, at)
        for i in range(0, n, 4096):    # each piece is gone, or as it was
            a, b = got[i:i + 4096], bytes(disk[at + i:at + i + 4096])
            if a != b:
                check(all(x in (0, y) for x, y in zip(a, b)),
                      "a trim made something else")
        disk[at:at + n] = got
    elif kind < 0.95:
        h.flush()
    else:
        equal(h.pread(n, at), bytes(disk[at:at + n]), "read at %d" % at)


def judged(disk, what, leaks=False):
    p = run("qemu-img", "check", "-f", "qed", IMG, ok=False)
    check(p.returncode in ((0, 3) if leaks else (0,)), "%s: qemu-img check: "
          "exit %d: %s" % (what, p.returncode, (p.stdout + p.stderr)[-300:]))
    out = path("out")
    run("qemu-img", "convert", "-f", "qed", "-O", "raw", IMG, out)
    with open(out, "rb") as f:
        equal(f.read(), bytes(disk), what)


def matrix():
    cells = [(c, b) for c in ALLOC for b in KINDS]
    random.Random("cells").shuffle(cells)
    nr = 0
    for cell, below in cells[:qtest.volume(16)]:
        what = "%s %s" % (cell, below)
        rnd = random.Random("qed-%s" % what)
        disk, args = make(rnd, cell, below)
        if rnd.random() < 0.5:
            qemu_writes(rnd, disk)
        for again in range(2):
            with Server("file=" + IMG, *args, readonly=False) as srv:
                h = srv.connect()
                for _ in range(40):
                    request(rnd, h, disk, cell[0])
                equal(qtest.read_all(h), bytes(disk), what)
                h.shutdown()
            judged(disk, what)
            if again == 0:
                qemu_writes(rnd, disk)
        nr += 1
    print("%d images" % nr)


def kill():
    """What was flushed is there; leaks go when it is opened again."""
    rnd = random.Random("kill")
    tool = os.environ["TOOL"]
    for i in range(qtest.volume(6)):
        cell, below = rnd.choice(ALLOC), rnd.choice(KINDS)
        what = "killed %s %s" % (cell, below)
        disk, args = make(rnd, cell, below)
        for _ in range(2):
            with Server("file=" + IMG, *args, readonly=False) as srv:
                h = srv.connect()
                for _ in range(30):
                    request(rnd, h, disk, cell[0])
                h.flush()
                srv.p.kill()
                srv.p.wait()
            judged(disk, what, leaks=True)
        p = run(tool, "check", IMG, ok=False)
        check(p.returncode in (0, 3), "%s: tool: %s" % (what, p.stderr))
        with Server("file=" + IMG, *args, readonly=False) as srv:
            h = srv.connect()
            h.pwrite(b"x" * 100, 0)
            disk[:100] = b"x" * 100
            h.shutdown()
            srv.stop(quiet=False)       # it tells of the repair
        with open(IMG, "rb") as f:
            f.seek(16)
            check(f.read(1)[0] & 2 == 0, what + ": NEED_CHECK is left")
        judged(disk, what, leaks=True)


for part in sys.argv[1:]:
    globals()[part]()
qtest.finish("qed-write")
