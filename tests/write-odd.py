# SPDX-License-Identifier: BSD-3-Clause
"""Random requests to images that are valid, but of a kind that few programs
make: what a writer must not take for granted.

QTEST_VOLUME multiplies how many requests are made; unless it is more than 1
there is one of two or three pairs of what an image can be.
QTEST_ROUNDS multiplies how much is done, each time other requests.
QTEST_ONLY takes a seed that a failure named, and does that alone."""

import os
import random
import shutil
import struct

import diskmodel
import qtest
from qtest import pairs, path, run, check, fail, Server, StartError
from filled import fill
from qcow2make import Qcow2, L2, COPIED

ROUNDS = int(os.environ.get("QTEST_ROUNDS", "1"))
ONLY = os.environ.get("QTEST_ONLY")


def session(name, img, disk, n, args=()):
    try:
        srv = Server("file=" + img.path, *args, readonly=False)
    except StartError as e:
        fail("%s: %s" % (name, e))
        return False
    with srv:
        ok = disk.connect(srv) and disk.many(n) and disk.all()
        disk.disconnect()
    return ok


def leaks(img):
    """What qemu-img check says: its status, how many leaks."""
    p = run("qemu-img", "check", "-f", "qcow2", img.path, ok=False)
    text = (p.stdout + p.stderr).decode()
    return p.returncode, text.count("Leaked cluster"), text


def sound(seed, img, start, flags):
    """The check says what it said at the start, or finds fewer leaks.  flags:
    that COPIED is missing somewhere it may say, and mend, and nothing else is
    wrong."""
    end = leaks(img)
    if flags:
        bad = [line for line in end[2].splitlines()
               if line.startswith(("ERROR", "Leaked")) and
               "OFLAG_COPIED" not in line]
        check(not bad, "%s: qemu-img check: %s" % (seed, bad[:5]))
        run("qemu-img", "check", "-f", "qcow2", "-r", "all", img.path,
            ok=False)
        end = leaks(img)
        start = (0, 0)
    # Leaks are freed, but where something else is odd.
    freed = start[0] == 3 and end[0] in (0, 3) and end[1] <= start[1]
    check(freed or end[:2] == start[:2], "%s: qemu-img check: exit %d: %s" % (
        seed, end[0], end[2][-400:]))


def looked_at(snapshots):
    """Of many of one disk a few, and the last."""
    each = -(-len(snapshots) // 5)
    return [s for s in qtest.some(snapshots, each)
            if s is not snapshots[-1]] + snapshots[-1:]


def same(seed, img, disk, snapshots):
    out = path("odd.out")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", img.path, out)
    qtest.file_equal(out, disk.store.get(0, disk.size),
                     "%s: qemu-img convert" % seed)
    if not snapshots or not img.snapshots:
        return
    # qemu-img makes all of one size, so look through exports as well.
    with Server("file=" + img.path, readonly=False) as srv:
        for s in looked_at(img.snapshots):
            name, want = s.name.decode(), bytes(img.render(s))
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l",
                "snapshot.name=" + name, img.path, out)
            with open(out, "rb") as f:
                got = f.read()
            n = min(len(got), len(want))
            qtest.equal(got[:n], want[:n], "%s: snapshot %s" % (seed, name))
            h = srv.connect("snapshot/" + name)
            qtest.equal(qtest.read_all(h), want, "%s: export of snapshot %s" %
                        (seed, name))
            h.shutdown()


def go(name, img, flags=False, after=None):
    """after: what is done to the file when it is written."""
    img.write()
    if after:
        after(img)
    made = img.path + ".made"
    shutil.copyfile(img.path, made)
    start = leaks(img)
    for turn in range(ROUNDS):
        seed = "%s-%d" % (name, turn)
        if ONLY not in (None, seed):
            continue
        qtest.images += 1
        shutil.copyfile(made, img.path)
        disk = diskmodel.Disk(
            seed, bytes(img.render()), random.Random("odd-" + seed),
            cluster=img.cs, granule=img.cs // 32 if img.extl2 else img.cs,
            compressed=[i * img.l2n + j for i, t in img.active.items()
                        for j, e in t.entries.items() if e.kind == "comp"])
        for last in (False, True):
            if not session(seed, img, disk, qtest.volume(25 if last else 45)):
                break
            sound(seed, img, start, flags)
            same(seed, img, disk, last)


def image(name, clusters, cb=12, filled=True, **kw):
    img = Qcow2(path("odd.qcow2"), clusters << cb, cluster_bits=cb, seed=name,
                **kw)
    return fill(img, seed=name) if filled else img


