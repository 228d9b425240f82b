# SPDX-License-Identifier: BSD-3-Clause
"""What the Python tests share: a server under test, comparisons, counting.

Run through the test-*.sh scripts, which set PLUGIN and QTEST_DIR (a private
folder that is removed at the end).
"""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib

try:
    import nbd
except ImportError:
    print("SKIP: the Python binding of libnbd (python3-libnbd) is missing")
    sys.exit(77)

PLUGIN = os.environ.get("PLUGIN", "qcow2")
NBDKIT = os.environ.get("NBDKIT", "nbdkit")
DIR = os.environ.get("QTEST_DIR", ".")
BLOCK = 1 << 20
# How much is done of what can be done any number of times: "make check-long"
# asks for more.
VOLUME = float(os.environ.get("QTEST_VOLUME", "1"))
# For work on the writer: hold its images against qemu-img alone.
ONLY_QEMU = "QTEST_ONLY_QEMU" in os.environ
# How many times longer than usual to wait for what may hang: where a whole test
# is given more time, as on a busy machine, so are its parts.
PATIENCE = max(1, float(os.environ.get("TEST_LIMIT", "600")) / 600)

META = nbd.CONTEXT_BASE_ALLOCATION
KINDS = {0: "data", 2: "zero", 3: "hole", 1: "hole-not-zero"}

images = 0
comparisons = 0
failures = []


def path(name):
    return os.path.join(DIR, name)


def volume(n, least=1):
    """So many rounds or requests, times QTEST_VOLUME."""
    return max(least, round(n * VOLUME))


def every_other(k):
    """Whether the k-th of many is one of those that get the longer
    treatment; with more volume all of them do."""
    return VOLUME > 1 or k % 2 == 0


def some(items, each):
    """Of many that repeat each other one of so many; all with more volume."""
    items = list(items)
    return items if VOLUME > 1 else items[::each]


def pairs(one, two, each):
    """Each of both at least once, in one of so many of all pairs; all of them
    with more volume."""
    return [(a, b) for i, a in enumerate(one) for j, b in enumerate(two)
            if VOLUME > 1 or (i + j) % each == 0]


def fail(msg):
    failures.append(msg)
    print("FAIL: %s" % msg, flush=True)
    if len(failures) >= 20:
        finish("stopped")


def check(ok, msg):
    global comparisons
    comparisons += 1
    if not ok:
        fail(msg)
    return ok


def equal(got, want, what):
    """Two byte strings; says where they first differ."""
    global comparisons
    comparisons += 1
    if got == want:
        return True
    if len(got) != len(want):
        fail("%s: length %d instead of %d" % (what, len(got), len(want)))
        return False
    lo, hi = 0, len(got)
    g, w = memoryview(got), memoryview(want)
    while hi - lo > 1:
        mid = (lo + hi) // 2
        if g[lo:mid] == w[lo:mid]:
            lo = mid
        else:
            hi = mid
    fail("%s: differs at byte %d (%#x): %s instead of %s" % (
        what, lo, lo, bytes(g[lo:lo + 16]).hex(), bytes(w[lo:lo + 16]).hex()))
    return False


def finish(name):
    print("%s: %d images, %d comparisons, %d differences" % (
        name, images, comparisons, len(failures)), flush=True)
    sys.exit(1 if failures else 0)


def run(*cmd, ok=True):
    p = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=240 * PATIENCE)
    if ok and p.returncode != 0:
        raise RuntimeError("%s: exit %d: %s" % (
            " ".join(cmd), p.returncode, p.stderr.decode(errors="replace")))
    return p


def create(*args):
    """qemu-img create, which measures how fast it is at LUKS, and which now and
    then finds that it can't."""
    for _ in range(20):
        p = run("qemu-img", "create", *args, ok=False)
        if b"accurate CPU usage" not in p.stderr:
            break
    if p.returncode != 0:
        raise RuntimeError("qemu-img create %s: %s" % (
            " ".join(args), p.stderr.decode(errors="replace")))


class StartError(Exception):
    def __init__(self, rc, log):
        Exception.__init__(self, "nbdkit did not start (exit %s): %s" %
                           (rc, log.strip()))
        self.rc = rc
        self.log = log


