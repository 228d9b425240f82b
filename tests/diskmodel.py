# SPDX-License-Identifier: BSD-3-Clause
"""A disk in memory, and random requests that are made to it and to a server.

Every request goes to both; what the server reads must be what the model
says.  All is derived from the seed of the generator that is given."""

import errno
import mmap
import os

import nbd
import qtest
from qtest import check, equal, fail

requests = 0
kinds = {}          # how often each kind of request was made

# How long a piece is looked at when it may be old or zeros.
PIECE = 512
ZEROS = bytes(1 << 20)


def is_zero(data):
    data = memoryview(data)
    for at in range(0, len(data), len(ZEROS)):
        part = data[at:at + len(ZEROS)]
        if part != ZEROS[:len(part)]:
            return False
    return True


class Memory:
    """The bytes of a disk."""

    def __init__(self, content):
        self.bytes = bytearray(content)
        self.size = len(self.bytes)

    def get(self, at, n):
        return bytes(memoryview(self.bytes)[at:at + n])

    def put(self, at, data):
        self.bytes[at:at + len(data)] = data

    def clear(self, at, n):
        self.bytes[at:at + n] = bytes(n)


class Sparse:
    """The same for a disk that is too large for that, in a sparse file,
    which qemu-img compare takes."""

    def __init__(self, file, size):
        self.file, self.size = file, size
        with open(file, "wb") as f:
            f.truncate(size)
        self.fd = os.open(file, os.O_RDWR)

    def get(self, at, n):
        return os.pread(self.fd, n, at)

    def put(self, at, data):
        os.pwrite(self.fd, data, at)

    def clear(self, at, n):
        """A hole where pages are whole."""
        page = mmap.PAGESIZE
        lo, hi = -(-at // page) * page, (at + n) // page * page
        if lo >= hi:
            os.pwrite(self.fd, bytes(n), at)
            return
        os.pwrite(self.fd, bytes(lo - at), at)
        os.pwrite(self.fd, bytes(at + n - hi), hi)
        if hi > lo:
            self._punch(lo, hi - lo)

    def _punch(self, at, n):
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        keep_size_and_punch = 1 | 2
        r = libc.fallocate(self.fd, keep_size_and_punch, ctypes.c_long(at),
                           ctypes.c_long(n))
        assert r == 0, os.strerror(ctypes.get_errno())


class Disk:
    """A model, and the connections by which its requests are made.

    granule: what a trim zeroes whole: the cluster or subcluster.
    trims: whether whole granules read as zeros afterwards; where not, as
    on version 2 over a backing file, they may also be as they were.
    compressed: clusters of which a trim takes effect only as a whole."""

    def __init__(self, name, content, rnd, cluster=65536, granule=None,
                 trims=True, compressed=()):
        self.name, self.rnd = name, rnd
        self.store = Memory(content) if isinstance(
            content, (bytes, bytearray)) else content
        self.size = self.store.size
        self.cluster, self.granule = cluster, granule or cluster
        self.trims, self.compressed = trims, set(compressed)
        self.handles = []
        self.last = None        # what was asked last, for messages
        self.most = min(4 * cluster, 1 << 22)
        self.block = 1          # less a filter doesn't take
        self.status_block = 1   # nor this in maps

    # -- the other side

    def connect(self, srv, n=2):
        """Requests are spread over n connections: what one has written the
        others must read at once."""
        self.handles = [srv.connect() for _ in range(n)]
        h = self.handles[0]
        ok = check(h.get_size() == self.size, "%s: size %d instead of %d" % (
            self.name, h.get_size(), self.size))
        ok &= check(not h.is_read_only(), "%s: read-only" % self.name)
        if n > 1:
            check(h.can_multi_conn(), "%s: no multi-conn" % self.name)
        return ok

    def disconnect(self):
        """Also from a server that has gone, which was a failure before."""
        for h in self.handles:
            try:
                h.shutdown()
            except nbd.Error:
                pass
        self.handles = []

    def handle(self):
        return self.rnd.choice(self.handles)

    # -- where

    def lengths(self):
        cs, g, rnd = self.cluster, self.granule, self.rnd
        return rnd.choice((1, rnd.randrange(1, 300), 511, 512, 513, 4096,
                           g - 1, g, g + 1, cs - 1, cs, cs, cs + 1, 2 * cs,
                           rnd.randrange(1, 2 * cs), rnd.randrange(
                               1, self.most + 1)))

    def place(self):
        """(offset, length), often at the edges of clusters and subclusters
        and at the end of the disk."""
        rnd, size = self.rnd, self.size
        n = max(1, min(self.lengths(), self.most, size))
        where = rnd.random()
        if where < 0.12:
            return self.blocks(size - n, n, self.block)
        if where < 0.62:
            edge = rnd.choice((self.cluster, self.cluster, self.granule))
            at = rnd.randrange(size // edge + 1) * edge
            at += rnd.choice((-513, -512, -1, 0, 0, 0, 1, 512,
                              -n, -n, -(n // 2)))
        else:
            at = rnd.randrange(size)
        at = max(0, min(at, size - n))
        if rnd.random() < 0.4:                  # sectors
            at = at // 512 * 512
            n = min(max(512, n // 512 * 512), size - at)
        return self.blocks(at, n, self.block)

    def blocks(self, at, n, block):
        """The whole blocks that this lies in."""
        end = min(-(-(at + n) // block) * block, self.size)
        at = at // block * block
        return at, end - at

    def whole(self):
        """Whole clusters or subclusters, a few of them."""
        rnd = self.rnd
        edge = rnd.choice((self.cluster, self.granule))
        at = rnd.randrange(-(-self.size // edge)) * edge
        n = edge * rnd.choice((1, 1, 2, 3, rnd.randrange(1, 9)))
        # Two of the largest clusters are enough to be more than one.
        return at, min(n, max(edge, 1 << 22), self.size - at)

    def data(self, n):
        """What to write: noise, or text-like, or zeros."""
        rnd, r = self.rnd, self.rnd.random()
        if r < 0.08:
            return bytes(n)
        if r < 0.3 or n > 1 << 20:
            piece = rnd.randbytes(4099)
            return (piece * (n // len(piece) + 1))[:n]
        return rnd.randbytes(n)

    # -- requests

    def fua(self, h):
        if self.rnd.random() < 0.12 and h.can_fua():
            return nbd.CMD_FLAG_FUA
        return 0

    def write(self, at=None, n=None, data=None):
        h = self.handle()
        if at is None:
            at, n = self.whole() if self.rnd.random() < 0.2 else self.place()
            n = min(n, self.most)
        if data is None:
            data = self.data(n)
        self.last = "write of %d at %d" % (len(data), at)
        h.pwrite(data, at, self.fua(h))
        self.store.put(at, data)
        return at, len(data)

    def zero(self, at=None, n=None, flags=None):
        h = self.handle()
        if at is None:
            at, n = self.whole() if self.rnd.random() < 0.5 else self.place()
        if not h.can_zero():            # by a filter
            return self.write(at, n, bytes(n))
        if flags is None:
            flags = self.fua(h)
            if self.rnd.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            if self.rnd.random() < 0.25 and h.can_fast_zero():
                flags |= nbd.CMD_FLAG_FAST_ZERO
        self.last = "zero of %d at %d, flags %#x" % (n, at, flags)
        try:
            h.zero(n, at, flags)
        except nbd.Error as e:
            # That it would be slow is an answer, if nothing has changed.
            if not flags & nbd.CMD_FLAG_FAST_ZERO or \
               e.errnum not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            self.last += ", refused"
            kinds["refused"] = kinds.get("refused", 0) + 1
            return at, n
        self.store.clear(at, n)
        return at, n

    def trim(self, at=None, n=None):
        h = self.handle()
        if at is None:
            at, n = self.whole() if self.rnd.random() < 0.7 else self.place()
        if not h.can_trim():            # by a filter
            return self.zero(at, n)
        n = min(n, 1 << 24)
        self.last = "trim of %d at %d" % (n, at)
        old = self.store.get(at, n)
        h.trim(n, at, self.fua(h))
        got = bytes(h.pread(n, at))
        self.trimmed(at, n, old, got)
        self.store.put(at, got)
        return at, n

    def must_be_zero(self, at, n):
        """The part of a trimmed range that has to read as zeros; the last
        granule is whole when its part on the disk is."""
        if not self.trims:
            return at, at
        end = at + n

        def up(x, g):
            return -(-x // g) * g

        def inside(g):
            hi = end if end == self.size else end // g * g
            return up(at, g), max(hi, up(at, g))
        lo, hi = inside(self.granule)
        if self.compressed and self.granule < self.cluster:
            # A part of a compressed cluster can't be given back.
            clo, chi = inside(self.cluster)
            if lo < clo and lo // self.cluster in self.compressed:
                lo = min(clo, hi)
            if hi > max(chi, lo) and (hi - 1) // self.cluster in \
               self.compressed:
                hi = max(chi, lo)
        return lo, max(lo, hi)

    def trimmed(self, at, n, old, got):
        lo, hi = self.must_be_zero(at, n)
        check(is_zero(got[lo - at:hi - at]) if hi > lo else True,
              "%s: %s: not zeros in [%d,%d)" % (self.name, self.last, lo, hi))
        for s in range(0, n, PIECE):
            g, o = got[s:s + PIECE], old[s:s + PIECE]
            if g == o or is_zero(g):
                continue
            for k, (a, b) in enumerate(zip(g, o)):
                if a not in (0, b):
                    fail("%s: %s: byte %d is %d, neither 0 nor %d" % (
                        self.name, self.last, at + s + k, a, b))
                    return

    def read(self, at=None, n=None, h=None):
        if at is None:
            at, n = self.place()
        got = (h or self.handle()).pread(n, at)
        return equal(got, self.store.get(at, n), "%s: read of %d at %d after "
                     "%s" % (self.name, n, at, self.last))

    def around(self, at, n):
        """What was changed, and what is next to it: the place where a copy
        on write goes wrong."""
        more = self.rnd.choice((600, min(self.granule, 1 << 18),
                                min(self.cluster, 1 << 18) + 600))
        lo, n = self.blocks(max(0, at - more), n + 2 * more, self.block)
        hi = lo + n
        step = 1 << 23
        for s in range(lo, hi, step):
            if not self.read(s, min(step, hi - s)):
                return False
        return True

    def flush(self):
        self.handle().flush()

    def prefetch(self):
        h = self.handle()
        if h.can_cache():
            at, n = self.place()
            h.cache(n, at)

    def status(self):
        """An extent may say too little, but never zero of what isn't."""
        at, n = self.place()
        if self.rnd.random() < 0.3:
            at, n = 0, self.size
        h = self.handle()
        at, n = self.blocks(at, n, self.status_block)
        flags = self.rnd.choice((0, 0, nbd.CMD_FLAG_REQ_ONE))
        out = qtest.extents(h, at, at + n, flags, self.name) or []
        for s, e, kind in out:
            if kind in ("zero", "hole") and self.size <= 1 << 28:
                check(is_zero(self.store.get(s, e - s)),
                      "%s: extent [%d,%d) is %s, but there is data, after %s"
                      % (self.name, s, e, kind, self.last))
        return out

    def one(self):
        """A request of any kind.  False: it went wrong, and the model says
        nothing about the disk any more."""
        global requests
        requests += 1
        kind = self.rnd.choices(
            ("write", "zero", "trim", "read", "status", "flush", "prefetch"),
            (40, 16, 12, 16, 6, 5, 2))[0]
        kinds[kind] = kinds.get(kind, 0) + 1
        where = getattr(self, kind)()
        if kind in ("write", "zero", "trim"):
            # Looked at now, or only later, when more has happened to it.
            if self.rnd.random() < 0.6 or "refused" in self.last:
                return self.around(*where)
        return True

    def many(self, n):
        bad = len(qtest.failures)
        try:
            for _ in range(n):
                self.one()
                if len(qtest.failures) > bad:
                    return False
        except nbd.Error as e:
            fail("%s: %s: %s" % (self.name, self.last, e))
            return False
        return True

    def all(self, h=None):
        """The whole disk, by any connection."""
        step = 1 << 22
        for at in range(0, self.size, step):
            if not self.read(at, min(step, self.size - at), h):
                return False
        return True
