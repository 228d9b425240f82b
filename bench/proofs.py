# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Proofs that an image, read by qemu-nbd once the server has ended, has what
was written, and nothing else has changed."""

import os

from clients import MARKERS
from common import GiB, MiB, QEMU_DEFAULT, die, stamp


ZERO = 2                # base:allocation: reads as zeros


def extents(h, start, end):
    """(offset, length, flags) of all from start to end."""
    out = []

    def extent(context, at, entries, err):
        for n, flags in zip(entries[::2], entries[1::2]):
            out.append((at, min(n, end - at), flags))
            at += n
    while start < end:
        h.block_status(min(end - start, GiB), start, extent)
        start = out[-1][0] + out[-1][1]
    return out


def contents(h, zeros):
    """(offset, bytes) of the disk; without what reads as zeros if
    zeros is false."""
    for start, n, flags in extents(h, 0, h.get_size()):
        if flags & ZERO and not zeros:
            continue
        for at in range(start, start + n, MiB):
            yield at, h.pread(min(MiB, start + n - at), at)


class Wrong(Exception):
    """Says what."""


def changed(bench, h, row, salt):
    """The places of all units of the disk that are not as before.  They have
    to be as a request left them."""
    before = row.before and open(bench.data.path(row.before), "rb")
    for start, b in contents(h, zeros=before is not None):
        old = os.pread(before.fileno(), len(b), start) if before else \
            bytes(len(b))
        if b == old:
            continue
        for i in range(0, len(b), row.bs):
            unit = b[i:i + row.bs]
            if unit == old[i:i + row.bs]:
                continue
            if row.rw == "randwrite":
                good = stamp(start + i, salt)
            else:
                good = bytes(row.bs)
            if unit != good:
                raise Wrong("wrong data at %d" % (start + i))
            yield start + i


def prove_requests(bench, h, row, salt, requests):
    """Each unit of the disk is as before or as a request left it, and
    there are as many of the latter as there were requests."""
    n = sum(1 for _ in changed(bench, h, row, salt))
    if n != requests:
        return "%d requests, but %d of them took effect" % (requests, n)


def prove_copy(bench, h, row, salt, requests):
    with open(bench.data.get("source")[0], "rb") as f:
        for at, b in contents(h, zeros=True):
            if b != f.read(len(b)):
                return "wrong data in the MiB from %d" % at


def prove_zero(bench, h, row, salt, requests):
    for at, n, flags in extents(h, 0, 100 * GiB):
        if not flags & ZERO and h.pread(n, at) != bytes(n):
            return "no zeros at %d" % at
    for at in MARKERS:
        good = stamp(at, salt) if at >= 100 * GiB else bytes(4096)
        if h.pread(4096, at) != good:
            return "wrong data at %d" % at


def prove(bench, row, server, path, salt, requests):
    s = bench.start(QEMU_DEFAULT, path, path)
    h = bench.connect(s)
    try:
        wrong = row.proof(bench, h, row, salt, requests)
    except Wrong as e:
        wrong = str(e)
    h.shutdown()
    s.stop()
    if wrong:
        die("%s, written by %s: %s" % (row.name, server, wrong))