# Images are served from NBD servers instead of as files, if this is set: for
# each in turn, what is put before nbdkit's plugin `file', and then after it.
# The kinds are separated by |, and the two by ::.
FAR = os.environ.get("QTEST_FAR")


def backing_path(file):
    """Of the image in a file; or None."""
    with open(file, "rb") as f:
        offset, length = struct.unpack(">QI", f.read(20)[8:])
        f.seek(offset)
        name = f.read(length).decode()
    return os.path.join(os.path.dirname(os.path.abspath(file)), name) \
        if offset else None


class Far:
    """nbdkit that serves a file as a device of fixed size, with room for the
    image to grow."""
    count = 0
    grown = {}              # by path, how large a file was made
    ROOM = 64 << 20

    def __init__(self, file, kind=None):
        kinds = (FAR or "::").split("|")
        before, after = (kind or kinds[Far.count % len(kinds)]).split("::")
        Far.count += 1
        if self.grown.get(file) != os.path.getsize(file):
            size = -(-os.path.getsize(file) // 4096) * 4096 + self.ROOM
            os.truncate(file, size)
            self.grown[file] = size
        base = path("far%d-%d" % (os.getpid(), Far.count))
        self.sock, pidfile = base + ".sock", base + ".pid"
        with open(base + ".log", "wb") as log:
            self.p = subprocess.Popen(
                [NBDKIT, "--exit-with-parent", "-f", "-U", self.sock, "-P",
                 pidfile] + before.split() + ["file", file] + after.split(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not os.path.exists(pidfile):
            if self.p.poll() is not None:
                raise RuntimeError("the far server did not start")
            time.sleep(0.002)
        self.uri = "nbd+unix:///?socket=" + self.sock

    def kill(self):
        self.p.kill()
        self.p.wait()


def far_args(args):
    """The same with a far server, and that."""
    file = next((a[5:] for a in args if a.startswith("file=")), None)
    if not FAR or file is None:
        return args, None
    far = Far(file)
    args = ["uri=" + far.uri if a.startswith("file=") else a for a in args]
    backing = backing_path(file)
    if backing is not None and "follow=beneath" in args:
        args.append("backing=" + backing)
    return args, far


class Server:
    """nbdkit with the plugin on a Unix socket, in the foreground."""
    count = 0

    def __init__(self, *args, opts=(), readonly=True, cwd=None, timeout=120):
        Server.count += 1
        base = path("s%d-%d" % (os.getpid(), Server.count))
        self.sock, self.pidfile = base + ".sock", base + ".pid"
        self.logfile = base + ".log"
        cmd = [NBDKIT, "--exit-with-parent", "-f", "-U", self.sock,
               "-P", self.pidfile]
        if readonly:
            cmd.append("-r")
        args, self.far = far_args(args)
        cmd += list(opts) + [PLUGIN] + list(args)
        self.cmd = cmd
        with open(self.logfile, "wb") as log:
            self.p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL,
                                      stdout=log, stderr=log, cwd=cwd)
        end = time.monotonic() + timeout * PATIENCE
        while True:
            try:
                if os.path.getsize(self.pidfile) > 0:
                    break
            except OSError:
                pass
            rc = self.p.poll()
            if rc is not None:
                raise StartError(rc, self.log())
            if time.monotonic() > end:
                self.p.kill()
                self.p.wait()
                raise StartError("hang", self.log())
            time.sleep(0.002)

    def log(self):
        with open(self.logfile, "rb") as f:
            return f.read().decode(errors="replace")

    def errors(self):
        return [line for line in self.log().splitlines()
                if "error:" in line and "error: warning:" not in line]

    def uri(self, export=""):
        from urllib.parse import quote
        return "nbd+unix:///%s?socket=%s" % (quote(export, safe=""), self.sock)

    def connect(self, export="", meta=True):
        h = nbd.NBD()
        # Requests out of bounds and the like are for the server to refuse.
        h.set_export_name(export)
        if meta:
            h.add_meta_context(META)
        h.connect_unix(self.sock)
        return h

    def stop(self, quiet=True):
        """Ends it; with quiet, an error that it logged is a failure."""
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
        try:
            rc = self.p.wait(60 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
            rc = "hang"
        check(rc == 0, "nbdkit ended with %s: %s" % (rc, self.log()[-500:]))
        if quiet:
            e = self.errors()
            check(not e, "unexpected errors logged: %s" % e[:3])

    def __enter__(self):
        return self

    def __exit__(self, t, v, tb):
        if t is not None:
            self.p.kill()
            self.p.wait()
        elif self.p.returncode is None:
            self.stop()
        if self.far is not None:
            self.far.kill()


# ------------------------------------------------------------------ reading

def nbdcopy(srv, out, export="", *opts):
    p = run("nbdcopy", *opts, srv.uri(export), out, ok=False)
    check(p.returncode == 0, "nbdcopy: %s" % p.stderr.decode())


def file_equal(got, want, what):
    with open(got, "rb") as f:
        return equal(f.read(), bytes(want), what)


def read_all(h, step=1 << 22):
    size, out = h.get_size(), []
    for at in range(0, size, step):
        out.append(bytes(h.pread(min(step, size - at), at)))
    return b"".join(out)


def random_reads(h, want, n, rnd, what, cluster=65536):
    """Unaligned reads, many of them around the edges of clusters."""
    size = len(want)
    if size == 0:
        return
    for _ in range(n):
        length = rnd.choice((1, 2, 511, 512, 513, 4096, 4097, 65536,
                             cluster - 1, cluster, cluster + 1,
                             rnd.randrange(1, 3 * cluster + 2),
                             rnd.randrange(1, 300)))
        length = min(length, size, 1 << 22)
        if rnd.random() < 0.5:
            at = rnd.randrange(size - length + 1)
        else:
            at = rnd.randrange(size // cluster + 1) * cluster
            at += rnd.choice((-513, -512, -1, 0, 1, 512, 3))
            at = max(0, min(at, size - length))
        got = h.pread(length, at)
        if not equal(bytes(got), bytes(want[at:at + length]),
                     "%s: read of %d at %d" % (what, length, at)):
            break


def concurrent_reads(srv, want, connections, depth, n, rnd, what,
                     cluster=65536, export=""):
    """n reads in all, over several connections with several in flight."""
    import threading
    size = len(want)
    bad = []
    lists = []
    for _ in range(connections):
        lst = []
        for _ in range(n // connections):
            length = rnd.choice((1, 512, 4096, 4096, cluster, cluster + 7,
                                 rnd.randrange(1, 2 * cluster)))
            length = min(length, size)
            lst.append((length, rnd.randrange(size - length + 1)))
        lists.append(lst)

    def work(lst):
        try:
            h = srv.connect(export)
            flight = []
            todo = list(lst)
            while todo or flight:
                while todo and len(flight) < depth:
                    length, at = todo.pop()
                    buf = nbd.Buffer(length)
                    flight.append((h.aio_pread(buf, at), buf, length, at))
                h.poll(-1)
                rest = []
                for c, buf, length, at in flight:
                    if h.aio_command_completed(c):
                        if bytes(buf.to_bytearray()) != want[at:at + length]:
                            bad.append((length, at))
                    else:
                        rest.append((c, buf, length, at))
                flight = rest
            h.shutdown()
        except Exception as e:
            bad.append(repr(e))
    threads = [threading.Thread(target=work, args=(lst,)) for lst in lists]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    global comparisons
    comparisons += n
    if bad:
        fail("%s: parallel reads wrong: %s" % (what, bad[:3]))


# ------------------------------------------------------------------ extents

def extents(h, lo=0, hi=None, flags=0, what=""):
    """The merged map of [lo, hi), asking again until it is covered."""
    from qcow2make import merge
    if hi is None:
        hi = h.get_size()
    out = []
    while lo < hi:
        got = []

        def cb(ctx, offset, entries, error):
            if ctx == META:
                got.extend(entries)
            return 0
        n = min(hi - lo, 0xffffffff - 0x1ff)
        h.block_status(n, lo, cb, flags)
        check(len(got) > 0, "%s: empty answer at %d" % (what, lo))
        total = sum(got[0::2])
        if not check(0 < total <= n,
                     "%s: extents of %d bytes at %d, %d asked" % (
                         what, total, lo, n)):
            return None
        if flags & nbd.CMD_FLAG_REQ_ONE:
            check(len(got) == 2, "%s: REQ_ONE gave %d" % (what, len(got) // 2))
        else:
            for k in range(3, len(got), 2):
                if not check(got[k] != got[k - 2],
                             "%s: equal neighbours not merged, after %d" % (
                                 what, lo)):
                    break
        for length, fl in zip(got[0::2], got[1::2]):
            out.append((lo, lo + length, KINDS.get(fl, fl)))
            lo += length
    return merge(out)


def same_runs(got, want, what):
    global comparisons
    comparisons += 1
    if got == want:
        return True
    for g, w in zip(got or [], want):
        if g != w:
            fail("%s: extent %s instead of %s" % (what, g, w))
            return False
    fail("%s: %d extents instead of %d" % (what, len(got or []), len(want)))
    return False


def qemu_map(file, size, fmt="qcow2", raw_depth=None):
    """qemu-img map in our words.  A range of a raw backing file that is a
    hole has an offset too, but is no preallocation."""
    from qcow2make import merge
    p = run("qemu-img", "map", "-f", fmt, "--output=json", file)
    out = []
    for e in json.loads(p.stdout):
        if e["data"]:
            kind = "data"
        elif not e["zero"]:
            kind = "data"
        elif e.get("present", True) and "offset" in e and \
                e["depth"] != raw_depth:
            kind = "zero"
        else:
            kind = "hole"
        s = e["start"]
        out.append((s, min(s + e["length"], size), kind))
    return merge(out)


# ------------------------------------------------------- one image, all ways

def depth_of(layer):
    from qcow2make import Raw
    d = 0
    while layer is not None:
        if isinstance(layer, Raw):
            return d
        layer, d = layer.backing, d + 1
    return None


def verify_image(name, file, want, runs=None, sound=True, args=(), seed=0,
                 reads=40, cluster=65536, use_qemu=True, raw_depth=None,
                 parallel=0, qmap=True, server_opts=(), map_equal=None):
    """Serves FILE and compares it with WANT (bytes), with qemu-img's view of
    it, and its map with RUNS and with qemu-img map."""
    global images
    images += 1
    out = path("%d.out" % os.getpid())
    size = len(want)
    rnd = random.Random("reads-%s-%s" % (name, seed))
    if use_qemu:
        if sound:
            p = run("qemu-img", "check", "-f", "qcow2", file, ok=False)
            check(p.returncode == 0, "%s: qemu-img check: %s" % (
                name, (p.stdout + p.stderr).decode()[-300:]))
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, out)
        file_equal(out, want, "%s: qemu-img convert" % name)
        os.unlink(out)
    if ONLY_QEMU:
        return
    try:
        srv = Server("file=" + file, *args, opts=server_opts)
    except StartError as e:
        fail("%s: %s" % (name, e))
        return
    with srv:
        h = srv.connect()
        check(h.get_size() == size, "%s: size %d instead of %d" % (
            name, h.get_size(), size))
        if size:
            if VOLUME > 1 or zlib.crc32(name.encode()) % 2:
                nbdcopy(srv, out)
                file_equal(out, want, "%s: nbdcopy" % name)
                os.unlink(out)
            else:
                equal(read_all(h), want, "%s: the whole disk" % name)
            random_reads(h, want, reads, rnd, name, cluster)
            if parallel:
                concurrent_reads(srv, want, 3, 8, parallel, rnd, name, cluster)
            got = extents(h, what=name)
            if runs is not None:
                same_runs(got, runs, "%s: map" % name)
                for _ in range(4):
                    a = rnd.randrange(0, size // 512) * 512
                    b = rnd.randrange(a // 512, size // 512) * 512 + 512
                    from qcow2make import clip, merge
                    fl = rnd.choice((0, 0, nbd.CMD_FLAG_REQ_ONE))
                    same_runs(extents(h, a, b, fl, what=name),
                              merge(clip(runs, a, b)),
                              "%s: map of [%d,%d)" % (name, a, b))
            if use_qemu and qmap:
                same_runs(got, qemu_map(file, size, raw_depth=raw_depth),
                          "%s: qemu-img map" % name)
        h.shutdown()


def verify(img, name, **kw):
    """The same for an image made by qcow2make."""
    kw.setdefault("cluster", img.cs)
    kw.setdefault("raw_depth", depth_of(img))
    kw.setdefault("runs", img.runs())
    if img.backing is not None:
        kw["args"] = tuple(kw.get("args", ())) + ("follow=beneath",)
    verify_image(name, img.path, bytes(img.render()), **kw)
