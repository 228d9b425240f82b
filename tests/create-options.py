# SPDX-License-Identifier: BSD-3-Clause
"""New images of all options, beside those that qemu-img makes of the same."""

import json
import os
import random

import qtest
from qtest import check, equal, path, run, Server

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# Our names of options that QEMU spells otherwise.
OURS = {"cluster_size": "cluster-size", "refcount_bits": "refcount-bits",
        "lazy_refcounts": "lazy-refcounts", "extended_l2": "extended-l2",
        "compression_type": "compression-type"}


PREALLOCATIONS = ("off", "metadata", "falloc", "full")


def kinds():
    """Pairs of a disk size and the options, as QEMU names them."""
    yield 10 * MiB, {}
    for size in (0, 1, 511, 512, 513, 65535, 65536, 123456789, 2 * GiB,
                 16 * TiB):
        yield size, {}
    yield 1 * GiB, {"preallocation": "metadata", "cluster_size": 4096}
    yield 40 * MiB, {"preallocation": "metadata", "cluster_size": 512,
                     "refcount_bits": 64}
    yield 8 * MiB, {"cluster_size": 131072, "extended_l2": "on",
                    "lazy_refcounts": "on", "refcount_bits": 8,
                    "compression_type": "zstd"}
    yield from one_by_one() if qtest.VOLUME > 1 else together()


def together():
    """Each value of each option, several at once."""
    for k, bits in enumerate(range(9, 22)):
        yield 2 * MiB + 1000, {
            "cluster_size": 1 << bits, "refcount_bits": 1 << k % 7,
            "lazy_refcounts": ("on", "off")[k // 2 % 2],
            "compression_type": ("zlib", "zstd")[k % 2],
            "preallocation": PREALLOCATIONS[k % 4]}
    for k, bits in enumerate((9, 12, 16, 21)):
        yield 3 * MiB + 512, {"cluster_size": 1 << bits, "compat": "0.10",
                              "preallocation": PREALLOCATIONS[3 - k]}
    for k, bits in enumerate(range(14, 22)):
        yield 3 * MiB, {"cluster_size": 1 << bits, "extended_l2": "on",
                        "compat": "1.1", "refcount_bits": 1 << (k + 3) % 7,
                        "preallocation": PREALLOCATIONS[k // 2 % 4]}
    yield 0, {"preallocation": "metadata"}


def one_by_one():
    """Each value of each option, most of them alone."""
    for bits in range(9, 22):
        yield 2 * MiB + 1000, {"cluster_size": 1 << bits}
    for bits in (9, 12, 16, 21):
        yield 3 * MiB + 512, {"cluster_size": 1 << bits, "compat": "0.10"}
    for bits in range(14, 22):
        yield 3 * MiB, {"cluster_size": 1 << bits, "extended_l2": "on"}
    for order in range(7):
        yield 7 * MiB, {"refcount_bits": 1 << order}
        yield 3 * MiB, {"refcount_bits": 1 << order, "cluster_size": 512}
        yield 9 * MiB, {"refcount_bits": 1 << order, "extended_l2": "on",
                        "preallocation": "metadata"}
    yield 10 * MiB, {"compat": "0.10"}
    yield 10 * MiB, {"compat": "1.1"}
    for value in ("on", "off"):
        yield 10 * MiB, {"lazy_refcounts": value}
        yield 10 * MiB, {"extended_l2": value}
    for value in ("zlib", "zstd"):
        yield 10 * MiB, {"compression_type": value}
    for value in PREALLOCATIONS:
        yield 6 * MiB + 3000, {"preallocation": value}
        yield 6 * MiB, {"preallocation": value, "compat": "0.10"}
        yield 3 * MiB, {"preallocation": value, "cluster_size": 512}
        yield 6 * MiB, {"preallocation": value, "extended_l2": "on"}
        yield 0, {"preallocation": value}


def spell(options):
    return ["%s=%s" % (OURS.get(k, k), v) for k, v in options.items()]


def info(file):
    """What QEMU says of it that does not depend on the file."""
    d = json.loads(run("qemu-img", "info", "--output=json",
                       file).stdout)
    for key in ("filename", "actual-size", "children", "dirty-flag"):
        d.pop(key, None)
    return d


def space(file):
    return os.stat(file).st_blocks * 512


def beside_qemus(name, file, size, options):
    """Of an image that was just made."""
    theirs = path("qemu.qcow2")
    o = ",".join("%s=%s" % kv for kv in options.items())
    run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", o] if o else []),
        theirs, str(size))
    is_sound(name, file)
    is_now, wanted = info(file), info(theirs)
    check(is_now == wanted, "%s: qemu-img info: %s, not %s" % (name, is_now,
                                                               wanted))
    is_now, most = space(file), space(theirs)
    check(is_now <= most + options.get("cluster_size", 65536),
          "%s: takes %d bytes, with QEMU %d" % (name, is_now, most))
    os.unlink(theirs)


def write_some(name, h, size):
    """Returns what the disk must hold then."""
    rnd = random.Random(name)
    want = bytearray(size)
    equal(qtest.read_all(h), bytes(want), name + ": a new disk")
    for _ in range(12):
        n = min(size, rnd.choice((1, 512, 4096, 70000, 300000)))
        at = rnd.randrange(size - n + 1)
        data = rnd.randbytes(n)
        h.pwrite(data, at)
        want[at:at + n] = data
    h.flush()
    equal(qtest.read_all(h), bytes(want), name + ": what was written")
    return want


def is_sound(name, file):
    p = run("qemu-img", "check", "--output=json", "-f", "qcow2", file,
            ok=False)
    d = json.loads(p.stdout)
    check(p.returncode == 0 and d["check-errors"] == 0 and
          "leaks" not in d and "corruptions" not in d,
          "%s: qemu-img check: %s" % (name, d))


def as_qemu_sees_it(name, file, want):
    raw = path("raw")
    with open(raw, "wb") as f:
        f.write(want)
    p = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, raw,
            ok=False)
    check(p.returncode == 0, "%s: qemu-img compare: %s" % (
        name, p.stdout.decode() + p.stderr.decode()))


def make(size, options):
    name = "%d %s" % (size, options)
    file = path("image.qcow2")
    rounded = -(-size // 512) * 512
    want = None

    qtest.images += 1
    # Until the first client comes others may read it.
    with Server("file=" + file, "create=true", "size=%d" % size,
                *spell(options), readonly=False) as srv:
        beside_qemus(name, file, size, options)
        if 0 < size <= 20 * MiB:
            h = srv.connect()
            check(h.get_size() == rounded, "%s: size %d" % (name,
                                                            h.get_size()))
            want = write_some(name, h, rounded)
            h.shutdown()
    if want is not None:
        is_sound(name, file)
        as_qemu_sees_it(name, file, want)
    os.unlink(file)


for size, options in kinds():
    make(size, options)
qtest.finish("create")