def clear_copied(img, tables, entries):
    """Nothing says that a cluster is not shared: look at the refcount."""
    with open(img.path, "r+b") as f:
        def clear(at, n, step):
            f.seek(at)
            words = list(struct.unpack(">%dQ" % n, f.read(n * 8)))
            for k in range(0, n, step):
                words[k] &= ~COPIED
            f.seek(at)
            f.write(struct.pack(">%dQ" % n, *words))
        if tables:
            clear(img.l1_offset, img.l1_size, 1)
        if entries:
            for t in img.active.values():
                clear(t.host, img.cs // 8, 2 if img.extl2 else 1)


def copied():
    for (cb, ext), (tables, entries) in pairs(
            ((9, False), (12, False), (16, True)),
            ((1, 0), (0, 1), (1, 1)), 2):
        name = "not-copied-%d-%d%d" % (cb, tables, entries)
        go(name, image(name, 40, cb, extl2=ext), flags=True,
           after=lambda i: clear_copied(i, tables, entries))


def shared():
    """Two places of the disk with one host cluster, and one table for two
    parts of the disk: the refcounts say so, and there is no snapshot."""
    for cb, ext in ((12, False), (16, True)):
        name = "shared-clusters-%d" % cb
        img = image(name, 40, cb, filled=False, extl2=ext)
        for ci in range(0, 30, 3):
            img.data(ci)
            img._set(ci + 1, img._get(ci))
            img._set(ci + 2, img._get(ci))
        img.zero_alloc(30)
        img._set(31, img._get(30))
        go(name, img, flags=True)
    for cb in (9, 10):
        name = "shared-tables-%d" % cb
        img = image(name, 64 << (cb - 9), cb, filled=False)
        img.size = img.header_size = 4 * img.l2n * img.cs
        fill(img, seed=name, count=img.l2n)
        img.active[2] = img.active[0]
        img.active[3] = L2()
        img.data(3 * img.l2n + 1)
        go(name, img, flags=True)


def ends():
    """The file ends in its last cluster; or it goes on with junk."""
    for cb, keep in pairs((9, 12, 16), (1, 511, 512, -2, -1), 3):
        cs = 1 << cb
        keep = {-2: cs // 2, -1: cs - 1}.get(keep, keep)
        name = "tail-%d-%d" % (cb, keep)
        img = image(name, 30, cb, filled=False)
        for ci in range(0, 20, 3):
            img.data(ci)
        img.tail_data(7, keep)
        go(name, img)
    for (cb, ext), (clusters, more) in pairs(
            ((9, False), (12, False), (16, False), (16, True)),
            ((0, 100), (3, 77), (40, 0)), 3):
        more += clusters << cb
        name = "junk-behind-%d-%d-%d" % (cb, ext, more)

        def after(i):
            with open(i.path, "ab") as f:
                f.write(b"\xee" * more)
        go(name, image(name, 34, cb, extl2=ext), after=after)


def tables():
    """Tables with nothing in them, a longer L1 table than needed, clusters
    that are leaked already."""
    for cb, ext in ((9, False), (14, True)):
        name = "empty-tables-%d" % cb
        img = image(name, 40, cb, extl2=ext, l1_extra=100)
        img.size = img.header_size = 3 * img.l2n * img.cs + 512
        img.empty_l2(img.l2n)
        img.empty_l2(2 * img.l2n)
        if img.size < 64 << 20:
            go(name, img)
    for cb in (9, 12):
        name = "leaked-%d" % cb
        img = image(name, 40, cb)
        for k in range(5):
            img.extra_refs.append((img.alloc_run(1 + k), img.cs))
        go(name, img)


def snapshots():
    """Of other sizes than the disk, with the state of a machine behind it,
    all of one disk, and with refcounts as wide as they need to be."""
    for cb, ext in ((9, False), (12, False), (16, True)):
        name = "snapshots-%d" % cb
        img = image(name, 34, cb, extl2=ext)
        img.snapshot("1", "small", vmstate=0)
        img.resize(60 << cb)
        fill(img, seed=name, count=20, first=34)
        img.snapshot("2", "large")
        img.resize((50 << cb) - 512)
        for ci in range(50, 60):
            img.unmap(ci)
        go(name, img)
    for order, n in ((1, 2), (2, 14), (3, 100)):
        name = "%d-snapshots-of-one-disk" % n
        img = image(name, 24, refcount_order=order)
        for ci in range(24):
            if img._get(ci) is not None and img._get(ci).kind == "comp":
                img.data(ci)
        for k in range(n):
            img.snapshot(str(k), "s%d" % k)
        # as many as the refcounts can count: nothing may add one
        go(name, img)


copied()
shared()
ends()
tables()
snapshots()
print("requests: %d" % diskmodel.requests)
qtest.finish("writing odd ones")
