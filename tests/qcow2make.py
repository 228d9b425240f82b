# SPDX-License-Identifier: BSD-3-Clause
"""An independent writer of qcow2 images, with a model of the disk.

Nothing here is shared with the plugin: the layout is written from the
specification alone, so that a misreading on one side shows up as a
difference.  An image is described by calls (data, zero_plain, compressed,
sub, snapshot ...), then write() lays it out in a file with refcounts that
are right, so that "qemu-img check" is clean unless something was made wrong
on purpose.  render() says what every byte of the disk must be, runs() what
every range of it is.

Host space that the guest must never see is filled with JUNK, so that a
reader which looks there is caught.
"""

import ctypes
import ctypes.util
import os
import random
import struct
import subprocess
import zlib
from collections import namedtuple

MAGIC = 0x514649fb
JUNK = b"\xee"

INCOMPAT_DIRTY = 1 << 0
INCOMPAT_CORRUPT = 1 << 1
INCOMPAT_DATAFILE = 1 << 2
INCOMPAT_COMPTYPE = 1 << 3
INCOMPAT_EXTL2 = 1 << 4
COMPAT_LAZY = 1 << 0
AUTOCLEAR_BITMAPS = 1 << 0

EXT_END = 0
EXT_BACKING_FORMAT = 0xe2792aca
EXT_FEATURES = 0x6803f857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537be77
EXT_DATAFILE = 0x44415441

COPIED = 1 << 63
COMPRESSED = 1 << 62


# ---------------------------------------------------------------- contents

def noise(seed, n):
    """Bytes that don't compress."""
    return random.Random("noise-%s" % (seed,)).randbytes(n)


