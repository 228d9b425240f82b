# SPDX-License-Identifier: BSD-3-Clause
"""Requests to the same few clusters from many connections at once, and what
each unit of the disk may hold then.

Each write puts its number and the unit's into every 16 bytes of each unit
(a sector, or less where requests of parts of sectors meet in one).  When it
began and was answered is known, so that for each value that is read it is
known whether the unit can have had it: a value is gone when another request
that has replaced it began after the one that wrote it was answered, and was
answered before the reading began."""

import select
import struct
import time

import nbd
import qtest
from qtest import equal, fail

requests = 0
reads_checked = 0
torn = 0


class Change:
    """A request that changes units: from when to when; whether it is sure
    to, which a trim of a part of a cluster is not; and whether a flush that
    came later was answered, so that it can't be lost any more."""
    __slots__ = ("start", "end", "ident", "sure", "stable")

    def __init__(self, ident, sure=True):
        self.start, self.end, self.ident = time.monotonic_ns(), None, ident
        self.sure, self.stable = sure, False


class Units:
    """What each unit of a disk may hold."""

    def __init__(self, content, unit):
        self.unit, self.n = unit, len(content) // unit
        self.size = self.n * unit
        self.base(content)

    def base(self, content):
        """All is quiet, and this is what the disk holds."""
        self.content = bytes(content)
        self.changes = [()] * self.n

    def stamp(self, ident, first, n):
        rep = self.unit // 16
        return b"".join(struct.pack("<QQ", ident, first + k) * rep
                        for k in range(n))

    def begin(self, change, first, n):
        """The changes of a unit are lists of [change, when it was seen]: who
        reads a number knows that its write has happened to this unit."""
        for k in range(first, first + n):
            if not self.changes[k]:
                self.changes[k] = []
            self.changes[k].append([change, None])

    @staticmethod
    def done(c, seen):
        """By when it had certainly happened."""
        if c.end is None or seen is None:
            return seen if c.end is None else c.end
        return min(c.end, seen)

    def legal(self, k, value, began, crash=False):
        """Why unit k can't have this value for one who began to read it
        then; None if it can.  After a crash only what was flushed is sure to
        have replaced something."""
        unit, changes = self.unit, self.changes[k]
        old = self.content[k * unit:(k + 1) * unit]
        if value == old and not changes:
            return None
        ident = None
        if value == bytes(unit):
            ident = 0
        else:
            a, b = struct.unpack("<QQ", value[:16])
            if value == value[:16] * (unit // 16) and b == k:
                ident = a
        if ident is None and value != old:
            return "torn or foreign"
        last = -1               # whatever was over before this is replaced
        for c, seen in changes:
            done = self.done(c, seen)
            if c.sure and done is not None and done < began and \
               (c.stable or not crash):
                last = max(last, c.start)
        if value == old and last < 0:
            return None
        known = value == old
        for c, seen in changes:
            if c.ident == ident:
                known = True
                done = self.done(c, seen)
                if done is None or done >= last:
                    return None
        return "replaced long ago" if known else "unknown"

    def saw(self, k, value, ended):
        if not self.changes[k] or value == bytes(self.unit):
            return
        ident = struct.unpack("<Q", value[:8])[0]
        for entry in self.changes[k]:
            c, seen = entry
            if c.ident == ident:
                if seen is None or ended < seen:
                    entry[1] = ended
                return

    def check(self, first, data, began, ended, what, quiet=False):
        global reads_checked, torn
        unit = self.unit
        for i in range(len(data) // unit):
            k, value = first + i, data[i * unit:(i + 1) * unit]
            why = self.legal(k, value, began)
            reads_checked += 1
            if why is None:
                self.saw(k, value, ended)
                continue
            if not quiet and self.meets(k, began) and \
               self.mixture(k, value, began):
                # The kernel, too, copies a page to one that reads it while
                # another one writes it.
                torn += 1
                continue
            fail("%s: unit %d (offset %d): %s: %s...\n%s" % (
                what, k, k * unit, why, value[:32].hex(), self.story(k)))
            return False
        return True

    def meets(self, k, began):
        return any(c.end is None or c.end >= began
                   for c, _ in self.changes[k])

    def mixture(self, k, value, began):
        """Each 16 bytes of it are those of a legal value."""
        rep, old = self.unit // 16, self.content
        for i in range(rep):
            part = value[i * 16:i * 16 + 16]
            whole = part * rep
            if part == old[k * self.unit + i * 16:][:16]:
                whole = old[k * self.unit:(k + 1) * self.unit]
            if self.legal(k, whole, began) is not None:
                return False
        return True

    def story(self, k):
        lines = ["  now %d" % time.monotonic_ns()]
        for c, _ in self.changes[k][-12:]:
            lines.append("  %d from %s to %s%s%s" % (
                c.ident, c.start, c.end, "" if c.sure else ", perhaps",
                ", flushed" if c.stable else ""))
        return "\n".join(lines)


class Flight:
    """A request under way."""
    __slots__ = ("cookie", "kind", "first", "n", "buf", "began", "changes",
                 "runs", "fua")


class Load:
    """Connections with requests in flight, in one thread."""

    def __init__(self, name, srv, units, rnd, connections, depth, cluster,
                 granule, trims=True, compressed=False, serial=0,
                 may_fail=()):
        """may_fail: the errors that requests may end with."""
        self.name, self.units, self.rnd = name, units, rnd
        self.cluster, self.granule = cluster, granule
        self.trims = trims
        # Of a compressed cluster only the whole can be trimmed.
        self.sure = cluster if compressed else granule
        self.depth = depth
        self.handles = [srv.connect() for _ in range(connections)]
        self.flights = [[] for _ in self.handles]
        self.serial = serial    # of the last write
        self.answers = 0
        self.may_fail, self.failures = may_fail, 0
        self.flush_failed = False
        # Of a large disk a part at a time, so that requests still meet.
        self.window = min(units.n, 256 * cluster // units.unit)
        self.low = 0
        self.pending = []       # answered, but not flushed
        self.by_fd = {}
        for k, h in enumerate(self.handles):
            self.by_fd[h.aio_get_fd()] = k

    def place(self):
        """Units, most often a part of a cluster next to what others do."""
        rnd, u = self.rnd, self.units.unit
        per = self.cluster // u
        r = rnd.random()
        if r < 0.55:
            n = rnd.choice((1, 1, 2, 8, rnd.randrange(1, per + 1)))
        elif r < 0.75:
            n = self.granule // u * rnd.choice((1, 1, 2, 4))
        elif r < 0.9:
            n = per
        else:
            n = rnd.randrange(1, 2 * per + 1)
        n = max(1, min(n, self.units.n, (1 << 18) // u + 1))
        if self.window < self.units.n and rnd.random() < 0.01:
            self.low = rnd.randrange(self.units.n - self.window) // per * per
        if rnd.random() < 0.5:
            edge = max(1, rnd.choice((self.cluster, self.granule)) // u)
            first = rnd.randrange(self.window // edge + 1) * edge
            first -= rnd.choice((0, 0, 0, n, 1, n // 2))
        else:
            first = rnd.randrange(self.window)
        if self.window < self.units.n and rnd.random() < 0.1:
            first = rnd.randrange(self.units.n)     # another table
        return max(0, min(self.low + first, self.units.n - n)), n

    def start(self, k):
        global requests
        requests += 1
        rnd, u, h = self.rnd, self.units.unit, self.handles[k]
        kind = rnd.choices(("write", "read", "zero", "trim", "flush",
                            "status"), (38, 25, 15, 15, 3, 4))[0]
        first, n = self.place()
        f = Flight()
        f.kind, f.first, f.n, f.changes = kind, first, n, []
        f.buf = f.runs = None
        f.began = time.monotonic_ns()
        at, length = first * u, n * u
        fua = nbd.CMD_FLAG_FUA if rnd.random() < 0.03 else 0
        f.fua = fua != 0
        if kind == "write":
            self.serial += 1
            f.changes = [Change(self.serial)]
            self.units.begin(f.changes[0], first, n)
            f.cookie = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(
                self.units.stamp(self.serial, first, n))), at, flags=fua)
        elif kind == "zero":
            f.changes = [Change(0)]
            self.units.begin(f.changes[0], first, n)
            hole = rnd.choice((0, nbd.CMD_FLAG_NO_HOLE))
            f.cookie = h.aio_zero(length, at, flags=fua | hole)
        elif kind == "trim":
            f.changes = [Change(0), Change(0, sure=False)]
            lo, hi = (x // u for x in self.sure_part(at, at + length))
            if lo >= hi:
                lo = hi = first
            self.units.begin(f.changes[1], first, lo - first)
            self.units.begin(f.changes[0], lo, hi - lo)
            self.units.begin(f.changes[1], hi, first + n - hi)
            f.cookie = h.aio_trim(length, at, flags=fua)
        elif kind == "read":
            f.buf = nbd.Buffer(length)
            f.cookie = h.aio_pread(f.buf, at)
        elif kind == "status":
            f.runs = []
            f.cookie = h.aio_block_status(length, at, self.collect(f.runs))
        else:
            f.cookie = h.aio_flush()
        self.flights[k].append(f)

    def collect(self, runs):
        def cb(context, offset, entries, error):
            runs.extend(entries)
            return 0
        return cb

    def sure_part(self, lo, hi):
        if not self.trims:
            return lo, lo
        g, size = self.sure, self.units.size
        a = -(-lo // g) * g
        b = hi if hi == size else hi // g * g
        return a, max(a, b)

    def finish(self, k):
        """Takes those of connection k that are answered."""
        h, rest, ok = self.handles[k], [], True
        for f in self.flights[k]:
            try:
                if not h.aio_command_completed(f.cookie):
                    rest.append(f)
                    continue
            except nbd.Error as e:
                if e.errnum not in self.may_fail:
                    raise
                self.failed(f)
                continue
            now = time.monotonic_ns()
            self.answered(f, now)
            if f.kind == "read":
                data = bytes(f.buf.to_bytearray())
                ok &= self.units.check(f.first, data, f.began, now,
                                       self.name)
            elif f.kind == "status":
                ok &= self.zeros(f)
        self.flights[k] = rest
        return ok

    def answered(self, f, now):
        self.answers += 1
        for c in f.changes:
            c.end = now
            c.stable = f.fua
        if f.kind == "flush":
            for c in self.pending:
                c.stable |= c.end < f.began
            self.pending = [c for c in self.pending if not c.stable]
        elif not f.fua:
            self.pending += f.changes

    def failed(self, f):
        """It may have been done in part, and is over."""
        self.answers += 1
        self.failures += 1
        self.flush_failed |= f.kind == "flush" or f.fua
        now = time.monotonic_ns()
        for c in f.changes:
            c.end, c.sure = now, False

    def zeros(self, f):
        """What the map calls zeros could be read as zeros."""
        u, at = self.units.unit, f.first * self.units.unit
        end = at + f.n * u
        for length, flags in zip(f.runs[0::2], f.runs[1::2]):
            if flags & 2:
                lo, hi = -(-at // u), min(at + length, end) // u
                for k in range(lo, hi):
                    why = self.units.legal(k, bytes(u), f.began)
                    if why is not None:
                        fail("%s: map: unit %d is no zeros: %s\n%s" % (
                            self.name, k, why, self.units.story(k)))
                        return False
            at += length
        return True

    def wait(self):
        """Until something can be sent or was answered."""
        fds = []
        for k, h in enumerate(self.handles):
            if not self.flights[k]:
                continue
            d = h.aio_get_direction()
            ev = 0
            if d & nbd.AIO_DIRECTION_READ:
                ev |= select.POLLIN
            if d & nbd.AIO_DIRECTION_WRITE:
                ev |= select.POLLOUT
            fds.append((h.aio_get_fd(), ev))
        p = select.poll()
        for fd, ev in fds:
            p.register(fd, ev)
        ready = p.poll(60000)
        if not ready:
            fail("%s: no answer for a minute" % self.name)
            return None
        out = []
        for fd, ev in ready:
            k = self.by_fd[fd]
            h = self.handles[k]
            d = h.aio_get_direction()
            if ev & (select.POLLIN | select.POLLHUP) and \
               d & nbd.AIO_DIRECTION_READ:
                h.aio_notify_read()
            elif ev & select.POLLOUT and d & nbd.AIO_DIRECTION_WRITE:
                h.aio_notify_write()
            out.append(k)
        return out

    def run(self, n, until=None):
        """n requests.  Most of the time all connections are filled up at
        once, so that the server gets bursts.  until: after so many answers
        leave the rest under way."""
        left, ok = n, True
        try:
            while ok and (left > 0 or any(self.flights)):
                low = self.rnd.choice((self.depth // 2, self.depth - 1, 0))
                if left > 0 and sum(map(len, self.flights)) <= \
                   low * len(self.handles):
                    for k in range(len(self.handles)):
                        while left > 0 and len(self.flights[k]) < self.depth:
                            self.start(k)
                            left -= 1
                ready = self.wait()
                if ready is None:
                    return False
                for k in ready:
                    ok &= self.finish(k)
                if until is not None and self.answers >= until:
                    return ok
        except nbd.Error as e:
            fail("%s: %s" % (self.name, e))
            return False
        return ok

    def quiet(self):
        """Nothing is under way: each unit has one of the values that could
        be the last, on every connection the same."""
        began, u = time.monotonic_ns(), self.units
        got = qtest.read_all(self.handles[0])
        ok = u.check(0, got[:u.size], began, time.monotonic_ns(),
                     self.name + ", at rest", quiet=True)
        if len(self.handles) > 1:
            ok &= equal(qtest.read_all(self.handles[-1]), got,
                        "%s: the last connection" % self.name)
        u.base(got[:u.size])
        return ok and got

    def close(self):
        for h in self.handles:
            h.shutdown()
