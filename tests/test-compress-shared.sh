#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Several connections have their pieces in the same clusters, which are
# compressed whenever one is complete: reads, extents, zeros, trims, flushes,
# FUA, clients that leave without a flush, and a server that is killed.  What
# was answered is there; what was flushed survives the kill.

. ./functions.sh

requires_python_nbd
requires_qemu

cat > "$tmp/clients.py" <<'PY'
"""clients.py SOCKET OUT PIECE SEED PID: with PID the server is killed.  OUT is
what each piece may hold, by sectors."""
import os
import pickle
import random
import signal
import sys
import threading
import time
import nbd

sock, out, piece, seed, pid = sys.argv[1:]
piece, pid = int(piece), int(pid)
NR, OPS = 4, 400
killed = threading.Event()
errors = []

h = nbd.NBD()
h.connect_unix(sock)
size = h.get_size()
disk = bytes(h.pread(size, 0))
now = [disk[at:at + piece] for at in range(0, size, piece)]
may = [[p] for p in now]       # what it may hold after a crash


def content(rnd, n):
    kind = rnd.randrange(8)
    if kind < 2:
        return rnd.randbytes(n) if kind else bytes(n)
    text = rnd.randbytes(rnd.randrange(8, 60))
    return (text * (n // len(text) + 1))[:n]


class Client:
    def __init__(self, me):
        self.rnd = random.Random("%s-%d" % (seed, me))
        self.mine = range(me, len(now), NR)
        self.at = 0
        self.changed = set()
        self.h = nbd.NBD()
        self.h.add_meta_context("base:allocation")
        self.h.connect_unix(sock)

    def change(self, i, data, call, durable=False):
        may[i].append(data)
        call()
        now[i] = data
        if durable:
            may[i] = [data]
        else:
            self.changed.add(i)

    def write(self, i):
        data = content(self.rnd, len(now[i]))
        fua = self.rnd.randrange(15) == 0
        self.change(i, data, lambda: self.h.pwrite(
            data, i * piece, nbd.CMD_FLAG_FUA if fua else 0), fua)
        self.at += 1

    def zero(self, i):
        n = len(now[i])
        flags = self.rnd.choice((0, nbd.CMD_FLAG_NO_HOLE))
        self.change(i, bytes(n), lambda: self.h.zero(n, i * piece, flags))
        self.at += 1

    def trim(self, i):
        n = len(now[i])
        self.change(i, now[i], lambda: (may[i].append(bytes(n)),
                                        self.h.trim(n, i * piece)))
        after = bytes(self.h.pread(n, i * piece))
        for s in range(0, n, 512):
            if after[s:s + 512] != now[i][s:s + 512] and any(after[s:s + 512]):
                raise ValueError("trimmed: neither zeros nor as before")
        now[i] = after

    def read(self, i):
        if self.h.pread(len(now[i]), i * piece) != now[i]:
            raise ValueError("other data")

    def extents(self, i):
        found = []
        self.h.block_status(len(now[i]), i * piece,
                            lambda m, o, e, err: found.extend(e))
        at = 0
        for length, flags in zip(found[::2], found[1::2]):
            if flags & nbd.STATE_ZERO and any(now[i][at:at + length]):
                raise ValueError("an extent of zeros with data in it")
            at += length

    def flush(self, i):
        self.h.flush()
        for i in self.changed:
            may[i] = [now[i]]
        self.changed.clear()

    def run(self):
        what = ([self.write] * 24 + [self.zero, self.trim] * 2 +
                [self.read] * 4 + [self.extents] * 3 + [self.flush])
        try:
            for _ in range(OPS):
                if self.rnd.randrange(30) == 0:
                    self.at = self.rnd.randrange(len(self.mine))
                i = self.mine[self.at % len(self.mine)]
                self.rnd.choice(what)(i)
            if self.rnd.randrange(2):
                self.h.shutdown()
        except (nbd.Error, ValueError) as e:
            if not killed.is_set():
                errors.append("piece %d, seed %s: %s" % (i, seed, e))


threads = [threading.Thread(target=Client(i).run) for i in range(NR)]
for t in threads:
    t.start()
if pid:
    time.sleep(random.Random(seed).random() * 0.5)
    killed.set()
    os.kill(pid, signal.SIGKILL)
for t in threads:
    t.join()
if errors:
    sys.exit(errors[0])
if not pid:
    if h.pread(size, 0) != b"".join(now):
        sys.exit("other data in the end, seed " + seed)
    may = [[p] for p in now]
    h.shutdown()
with open(out, "wb") as f:
    pickle.dump(may, f)
PY

cat > "$tmp/compare.py" <<'PY'
"""compare.py OUT RAW PIECE"""
import pickle
import sys
piece = int(sys.argv[3])
raw = open(sys.argv[2], "rb").read()
for i, may in enumerate(pickle.load(open(sys.argv[1], "rb"))):
    for s in range(0, len(may[0]), 512):
        at = i * piece + s
        if not any(raw.startswith(m[s:s + 512], at) for m in may):
            sys.exit("other data at %d" % at)
PY

image="$tmp/image.qcow2"
head -c 700000 /dev/urandom > "$tmp/base"

# shared PIECE SIZE PARAMETER...
n=0
shared ()
{
    local piece="$1" size="$2" kill method=zlib
    shift 2
    case "$*" in *zstd*) method=zstd;; esac
    for kill in no yes; do
        n=$(( n + 1 ))
        start_nbdkit -t 8 "$PLUGIN" "$image" create=overwrite size="$size" \
            compress=$method "$@"
        if test $kill = no; then
            "$PYTHON" "$tmp/clients.py" "$sock" "$tmp/may" $piece $n 0 ||
                die "$*"
            stop_nbdkit "$pid"
        else
            "$PYTHON" "$tmp/clients.py" "$sock" "$tmp/may" $piece $n "$pid" ||
                die "$*: until it is killed"
            { wait "$pid" || true; } 2>/dev/null
            forget "$pid"
            qemu-img check -q -f qcow2 -r leaks "$image" >/dev/null 2>&1 ||
                die "$*: more than leaks"
        fi
        check_clean "$image"
        qemu-img convert -f qcow2 -O raw "$image" "$tmp/raw"
        "$PYTHON" "$tmp/compare.py" "$tmp/may" "$tmp/raw" $piece ||
            die "$*: killed: $kill, seed $n"
    done
}

shared 64 60001 cluster-size=512
shared 512 500K cluster-size=4K compat=0.10
shared 512 500K cluster-size=4K refcount-bits=1
shared 8192 3000K compression-type=zstd
shared 8192 3001001 refcount-bits=2
shared 8192 3001001 lazy-refcounts=true preallocation=metadata
shared 16384 3001001 extended-l2=true cluster-size=128K
shared 65536 5M cluster-size=2M
shared 8192 1000001 backing=base backing-format=raw
shared 8192 1000001 backing=base backing-format=raw compat=0.10
shared 4096 1000001 backing=base backing-format=raw extended-l2=true \
    cluster-size=32K compression-type=zstd
