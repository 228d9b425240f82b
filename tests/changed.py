# SPDX-License-Identifier: BSD-3-Clause
"""What has changed since a snapshot, as exports, against the contents of both
disks as qemu-img has them and what was written between them."""

import random
import threading

import nbd
import qtest
from qtest import path, run, create, check, equal, same_runs, Server
from qcow2make import merge

MIB = 1 << 20


def differing(a, b):
    """Sectors of b that differ from a, which ends earlier or later."""
    return [at for at in range(0, len(b), 512) if a[at:at + 512] !=
            b[at:at + 512]]


def compare(srv, export, a, b, touched, unit, name):
    """a, b: the contents; touched: ranges that were written between, which are
    all that may have changed, in units."""
    h = srv.connect(export)
    check(h.is_read_only(), "%s: writable" % name)
    equal(h.get_size(), len(b), "%s: its size" % name)
    map_ = qtest.extents(h, what=name)
    changed = [(lo, hi) for lo, hi, kind in map_ if kind != "hole-not-zero"]
    for lo, hi, kind in map_:
        if kind == "zero":
            check(not any(b[lo:hi]), "%s: %d is no zeros" % (name, lo))
        else:
            check(kind in ("data", "hole-not-zero"), "%s: %s" % (name, kind))
    k = 0
    for at in differing(a, b):
        while k < len(changed) and changed[k][1] <= at:
            k += 1
        if not check(k < len(changed) and changed[k][0] <= at,
                     "%s: the sector at %d has changed" % (name, at)):
            break
    may = [(lo // unit * unit, -(-hi // unit) * unit) for lo, hi in touched]
    for lo, hi in changed:
        for at in range(lo // unit * unit, min(hi, len(a)), unit):
            if not check(any(x <= at < y for x, y in may),
                         "%s: nobody wrote at %d" % (name, at)):
                break
    rnd = random.Random(name)
    for _ in range(3):
        lo = rnd.randrange(len(b)) // 512 * 512
        hi = min(len(b), lo + 512 * (1 + rnd.randrange(1 << rnd.randrange(14))))
        part = [(max(lo, x), min(hi, y), k) for x, y, k in map_
                if x < hi and y > lo]
        same_runs(qtest.extents(h, lo, hi, what=name), part,
                  "%s: map of %d to %d" % (name, lo, hi))
        same_runs(qtest.extents(h, lo, hi, nbd.CMD_FLAG_REQ_ONE, what=name),
                  part, "%s: one by one" % name)
    equal(qtest.read_all(h), b, "%s: data" % name)
    h.shutdown()
    return map_


def increment(srv, export, a, b, name):
    """As QEMU makes one: it has what b has, on a copy of a."""
    full, inc, out = path("full.qcow2"), path("inc.qcow2"), path("out.raw")
    with open(path("a.raw"), "wb") as f:
        f.write(a)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", path("a.raw"), full)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-B", full, "-F",
        "qcow2", srv.uri(export), inc)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", inc, out)
    qtest.file_equal(out, b, "%s: increment" % name)


class Disk:
    """An image that qemu-io writes, and what was written since when."""

    def __init__(self, name, size, options, back, rnd, passphrase=None):
        qtest.images += 1
        self.name, self.size, self.rnd = name, size, rnd
        self.file = path(name + ".qcow2")
        self.grown = []
        self.states = []            # (name of the snapshot, content)
        self.touched = []           # lists of ranges, before each state
        self.secret, self.image = [], ["-f", "qcow2", self.file]
        if passphrase is not None:
            self.secret = ["--object", "secret,id=s,data=" + passphrase]
            self.image = ["--image-opts", "driver=qcow2,file.filename=%s,"
                          "encrypt.key-secret=s" % self.file]
        args = ["-q", "-f", "qcow2"] + self.secret
        if back:
            args += ["-b", back, "-F", "raw"]
        create(*args, "-o", options, self.file, str(size))

    def state(self, name):
        """The disk as it is now; a snapshot of it, unless the name is None."""
        run("qemu-img", "convert", "-O", "raw", *self.secret, *self.image,
            path("content.raw"))
        with open(path("content.raw"), "rb") as f:
            self.states.append((name, f.read()))
        if name is not None and self.secret:
            run("qemu-img", "snapshot", *self.secret, "-c", name, *self.image)
        elif name is not None:
            run("qemu-img", "snapshot", "-c", name, self.file)

    def write(self, n, compressed=False):
        """n writes of all kinds, many near to each other."""
        rnd, out, ranges = self.rnd, [], []
        near = rnd.randrange(self.size)
        for _ in range(n):
            at = near + rnd.randrange(MIB) if rnd.random() < 0.6 \
                else rnd.randrange(self.size)
            at = min(at, self.size - 512) // 512 * 512
            length = min(self.size - at, 512 * (1 + rnd.randrange(300)))
            kind = rnd.choice(("write -P 7", "write -z", "write -z -u",
                               "discard", "write -P %d" % rnd.randrange(256)))
            if compressed and rnd.random() < 0.4:
                at = at // 65536 * 65536
                length = min(65536, self.size - at)
                kind = "write -c -P %d" % rnd.randrange(256)
            out += ["-c", "%s %d %d" % (kind, at, length)]
            ranges.append((at, at + length))
        run("qemu-io", *self.secret, *out, *self.image)
        self.touched.append(ranges + self.grown)

    def grow(self, size):
        run("qemu-img", "resize", "-q", *self.image, str(size))
        # QEMU zeroes what was behind the end in its cluster.
        self.grown = [(self.size - 1, self.size + 1)]
        self.size = size


# A cluster with subclusters has one place: all of it moves.
KINDS = (                       # options, size, backing, compressed, unit
    ("compat=1.1", 20 * MIB + 512, False, False, 65536),
    ("compat=0.10,cluster_size=4k", 9 * MIB, True, False, 4096),
    ("compat=1.1,cluster_size=512", 3 * MIB, True, False, 512),
    ("compat=1.1,cluster_size=2M", 40 * MIB, False, False, 2 * MIB),
    ("compat=1.1,extended_l2=on,cluster_size=64k", 11 * MIB, True, False, 65536),
    ("compat=1.1", 20 * MIB, True, True, 65536),
    ("compat=1.1,extended_l2=on,cluster_size=128k", 11 * MIB, False, False,
     131072),
)


def pair(srv, d, i, j, unit):
    """Of the states, whose last one is the live disk."""
    a, b = d.states[i][1], d.states[j][1]
    last = len(d.states) - 1
    export = "changed/" + d.states[i][0] + (
        "" if j == last else "/" + d.states[j][0])
    touched = [r for t in d.touched[min(i, j):max(i, j)] for r in t]
    name = "%s: %s" % (d.name, export)
    compare(srv, export, a, b, touched, unit, name)
    return export, a, b, name


def states(d, compressed, grown=None):
    """Three snapshots, and the live disk."""
    d.write(8, compressed)
    d.touched.clear()
    for state in "one", "two", "three":
        d.state(state)
        if state == "two" and grown is not None:
            d.grow(grown)
        d.write(6, compressed)
    d.state(None)


def matrix():
    back = path("back.raw")
    with open(back, "wb") as f:
        f.write(random.Random(5).randbytes(5 * MIB + 7 * 512))
    for k, (options, size, backed, compressed, unit) in enumerate(KINDS):
        rnd = random.Random("changed%d" % k)
        d = Disk("m%d" % k, size, options, back if backed else None, rnd)
        states(d, compressed, None if "0.10" in options else
               size + 3 * MIB // 2)
        with Server("file=" + d.file, "follow=beneath") as srv:
            done = [pair(srv, d, i, j, unit) for i, j in (
                (0, 1), (0, 2), (1, 2), (2, 1), (1, 3), (0, 3), (2, 3))]
            increment(srv, *done[k % len(done)])
            increment(srv, *done[5])


def encrypted():
    d = Disk("luks", 8 * MIB, "encrypt.format=luks,encrypt.key-secret=s,"
             "encrypt.iter-time=10", None, random.Random("luks"), "sesame")
    states(d, False)
    secret = path("secret")
    with open(secret, "w") as f:
        f.write("sesame")
    with Server("file=" + d.file, "passphrase=+" + secret) as srv:
        for i, j in (0, 1), (0, 3):
            pair(srv, d, i, j, 65536)


def exact():
    """What is said of entries of each kind, in the two states of a cluster."""
    qtest.images += 1
    file, c = path("exact.qcow2"), 65536
    run("qemu-img", "create", "-q", "-f", "qcow2", file, str(64 * c))
    writes = ["write -P 1 0 %d" % (4 * c), "write -z %d %d" % (4 * c, 2 * c)]
    later = ["write -P 1 0 512",                         # copied
             "write -z -u %d %d" % (2 * c, c),           # zeros now
             "write -z %d %d" % (4 * c, c),              # as before
             "discard %d %d" % (5 * c, c),
             "write -z %d %d" % (8 * c, c),              # was unallocated
             "write -P 3 %d %d" % (9 * c, c)]
    for commands in writes, later:
        run("qemu-io", "-f", "qcow2", *[x for w in commands
                                        for x in ("-c", w)], file)
        if commands is writes:
            run("qemu-img", "snapshot", "-c", "one", file)
    with Server("file=" + file) as srv:
        h = srv.connect("changed/one")
        same_runs(qtest.extents(h), [
            (0, c, "data"), (c, 2 * c, "hole-not-zero"), (2 * c, 3 * c, "zero"),
            (3 * c, 9 * c, "hole-not-zero"), (9 * c, 10 * c, "data"),
            (10 * c, 64 * c, "hole-not-zero")], "exact")
        h.shutdown()
        h = srv.connect("changed/one/one")
        same_runs(qtest.extents(h), [(0, 64 * c, "hole-not-zero")], "itself")
        h.shutdown()


def names():
    """By name and ID, percent-encoded; not listed; refused."""
    qtest.images += 1
    file = path("names.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", file, "1M")
    for name in "a/b", "50%", "a b", "\u05e9":
        run("qemu-img", "snapshot", "-c", name, file)
    with Server("file=" + file) as srv:
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_unix(srv.sock)
        listed = []
        h.opt_list(lambda name, _: listed.append(name) or 0)
        h.opt_abort()
        check("snapshot/a/b" in listed and
              not [n for n in listed if n.startswith("changed")],
              "listed: %s" % listed)
        for ok in ("a%2Fb", "a%2fb/50%25", "a b/a%20b", "1/2",
                   "%d7%A9/1", "a%2Fb/\u05e9"):
            h = srv.connect("changed/" + ok)
            same_runs(qtest.extents(h), [(0, MIB, "hole-not-zero")], ok)
            h.shutdown()
        for bad in ("", "/", "1/", "/1", "a/b", "1/2/3", "50%", "50%2", "a%00",
                    "9", "50%zz", "a%2Fb/none"):
            try:
                srv.connect("changed/" + bad)
                check(False, "changed/%s can be opened" % bad)
            except nbd.Error:
                pass
        log = srv.log()
        check("there is no snapshot" in log and "%25" in log, "log: " + log)
        srv.stop(quiet=False)


def far_apart():
    """Most tables are shared, or there is none."""
    qtest.images += 1
    file, size = path("far.qcow2"), 1 << 40
    places = [(k * 7919 * MIB) % size for k in range(40)]
    run("qemu-img", "create", "-q", "-f", "qcow2", file, str(size))
    run("qemu-io", "-f", "qcow2", *[x for p in places for x in
                                    ("-c", "write %d 64k" % p)], file)
    run("qemu-img", "snapshot", "-c", "one", file)
    run("qemu-io", "-f", "qcow2", *[x for p in places[::4] for x in
                                    ("-c", "write %d 4k" % p)], file)
    with Server("file=" + file) as srv:
        h = srv.connect("changed/one")
        got = [x for x in qtest.extents(h) if x[2] != "hole-not-zero"]
        same_runs(got, merge(sorted((p, p + 65536, "data")
                                    for p in places[::4])), "far apart")
        h.shutdown()


def beside_writers():
    """What was answered before the extents are asked for is in them."""
    qtest.images += 1
    file, size = path("live.qcow2"), 64 * MIB
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k",
        file, str(size))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64M", file)
    run("qemu-img", "snapshot", "-c", "one", file)
    stop = threading.Event()
    answered = []                # grows only

    def write(seed):
        rnd, h = random.Random(seed), srv.connect(meta=False)
        while not stop.is_set():
            at = rnd.randrange(size // 512) * 512
            n = min(size - at, rnd.choice((512, 4096, 65536)))
            what = rnd.random()
            if what < 0.6:
                h.pwrite(b"x" * n, at)
            else:
                h.zero(n, at)
            answered.append((at, at + n))
        h.flush()
        h.shutdown()

    with Server("file=" + file, readonly=False) as srv:
        live = srv.connect()
        h = srv.connect("changed/one")
        threads = [threading.Thread(target=write, args=("w%d" % i,))
                   for i in range(3)]
        for t in threads:
            t.start()
        for _ in range(qtest.volume(12)):
            before = len(answered)
            # Data and zeros side by side are one change.
            have = [(lo, hi) for lo, hi, kind in merge(
                [(lo, hi, kind == "hole-not-zero")
                 for lo, hi, kind in qtest.extents(h)]) if not kind]
            for lo, hi in answered[:before]:
                if not check(any(x <= lo and hi <= y for x, y in have),
                             "a write of %d to %d is missed" % (lo, hi)):
                    break
        stop.set()
        for t in threads:
            t.join()
        equal(qtest.read_all(h), qtest.read_all(live), "read beside")
        for c in h, live:
            c.shutdown()


if __name__ == "__main__":
    exact()
    names()
    matrix()
    encrypted()
    far_apart()
    beside_writers()
    qtest.finish("changed")
