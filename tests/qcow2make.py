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

import os
import random
import struct
from collections import namedtuple

from streams import ENDLESS_FORMS, deflate_stream, noise, text, zstd_stream

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
