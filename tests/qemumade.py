# SPDX-License-Identifier: BSD-3-Clause
"""Images made by qemu-img and filled by qemu-io, over compat x cluster size x
refcount width x extended L2 x compression x backing, held against what was
written and against qemu-img's own reading.  Argument: a part of the list,
as K/N.  Unless QTEST_VOLUME is more than 1, half of the list: most pairs
of choices meet, but not every three."""

import os
import random
import sys

import qtest
from qtest import path, run, verify_image, qemu_map
from streams import noise, text

NOISE, TEXT = path("noise.pat"), path("text.pat")
with open(NOISE, "wb") as f:
    f.write(noise("qemu", 100003))
with open(TEXT, "wb") as f:
    f.write(text("qemu", 100003))
PATTERNS = {NOISE: open(NOISE, "rb").read(), TEXT: open(TEXT, "rb").read()}


def writes(file, size, cs, rnd, compat, has_backing, want, count,
           prealloc=False):
    """qemu-io commands at random, done to WANT (a bytearray) as well."""
    cmds = []
    taken = set()
    n = -(-size // cs)
    kinds = ["write", "write", "comp", "comp", "zero", "zero-unmap"]
    if compat != "0.10" or not has_backing:
        kinds.append("discard")
    if compat != "0.10":
        kinds.append("rewrite-zero")
    todo = [kinds[k] if k < len(kinds) else rnd.choice(kinds)
            for k in range(count)]
    # Compressed ones first: qemu-io 7.2 goes on filling a cluster of
    # compressed data that it has freed and given out again.
    todo.sort(key=lambda kind: kind != "comp")
    for kind in todo:
        if kind in ("comp", "discard", "rewrite-zero"):
            at = rnd.randrange(n) * cs
            length = min(cs, size - at)
            # qemu compresses whole clusters only, and where nothing is yet
            if kind == "comp" and (length < cs or at in taken or prealloc):
                continue
        else:
            at = rnd.randrange(size // 512) * 512
            length = min(rnd.choice((512, 1024, 4096, cs // 2 // 512 * 512,
                                     cs, 2 * cs, 3 * cs + 512)) or 512,
                         size - at)
        taken.update(range(at // cs * cs, at + length, cs))
        if kind in ("write", "comp", "rewrite-zero"):
            pat = TEXT if kind == "comp" else rnd.choice((NOISE, TEXT))
            data = PATTERNS[pat]
            want[at:at + length] = (data * (length // len(data) + 1))[:length]
            cmds.append("write %s -s %s %d %d" % (
                "-c" if kind == "comp" else "", pat, at, length))
            if kind == "rewrite-zero":
                want[at:at + length] = bytes(length)
                cmds.append("write -z %d %d" % (at, length))
        else:
            want[at:at + length] = bytes(length)
            cmds.append({"zero": "write -z %d %d",
                         "zero-unmap": "write -z -u %d %d",
                         "discard": "discard %d %d"}[kind] % (at, length))
    args = []
    for c in cmds:
        args += ["-c", c]
    p = run("qemu-io", "-f", "qcow2", "-d", "unmap", *args, file)
    if b"fail" in p.stdout.lower() or b"error" in p.stdout.lower():
        raise RuntimeError("qemu-io: %s" % p.stdout.decode())


def one(k, compat, cb, bits, extl2, comp, backing):
    rnd = random.Random("qemu-%d" % k)
    cs = 1 << cb
    n = max(8, min(64, (3 << 20) >> cb))
    size = n * cs - rnd.choice((0, 0, 512, cs // 2 // 512 * 512))
    name = "qemu compat=%s cluster=%d bits=%d ext=%d %s backing=%s" % (
        compat, cs, bits, extl2, comp, backing)
    file = path("q%d.qcow2" % k)
    opts = "compat=%s,cluster_size=%d" % (compat, cs)
    if compat != "0.10":
        opts += ",refcount_bits=%d,compression_type=%s" % (bits, comp)
        if extl2:
            opts += ",extended_l2=on"
        if rnd.random() < 0.3:
            opts += ",lazy_refcounts=on"
    prealloc = rnd.random() < 0.2 and not backing
    if prealloc:
        opts += ",preallocation=%s" % rnd.choice(("metadata", "falloc"))
    want = bytearray(size)
    base, args, extra, depth = None, (), [], None
    if backing == "raw":
        base = path("q%d.raw" % k)
        bsize = rnd.choice((size, size * 2 // 3, size + 100000))
        content = bytearray(bsize)
        for i in range(0, bsize, 3 * 65536):
            part = noise("b%d-%d" % (k, i), min(65536, bsize - i))
            content[i:i + len(part)] = part
        with open(base, "wb") as f:
            f.write(content)
        want[:bsize] = content[:size]
        depth = 1
    elif backing == "qcow2":
        base = path("q%db.qcow2" % k)
        bsize = rnd.choice((size, size * 2 // 3 // 512 * 512, size + 102400))
        bcs = rnd.choice((512, 4096, 65536, 1 << 20))
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "cluster_size=%d" % bcs, base, str(bsize))
        below = bytearray(bsize)
        writes(base, bsize, bcs, rnd, "1.1", False, below, 12)
        n0 = min(size, bsize)
        want[:n0] = below[:n0]
    if base:
        extra = ["-b", os.path.basename(base), "-F", backing]
        args = ("follow=beneath",)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, *extra, file,
        str(size))
    writes(file, size, cs, rnd, compat, bool(base), want, 14, prealloc)
    runs = qemu_map(file, size, raw_depth=depth)
    verify_image(name, file, bytes(want), runs, args=args, seed=k,
                 cluster=cs, raw_depth=depth, qmap=False,
                 reads=qtest.volume(20))
    for f in (file, base):
        if f:
            os.unlink(f)


def table():
    k = 0
    widths = (1, 2, 4, 8, 16, 32, 64)
    for cb in range(9, 22):
        for backing in (None, "raw", "qcow2"):
            if cb < 19 or backing != "raw":
                k += 1
                yield k, "0.10", cb, 16, False, "zlib", backing
            for comp in ("zlib", "zstd"):
                k += 1
                yield k, "1.1", cb, widths[k % 7], False, comp, backing
                if cb >= 14 and (cb < 19 or (k & 1)):
                    k += 1
                    yield k, "1.1", cb, widths[k % 7], True, comp, backing


def chosen(row):
    """Of each cluster size and kind of backing file every other row of those
    with this L2, in turn; the version 2 images are few."""
    _, compat, cb, _, extl2, comp, backing = row
    turn = cb + (None, "raw", "qcow2").index(backing) + extl2
    return qtest.VOLUME > 1 or compat == "0.10" or \
        turn % 2 == (comp == "zstd")


part, parts = (int(x) for x in sys.argv[1].split("/"))
for row in filter(chosen, table()):
    if row[0] % parts == part:
        one(*row)
qtest.finish("matrix qemu %s" % sys.argv[1])
