# SPDX-License-Identifier: BSD-3-Clause
"""The server is killed in the midst of its work, again and again.  The next
one that may write the image frees what was leaked, unasked, while it serves
it.

QTEST_KILLS is how often it is killed, in each image: 7 times QTEST_VOLUME, if
it is not said."""

import json
import os
import random
import time

import qtest
from qtest import path, run, check, Server

KILLS = int(os.environ.get("QTEST_KILLS", qtest.volume(7)))
CLUSTER = 65536
SIZE = 4 << 30
AREA = 64 << 20         # of the disk, so that much is written again
WRITES = 64
LIMIT = 20             # seconds that freeing may take

seen = []               # leaks after each kill


def leaks(file):
    """By qemu-img, while others write it; None: not at one moment."""
    p = run("qemu-img", "check", "-U", "--output=json", "-f", "qcow2", file,
            ok=False)
    if p.returncode not in (0, 3):
        return None
    return json.loads(p.stdout).get("leaks", 0)


def killed(file, rnd, model):
    """What is flushed is in the model from then on."""
    with Server("file=" + file, readonly=False) as srv:
        h = srv.connect()
        for _ in range(WRITES):
            at = rnd.randrange(AREA // CLUSTER)
            if rnd.random() < 0.2:
                h.trim(CLUSTER, at * CLUSTER)
                model.pop(at, None)
            else:
                byte = rnd.randrange(1, 256)
                h.pwrite(bytes([byte]) * CLUSTER, at * CLUSTER)
                model[at] = byte
        h.flush()
        for at in range(64):    # never flushed, and beyond what is compared
            h.pwrite(b"lost" * (CLUSTER // 4), AREA + at * CLUSTER)
        srv.p.kill()
        srv.p.wait()


def freed(what, file):
    """A client comes, and does nothing."""
    with Server("file=" + file, readonly=False) as srv:
        h = srv.connect()
        end = time.monotonic() + LIMIT
        while True:
            n = leaks(file)
            if n == 0 or time.monotonic() > end:
                break
            time.sleep(0.02)
        check(n == 0, "%s: %s leaks are left" % (what, n))
        h.shutdown()
    check(run("qemu-img", "check", "-f", "qcow2", file,
              ok=False).returncode == 0, "%s: not clean" % what)


def compared(what, file, model):
    want = bytearray(AREA)
    for at, byte in model.items():
        want[at * CLUSTER:(at + 1) * CLUSTER] = bytes([byte]) * CLUSTER
    with Server("file=" + file) as srv:
        h = srv.connect()
        got = b"".join(bytes(h.pread(1 << 20, at))
                       for at in range(0, AREA, 1 << 20))
        qtest.equal(got, bytes(want), what)
        h.shutdown()


def create(file, ours):
    if ours:
        with Server("file=" + file, "create=true", "size=%d" % SIZE,
                    readonly=False):
            pass
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", file, str(SIZE))


def exercise(ours, snapshot):
    what = "%s, %s" % ("create=true" if ours else "qemu-img",
                       "with a snapshot" if snapshot else "no snapshot")
    file = path("leaks.qcow2")
    rnd = random.Random(what)
    model = {}
    qtest.images += 1
    create(file, ours)
    if snapshot:
        killed(file, rnd, model)
        freed(what, file)
        run("qemu-img", "snapshot", "-c", "one", file)
        before = dict(model)
    for n in range(KILLS):
        killed(file, rnd, model)
        seen.append(leaks(file))
        if n % 10 == 9 or n == KILLS - 1:
            freed("%s, kill %d" % (what, n), file)
            compared("%s, kill %d" % (what, n), file, model)
    if snapshot:
        run("qemu-img", "snapshot", "-a", "one", file)
        compared(what + ": the snapshot", file, before)
    os.unlink(file)


for ours in (True, False):
    for snapshot in (False, True):
        exercise(ours, snapshot)
check(max(seen) > 0, "nothing was ever leaked: this tests nothing")
print("leaks after a kill: %d at most" % max(seen))
qtest.finish("leaks of killed servers")