def text(seed, n):
    """Bytes that compress; every sector differs from every other."""
    out = []
    for s in range((n + 511) // 512):
        tag = b"<%s:%d>" % (str(seed).encode(), s)
        out.append((tag * (512 // len(tag) + 1))[:512])
    return b"".join(out)[:n]


# ------------------------------------------------------------ compressors

_zstd = None


def _libzstd():
    global _zstd
    if _zstd is None:
        for name in (ctypes.util.find_library("zstd"), "libzstd.so.1"):
            try:
                lib = ctypes.CDLL(name) if name else None
            except OSError:
                lib = None
            if lib is not None:
                break
        if lib is not None:
            lib.ZSTD_compressBound.restype = ctypes.c_size_t
            lib.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
            lib.ZSTD_compress2.restype = ctypes.c_size_t
            lib.ZSTD_compress2.argtypes = [
                ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
                ctypes.c_char_p, ctypes.c_size_t]
            lib.ZSTD_createCCtx.restype = ctypes.c_void_p
            lib.ZSTD_freeCCtx.argtypes = [ctypes.c_void_p]
            lib.ZSTD_CCtx_setParameter.argtypes = [
                ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
            lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
        _zstd = lib or False
    return _zstd


def zstd_frame(data, level=3, checksum=False, content_size=True):
    lib = _libzstd()
    if not lib:
        cmd = ["zstd", "-q", "-c", "-%d" % level,
               "--check" if checksum else "--no-check"]
        if not content_size:
            cmd.append("--no-content-size")
        return subprocess.run(cmd, input=data, stdout=subprocess.PIPE,
                              check=True).stdout
    cctx = lib.ZSTD_createCCtx()
    try:
        lib.ZSTD_CCtx_setParameter(cctx, 100, level)
        lib.ZSTD_CCtx_setParameter(cctx, 200, 1 if content_size else 0)
        lib.ZSTD_CCtx_setParameter(cctx, 201, 1 if checksum else 0)
        bound = lib.ZSTD_compressBound(len(data))
        buf = ctypes.create_string_buffer(bound)
        n = lib.ZSTD_compress2(cctx, buf, bound, data, len(data))
        if lib.ZSTD_isError(n):
            raise RuntimeError("zstd failed")
        return buf.raw[:n]
    finally:
        lib.ZSTD_freeCCtx(cctx)


def zstd_skippable(n=9):
    return struct.pack("<II", 0x184D2A53, n) + b"S" * n


ZSTD_FORMS = ("plain", "frames", "checksum", "nosize", "skippable",
              "skip-end", "strong", "empty-first", "fast")


def zstd_stream(data, form):
    half = len(data) // 3
    if form == "plain":
        return zstd_frame(data)
    if form == "frames":
        return (zstd_frame(data[:half]) + zstd_frame(data[half:half + 1]) +
                zstd_frame(data[half + 1:]))
    if form == "checksum":
        return zstd_frame(data, checksum=True)
    if form == "nosize":
        return (zstd_frame(data[:half], content_size=False) +
                zstd_frame(data[half:], content_size=False, checksum=True))
    if form == "skippable":
        return (zstd_skippable() + zstd_frame(data[:half]) +
                zstd_skippable(0) + zstd_frame(data[half:]))
    if form == "skip-end":
        return zstd_frame(data) + zstd_skippable(40)
    if form == "strong":
        return zstd_frame(data, level=19)
    if form == "empty-first":
        return zstd_frame(b"") + zstd_frame(data)
    if form == "fast":
        return zstd_frame(data, level=-5)
    raise ValueError(form)


DEFLATE_FORMS = ("plain", "best", "stored", "fixed", "huffman", "rle",
                 "unterminated", "sync", "blocks", "longer")

# These have no final block.  A decoder that is still looking at its input
# when the output is full would take what follows for the next block, so the
# stream has to end where the sectors of the cluster end.
ENDLESS_FORMS = ("unterminated", "sync")


def deflate_stream(data, form):
    """Raw deflate in a window of 4 KiB, in one of several shapes."""
    def go(d, level=6, strategy=zlib.Z_DEFAULT_STRATEGY, last=zlib.Z_FINISH):
        c = zlib.compressobj(level, zlib.DEFLATED, -12, 8, strategy)
        return c.compress(d) + c.flush(last)

    if form == "plain":
        return go(data)
    if form == "best":
        return go(data, 9)
    if form == "stored":
        return go(data, 0)
    if form == "fixed":
        return go(data, 6, zlib.Z_FIXED)
    if form == "huffman":
        return go(data, 6, zlib.Z_HUFFMAN_ONLY)
    if form == "rle":
        return go(data, 6, zlib.Z_RLE)
    if form == "unterminated":
        # No final block and not one byte more than is needed to fill the
        # output: the reader runs out of input when it has everything.
        s = go(data, 6, last=zlib.Z_SYNC_FLUSH)
        return s[:-4] if s.endswith(b"\0\0\xff\xff") else s
    if form == "sync":
        return go(data, 6, last=zlib.Z_FULL_FLUSH)
    if form == "blocks":
        c = zlib.compressobj(6, zlib.DEFLATED, -12)
        out, step = b"", max(1, len(data) // 5)
        for i in range(0, len(data), step):
            out += c.compress(data[i:i + step]) + c.flush(zlib.Z_SYNC_FLUSH)
        return out + c.flush()
    if form == "longer":
        # Yields more than a cluster; decoding stops when that is full.
        return go(data + text("overrun", 700))
    raise ValueError(form)


# ------------------------------------------------------------------ layers

Entry = namedtuple("Entry", "kind host data bitmap sectors csize")


class Raw:
    """A raw file as a layer."""

    def __init__(self, path, content=None):
        self.path = path
        self.backing = None
        if content is not None:
            with open(path, "wb") as f:
                f.truncate(len(content))
                step = 65536
                for i in range(0, len(content), step):
                    part = content[i:i + step]
                    if part.count(0) != len(part):
                        f.seek(i)
                        f.write(part)
        self.filesize = os.path.getsize(path)

    @property
    def size(self):
        # The last sector counts as whole: what the file lacks is zeros.
        return (self.filesize + 511) // 512 * 512

    def render(self, limit=None):
        with open(self.path, "rb") as f:
            d = bytearray(f.read())
        d.extend(bytes(self.size - len(d)))
        return d

    def runs(self):
        out, pos, end = [], 0, self.filesize
        fd = os.open(self.path, os.O_RDONLY)
        try:
            while pos < end:
                try:
                    d = os.lseek(fd, pos, os.SEEK_DATA)
                except OSError:
                    d = end
                if d > pos:
                    out.append((pos, min(d, end), "hole"))
                    pos = d
                if pos >= end:
                    break
                h = min(os.lseek(fd, pos, os.SEEK_HOLE), end)
                out.append((pos, h, "data"))
                pos = h
        finally:
            os.close(fd)
        return merge(out)


def merge(runs):
    out = []
    for s, e, k in runs:
        if s >= e:
            continue
        if out and out[-1][2] == k and out[-1][1] == s:
            out[-1] = (out[-1][0], e, k)
        else:
            out.append((s, e, k))
    return out


def clip(runs, lo, hi):
    """The part of runs in [lo, hi); what they don't cover is a hole."""
    out, pos = [], lo
    for s, e, k in runs:
        if e <= lo or s >= hi:
            continue
        s, e = max(s, lo), min(e, hi)
        if s > pos:
            out.append((pos, s, "hole"))
        out.append((s, e, k))
        pos = e
    if pos < hi:
        out.append((pos, hi, "hole"))
    return out


class L2:
    def __init__(self, entries=None):
        self.entries = dict(entries or {})
        self.host = None
        self.shared = False


class Snapshot:
    def __init__(self, l1, disk_size, id, name, date, nsec, clock, vmstate,
                 extra, vm32):
        self.l1 = l1
        self.disk_size = disk_size
        self.id = id
        self.name = name
        self.date = date
        self.nsec = nsec
        self.clock = clock
        self.vmstate = vmstate
        self.vm32 = vm32
        self.extra = extra
        self.host = None
        self.l1_bytes = None        # override, for damage
        self.entry_offset = None


class Qcow2:
    """One image.  Guest clusters are named by their index."""

    def __init__(self, path, size, cluster_bits=16, version=3,
                 refcount_order=4, extl2=False, comp="deflate",
                 header_length=None, unknown_fields=None, comptype_field=None,
                 incompat=0, compat=0, autoclear=0, exts=(), features=True,
                 end_marker=True, backing=None, backing_name=None,
                 backing_format=None, name_gap=0, name_offset=None,
                 l1_extra=0, layout="linear", seed=0, crypt=0):
        self.path = path
        self.header_size = size
        self.size = size // 512 * 512
        self.cluster_bits = cluster_bits
        self.cs = 1 << cluster_bits
        self.version = version
        self.order = 4 if version == 2 else refcount_order
        self.refmax = (1 << (1 << self.order)) - 1
        self.extl2 = extl2
        self.comp = comp
        self.incompat = incompat
        if extl2:
            self.incompat |= INCOMPAT_EXTL2
        if comp == "zstd":
            self.incompat |= INCOMPAT_COMPTYPE
        self.compat, self.autoclear = compat, autoclear
        if header_length is None:
            header_length = 72 if version == 2 else 112
        self.header_length = header_length
        self.unknown_fields = unknown_fields
        self.comptype_field = comptype_field
        self.exts = list(exts)
        self.features = features
        self.end_marker = end_marker
        self.backing = backing
        if backing_name is None and backing is not None:
            backing_name = os.path.basename(backing.path)
        if isinstance(backing_name, str):
            backing_name = os.fsencode(backing_name)
        self.backing_name = backing_name
        self.backing_format = backing_format
        self.name_gap = name_gap
        self.name_offset = name_offset
        self.l1_extra = l1_extra
        self.layout = layout
        self.crypt = crypt
        self.rnd = random.Random("layout-%s" % seed)
        self.seed = seed
        self.sub_bits = cluster_bits - 5 if extl2 else cluster_bits
        self.l2n = self.cs // (16 if extl2 else 8)
        self.active = {}            # L1 index -> L2
        self.snapshots = []
        self.next = 1               # next host cluster never used
        self.pool = []
        self.blobs = {}             # host offset -> bytes
        self.extra_refs = []        # (host offset, bytes) of other metadata
        self.arena = None           # [position, end] for compressed data
        self.arena_use = {}
        self.tail = None
        self.tail_cut = None

    # -- host space

    def alloc(self):
        if self.layout == "linear":
            n = self.next
            self.next += 1
            return n * self.cs
        if not self.pool:
            self.pool = list(range(self.next, self.next + 16))
            self.next += 16
            self.rnd.shuffle(self.pool)
            if len(self.pool) > 4:
                self.pool.pop()     # one stays free, with junk in it
        return self.pool.pop() * self.cs

    def alloc_run(self, n):
        first = self.next
        self.next += n
        return first * self.cs

    def reserve(self, data):
        """Clusters for other metadata (bitmaps ...), with one reference."""
        n = max(1, -(-len(data) // self.cs))
        host = self.alloc_run(n)
        self.blobs[host] = data
        self.extra_refs.append((host, n * self.cs))
        return host

    # -- guest space

    def _set(self, ci, entry):
        i, j = divmod(ci, self.l2n)
        l2 = self.active.get(i)
        if l2 is None:
            l2 = self.active[i] = L2()
        elif l2.shared:
            l2 = self.active[i] = L2(l2.entries)
        if entry is None:
            l2.entries.pop(j, None)
        else:
            l2.entries[j] = entry

    def _get(self, ci):
        l2 = self.active.get(ci // self.l2n)
        return l2.entries.get(ci % self.l2n) if l2 else None

    @property
    def clusters(self):
        return -(-self.size // self.cs)

    def pattern(self, ci, compressible=False):
        f = text if compressible else noise
        return f("%s-%d" % (self.seed, ci), self.cs)

    def data(self, ci, data=None):
        if self.extl2:
            return self.sub(ci, "d" * 32, data=data)
        data = self.pattern(ci) if data is None else data
        host = self.alloc()
        self.blobs[host] = data
        self._set(ci, Entry("data", host, data, 0, 0, 0))

    def tail_data(self, ci, keep, data=None):
        """A data cluster that becomes the last of the file, which is cut
        after KEEP bytes of it; the rest of it must read as zeros."""
        data = self.pattern(ci) if data is None else data
        data = data[:keep] + bytes(self.cs - keep)
        bitmap = 0xffffffff if self.extl2 else 0
        kind = "sub" if self.extl2 else "data"
        self.tail, self.tail_cut = ci, keep
        self._set(ci, Entry(kind, "tail", data, bitmap, 0, 0))

    def unmap(self, ci):
        self._set(ci, None)

    def empty_l2(self, ci):
        """A L2 table with nothing in it."""
        i = ci // self.l2n
        if i not in self.active:
            self.active[i] = L2()

    def zero_plain(self, ci):
        if self.extl2:
            return self.sub(ci, "z" * 32, host=False)
        self._set(ci, Entry("zplain", 0, None, 0, 0, 0))

    def zero_alloc(self, ci):
        if self.extl2:
            return self.sub(ci, "z" * 32, host=True)
        host = self.alloc()
        self.blobs[host] = JUNK * self.cs
        self._set(ci, Entry("zalloc", host, None, 0, 0, 0))

    def sub(self, ci, states, data=None, host=None):
        """states: 32 letters, d(ata) z(ero) u(nallocated)."""
        assert self.extl2 and len(states) == 32
        bitmap = 0
        for k, c in enumerate(states):
            if c == "d":
                bitmap |= 1 << k
            elif c == "z":
                bitmap |= 1 << (32 + k)
        if host is None:
            host = "d" in states
        assert host or "d" not in states
        at = 0
        if host:
            data = self.pattern(ci) if data is None else data
            at = self.alloc()
            ss = 1 << self.sub_bits
            self.blobs[at] = b"".join(
                data[k * ss:(k + 1) * ss] if c == "d" else JUNK * ss
                for k, c in enumerate(states))
        self._set(ci, Entry("sub", at, data, bitmap, 0, 0))

    def compressed(self, ci, form="plain", data=None, stream=None, slack=0,
                   gap=0, new_arena=False):
        """form: see *_FORMS.  slack: sectors that the size field says too
        much.  gap: bytes left free in front, for odd offsets."""
        data = self.pattern(ci, True) if data is None else data
        if stream is None:
            f = zstd_stream if self.comp == "zstd" else deflate_stream
            stream = f(data, form)
        cb = self.cluster_bits
        field = (1 << (cb - 8)) - 1
        endless = self.comp == "deflate" and form in ENDLESS_FORMS
        if endless:
            slack = 0
        while True:
            if endless and self.arena is not None:
                gap = -(self.arena[0] + len(stream)) % 512
            need = gap + len(stream) + (slack + 1) * 512
            if new_arena or self.arena is None or \
               self.arena[0] + need > self.arena[1]:
                n = max(4, -(-need // self.cs) + 1)
                at = self.alloc_run(n)
                self.arena = [at, at + n * self.cs]
                self.blobs[at] = bytearray(JUNK * (n * self.cs))
                self.arena_base = at
                new_arena = False
                continue
            off = self.arena[0] + gap
            nsec = ((off + len(stream) - 1) >> 9) - (off >> 9) + slack
            nsec = min(nsec, field)
            end = ((off >> 9) + nsec + 1) << 9
            assert off + len(stream) <= end, "stream too long for its field"
            touched = range(off // self.cs, (end - 1) // self.cs + 1)
            if any(self.arena_use.get(c, 0) >= min(self.refmax, 1000)
                   for c in touched):
                # full: go on at the next host cluster
                self.arena[0] = (touched[0] + 1) * self.cs
                continue
            break
        for c in touched:
            self.arena_use[c] = self.arena_use.get(c, 0) + 1
        a = self.blobs[self.arena_base]
        a[off - self.arena_base:off - self.arena_base + len(stream)] = stream
        self.arena[0] = off + len(stream)
        self._set(ci, Entry("comp", off, data, 0, nsec, len(stream)))
        return stream

    def snapshot(self, id, name, disk_size=None, date=1700000000, nsec=5,
                 clock=123456789, vmstate=0, extra_len=24, vm32=None,
                 extra_tail=b""):
        """Freeze the disk as it is now.  extra_len: how much of the extra
        data is recorded (0, 8, 16, 24); extra_tail: unknown bytes behind."""
        for l2 in self.active.values():
            l2.shared = True
        if disk_size is None:
            disk_size = self.size
        extra = struct.pack(">QQQ", vmstate, disk_size,
                            0xffffffffffffffff)[:extra_len] + extra_tail
        if extra_len < 16:
            disk_size = None        # means: that of the image
        s = Snapshot(dict(self.active), disk_size,
                     id.encode() if isinstance(id, str) else id,
                     name.encode() if isinstance(name, str) else name,
                     date, nsec, clock, vmstate, extra,
                     vmstate & 0xffffffff if vm32 is None else vm32)
        self.snapshots.append(s)
        return s

    def resize(self, size):
        self.header_size = size
        self.size = size // 512 * 512

    def bitmap(self, name, granularity_bits=16, flags=2, data_bits=b"\xff"):
        """Adds one persistent bitmap (all in one extension)."""
        if not hasattr(self, "bitmaps"):
            self.bitmaps = []
        nbits = -(-self.size // (1 << granularity_bits))
        nbytes = -(-nbits // 8)
        ncl = max(1, -(-nbytes // self.cs))
        table = []
        for i in range(ncl):
            table.append(0)         # all zeros, unallocated
        host = self.reserve(data_bits[:1] + bytes(self.cs - 1))
        table[0] = host
        toff = self.reserve(struct.pack(">%dQ" % ncl, *table))
        if isinstance(name, str):
            name = name.encode()
        ent = struct.pack(">QIIBBHI", toff, ncl, flags, 1, granularity_bits,
                          len(name), 0) + name
        ent += bytes(-len(ent) % 8)
        self.bitmaps.append(ent)

    # -- layout

    def _entry_words(self, e, refs, active):
        """The one or two words of an L2 entry."""
        if e is None:
            return (0, 0)
        if e.kind == "comp":
            x = 62 - (self.cluster_bits - 8)
            return (COMPRESSED | e.host | e.sectors << x, 0)
        w = e.host
        if e.kind in ("zplain", "zalloc"):
            w |= 1
        if e.host and active and refs.get(e.host // self.cs) == 1:
            w |= COPIED
        return (w, e.bitmap)

    def l1_needed(self, size=None):
        size = self.size if size is None else size
        return -(-size // (self.cs * self.l2n))

    def write(self):
        cs = self.cs
        tables, seen = [], set()
        views = [self.active] + [s.l1 for s in self.snapshots]
        for v in views:
            for i in sorted(v):
                if id(v[i]) not in seen:
                    seen.add(id(v[i]))
                    tables.append(v[i])
        for t in tables:
            t.host = self.alloc()

        def l1_len(view, size):
            n = self.l1_needed(size)
            return max([n] + [i + 1 for i in view])

        self.l1_size = l1_len(self.active, self.header_size) + self.l1_extra
        ncl = -(-self.l1_size * 8 // cs)
        self.l1_offset = self.alloc_run(ncl)
        meta = [(0, cs)] + self.extra_refs
        if ncl:
            meta.append((self.l1_offset, ncl * cs))
        for s in self.snapshots:
            d = self.size if s.disk_size is None else s.disk_size
            s.l1_size = l1_len(s.l1, d)
            n = max(1, -(-s.l1_size * 8 // cs))
            s.host = self.alloc_run(n)
            meta.append((s.host, n * cs))
        self.snap_offset = 0
        snap_table = b""
        if self.snapshots:
            for s in self.snapshots:
                snap_table += bytes(-len(snap_table) % 8)
                s.entry_offset = len(snap_table)
                snap_table += struct.pack(
                    ">QIHHIIQII", s.host, s.l1_size, len(s.id), len(s.name),
                    s.date, s.nsec, s.clock, s.vm32, len(s.extra))
                snap_table += s.extra + s.id + s.name
            snap_table += bytes(-len(snap_table) % 8)
            n = -(-len(snap_table) // cs)
            self.snap_offset = self.alloc_run(n)
            meta.append((self.snap_offset, n * cs))
            for s in self.snapshots:
                s.entry_offset += self.snap_offset
        if hasattr(self, "bitmaps"):
            d = b"".join(self.bitmaps)
            n = -(-len(d) // cs)
            off = self.alloc_run(n)
            self.blobs[off] = d
            meta.append((off, n * cs))
            self.exts.append((EXT_BITMAPS, struct.pack(
                ">IIQQ", len(self.bitmaps), 0, len(d), off)))

        # refcount structures describe themselves: grow until they fit
        per = cs * 8 >> self.order
        ntail = 1 if self.tail is not None else 0
        nblk = ntab = 1
        while True:
            total = self.next + nblk + ntab + ntail
            b = -(-total // per)
            t = -(-b * 8 // cs)
            if (b, t) == (nblk, ntab):
                break
            nblk, ntab = max(b, nblk), max(t, ntab)
        self.reftable_offset = self.alloc_run(ntab)
        self.reftable_clusters = ntab
        blocks = [self.alloc_run(1) for _ in range(nblk)]
        self.refblocks = blocks
        meta.append((self.reftable_offset, ntab * cs))
        meta += [(o, cs) for o in blocks]
        if self.tail is not None:
            host = self.alloc_run(1)
            self.tail_host = host
            for v in tables:
                for j, e in v.entries.items():
                    if e.host == "tail":
                        v.entries[j] = e._replace(host=host)
                        self.blobs[host] = e.data

        # references
        refs = {}

        def ref(off, length):
            for c in range(off // cs, (off + length - 1) // cs + 1):
                refs[c] = refs.get(c, 0) + 1
        for off, length in meta:
            ref(off, length)
        for v in views:
            for t in v.values():
                ref(t.host, cs)
                for e in t.entries.values():
                    if e.kind == "comp":
                        end = ((e.host >> 9) + e.sectors + 1) << 9
                        ref(e.host, end - e.host)
                    elif e.host:
                        ref(e.host, cs)
        self.refs = refs
        top = max(refs.values())
        if top > self.refmax:
            raise ValueError("refcount %d does not fit" % top)

        f = open(self.path, "wb")
        eof = self.next * cs
        f.truncate(eof)
        for off, d in self.blobs.items():
            f.seek(off)
            f.write(d)
        if self.layout != "linear":
            for c in range(1, self.next):
                if c not in refs and c * cs not in self.blobs:
                    f.seek(c * cs)
                    f.write(JUNK * 512)
        active = set(id(t) for t in self.active.values())
        for t in tables:
            words = []
            for j in range(self.l2n):
                w, b = self._entry_words(t.entries.get(j), refs,
                                         id(t) in active)
                words.append(w)
                if self.extl2:
                    words.append(b)
            f.seek(t.host)
            f.write(struct.pack(">%dQ" % len(words), *words))

        def l1_bytes(view, n, is_active):
            out = []
            for i in range(n):
                t = view.get(i)
                w = 0
                if t is not None:
                    w = t.host
                    if is_active and refs[t.host // cs] == 1:
                        w |= COPIED
                out.append(w)
            return struct.pack(">%dQ" % n, *out)
        f.seek(self.l1_offset)
        f.write(l1_bytes(self.active, self.l1_size, True))
        for s in self.snapshots:
            f.seek(s.host)
            f.write(l1_bytes(s.l1, s.l1_size, False))
        if self.snapshots:
            f.seek(self.snap_offset)
            f.write(snap_table)

        f.seek(self.reftable_offset)
        f.write(struct.pack(">%dQ" % nblk, *blocks))
        bits = 1 << self.order
        for k, off in enumerate(blocks):
            blk = bytearray()
            lo, hi = k * per, min((k + 1) * per, max(refs) + 1)
            if bits < 8:
                blk = bytearray(cs)
                for c in range(lo, hi):
                    i = c - lo
                    blk[i * bits >> 3] |= refs.get(c, 0) << (i * bits & 7)
            else:
                n = bits // 8
                for c in range(lo, hi):
                    blk += refs.get(c, 0).to_bytes(n, "big")
            f.seek(off)
            f.write(blk)

        f.seek(0)
        f.write(self.header())
        if self.tail is not None:
            f.truncate(self.tail_host + self.tail_cut)
        f.close()
        return self

    def header(self):
        hl = self.header_length
        exts = b""

        def ext(magic, d):
            return struct.pack(">II", magic, len(d)) + d + bytes(-len(d) % 8)
        if self.backing_format is not None:
            exts += ext(EXT_BACKING_FORMAT, self.backing_format.encode())
        if self.features and self.version >= 3 and self.cs > 512:
            t = b""
            for kind, bit, name in ((0, 0, b"dirty bit"),
                                    (0, 1, b"corrupt bit"),
                                    (0, 2, b"external data file"),
                                    (0, 3, b"compression type"),
                                    (0, 4, b"extended L2 entries"),
                                    (1, 0, b"lazy refcounts"),
                                    (2, 0, b"bitmaps")):
                t += struct.pack("BB46s", kind, bit, name)
            exts += ext(EXT_FEATURES, t)
        for magic, d in self.exts:
            exts += ext(magic, d)
        if self.end_marker:
            exts += struct.pack(">II", EXT_END, 0)
        name_off = name_len = 0
        tail = b""
        if self.backing_name is not None:
            name_len = len(self.backing_name)
            name_off = hl + len(exts) + self.name_gap
            if self.name_offset is not None:
                name_off = self.name_offset
            tail = self.backing_name
        h = struct.pack(">IIQIIQIIQQIIQ", MAGIC, self.version, name_off,
                        name_len, self.cluster_bits, self.header_size,
                        self.crypt, self.l1_size, self.l1_offset,
                        self.reftable_offset, self.reftable_clusters,
                        len(self.snapshots), self.snap_offset)
        if self.version >= 3:
            h += struct.pack(">QQQII", self.incompat, self.compat,
                             self.autoclear, self.order, hl)
        if hl > 104:
            ct = self.comptype_field
            if ct is None:
                ct = 1 if self.comp == "zstd" else 0
            more = bytes([ct]) + bytes(7)
            if self.unknown_fields is not None:
                more += self.unknown_fields
            h += (more + bytes(hl))[:hl - 104]
        h += exts
        if tail:
            h = h[:name_off] + bytes(max(0, name_off - len(h))) + tail
        assert len(h) <= self.cs, "header does not fit"
        return h

    # -- where things are, for those who damage them

    def l1_entry_offset(self, ci):
        return self.l1_offset + ci // self.l2n * 8

    def l2_entry_offset(self, ci):
        return (self.active[ci // self.l2n].host +
                ci % self.l2n * (16 if self.extl2 else 8))

    # -- the model

    def _view(self, snap):
        if snap is None:
            return self.active, self.size
        d = self.size if snap.disk_size is None else snap.disk_size
        return snap.l1, d // 512 * 512

    def render(self, snap=None):
        """All bytes of the disk, as they must be."""
        view, size = self._view(snap)
        out = bytearray(size)
        if self.backing is not None:
            b = self.backing.render()[:size]
            out[:len(b)] = b
        cs, ss = self.cs, 1 << self.sub_bits
        for i, t in view.items():
            for j, e in t.entries.items():
                at = (i * self.l2n + j) * cs
                n = min(cs, size - at)
                if n <= 0:
                    continue
                if e.kind in ("data", "comp"):
                    out[at:at + n] = e.data[:n]
                elif e.kind in ("zplain", "zalloc"):
                    out[at:at + n] = bytes(n)
                else:
                    for k in range(32):
                        lo, hi = k * ss, min((k + 1) * ss, n)
                        if lo >= hi:
                            break
                        if e.bitmap >> k & 1:
                            out[at + lo:at + hi] = e.data[lo:hi]
                        elif e.bitmap >> (32 + k) & 1:
                            out[at + lo:at + hi] = bytes(hi - lo)
        return out

    def runs(self, snap=None):
        """[(start, end, "data"|"zero"|"hole")] over the whole disk.  zero:
        reads as zeros but has its place in the file."""
        view, size = self._view(snap)
        own, pos = [], 0
        cs, ss = self.cs, 1 << self.sub_bits
        for i in sorted(view):
            for j in sorted(view[i].entries):
                e = view[i].entries[j]
                at = (i * self.l2n + j) * cs
                if at >= size:
                    continue
                if at > pos:
                    own.append((pos, at, "none"))
                pos = min(at + cs, size)
                if e.kind == "sub":
                    for k in range(32):
                        if e.bitmap >> k & 1:
                            kind = "data"
                        elif e.bitmap >> (32 + k) & 1:
                            kind = "zero" if e.host else "hole"
                        else:
                            kind = "none"
                        own.append((at + k * ss,
                                    min(at + (k + 1) * ss, size), kind))
                else:
                    own.append((at, pos, {"data": "data", "comp": "data",
                                          "zplain": "hole",
                                          "zalloc": "zero"}[e.kind]))
        if pos < size:
            own.append((pos, size, "none"))
        below = self.backing.runs() if self.backing is not None else []
        out = []
        for s, e, k in merge(own):
            if k == "none":
                out += clip(below, s, e)
            else:
                out.append((s, e, k))
        return merge(out)


def patch(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def be32(n):
    return struct.pack(">I", n)


def be64(n):
    return struct.pack(">Q", n)


def scattered(path, size, clusters, cluster_bits=16):
    """A large disk with data in these guest clusters only, written straight
    into a sparse file: no refcounts, which no reader needs.  Returns what
    tag() puts at the start of each; the rest of a cluster is zeros."""
    img = Qcow2(path, size, cluster_bits=cluster_bits)
    img.write()
    cs, at = img.cs, img.next * img.cs
    tables = {}
    for ci in clusters:
        tables.setdefault(ci // img.l2n, []).append(ci)

    def tag(ci):
        return b"cluster %d of %d\n" % (ci, size)
    with open(path, "r+b") as f:
        for i in sorted(tables):
            f.seek(img.l1_offset + i * 8)
            f.write(be64(at))
            table, at = at, at + cs
            for ci in tables[i]:
                f.seek(table + ci % img.l2n * 8)
                f.write(be64(at | COPIED))
                f.seek(at)
                f.write(tag(ci))
                at += cs
        f.truncate(at)
    return tag


SUB_SHAPES = (
    "d" * 32, "u" * 32, "z" * 32, "du" * 16, "uz" * 16, "dz" * 16,
    "d" + "u" * 31, "u" * 31 + "d", "z" + "u" * 31, "u" * 31 + "z",
    "d" * 16 + "u" * 16, "u" * 16 + "z" * 16, "z" * 8 + "d" * 8 + "u" * 16,
    "dzu" * 10 + "dz")


def fill(img, seed=0, count=None, snapshots=False, first=0):
    """Gives the image clusters of every kind that it can have: first one of
    each, in a random order, then at random."""
    rnd = random.Random("fill-%s" % seed)
    kinds = ["none", "data", "data", "zerodata", "comp", "comp-noise"]
    if img.version >= 3:
        kinds += ["zplain", "zalloc"]
    if img.extl2:
        kinds += ["sub%d" % k for k in range(len(SUB_SHAPES))]
        kinds += ["subrandom", "subhost", "subzhost"]
    forms = list(ZSTD_FORMS if img.comp == "zstd" else DEFLATE_FORMS)
    n = img.clusters if count is None else min(count, img.clusters - first)
    todo = kinds * 2
    rnd.shuffle(todo)
    fi = rnd.randrange(len(forms))
    for k in range(n):
        ci = first + k
        kind = todo[k] if k < len(todo) else rnd.choice(kinds)
        if kind == "data":
            img.data(ci, img.pattern(ci, rnd.random() < 0.2))
        elif kind == "zerodata":
            img.data(ci, bytes(img.cs))
        elif kind == "zplain":
            img.zero_plain(ci)
        elif kind == "zalloc":
            img.zero_alloc(ci)
        elif kind in ("comp", "comp-noise"):
            form = forms[fi % len(forms)]
            fi += 1
            data = img.pattern(ci, True)
            if kind == "comp-noise":
                data = noise("mix%d" % ci, img.cs // 3) + data
                data = data[:img.cs]
            slack = rnd.choice((0, 0, 0, 1, 2)) if img.cluster_bits > 10 else 0
            gap = rnd.choice((0, 0, 1, 7, 100))
            try:
                img.compressed(ci, form, data, slack=slack, gap=gap)
            except AssertionError:
                img.compressed(ci, "plain", text(ci, img.cs))
        elif kind.startswith("sub"):
            rest = kind[3:]
            if rest == "random":
                img.sub(ci, "".join(rnd.choice("dzu") for _ in range(32)))
            elif rest == "host":
                img.sub(ci, "u" * 32, host=True)
            elif rest == "zhost":
                img.sub(ci, "".join(rnd.choice("zu") for _ in range(32)),
                        host=True)
            else:
                img.sub(ci, SUB_SHAPES[int(rest)])
    return img
