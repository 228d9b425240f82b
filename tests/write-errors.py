# SPDX-License-Identifier: BSD-3-Clause
"""The host's calls fail, by strace, while many requests are under way.
Clients get an error for what failed and go on reading; a flush that was
answered doesn't lie; nothing that was flushed before is lost; and what is
left on disk has leaks at most.

QTEST_VOLUME multiplies how many requests are made, and each fault meets two
kinds of images if it is more than 1.
QTEST_ROUNDS multiplies how much is done, each time other requests.
QTEST_ONLY takes a seed that a failure named, and does that alone."""

import errno
import os
import random

import nbd
import qtest
import stamps
from qtest import path, run, check, fail, Server, StartError
from filled import fill
from qcow2make import Qcow2, Raw, COMPAT_LAZY
from streams import noise
from stamps import Units, Load

ROUNDS = int(os.environ.get("QTEST_ROUNDS", "1"))
ONLY = os.environ.get("QTEST_ONLY")
FAILS = (errno.EIO, errno.ENOSPC)

# Which call fails, how, and from which one on or when.  The plus says that
# all do from there.
FAULTS = (
    ("fdatasync", "EIO", "%d"),
    ("fdatasync", "EIO", "%d+"),
    ("pwrite64", "EIO", "%d"),
    ("pwrite64", "EIO", "%d+"),
    ("pwrite64", "ENOSPC", "%d"),
    ("pwritev,pwritev2", "EIO", "%d"),
    ("pwritev,pwritev2", "ENOSPC", "%d+"),
    ("ftruncate", "EIO", "%d"),
    ("ftruncate", "ENOSPC", "%d+"),
    ("fallocate", "EIO", "%d"),
    ("pread64,preadv", "EIO", "%d"),
)
# And these, of which clients must not notice anything.
HARMLESS = (
    ("fallocate", "EOPNOTSUPP", "1+"),
    ("fallocate", "EINTR", "3+7"),
    ("pwrite64,pwritev,pwritev2", "EINTR", "5+9"),
    ("pread64,preadv", "EINTR", "5+9"),
    ("pwritev2", "EOPNOTSUPP", "1+"),
)


def images(seed):
    """Ways to make one."""
    file = path("e.qcow2")

    def filled(**kw):
        img = Qcow2(file, 24 << 16, seed=seed, layout="shuffled", **kw)
        return fill(img, seed=seed).write()

    def over():
        low = Raw(path("low.raw"), noise(seed, 5 << 16))
        return Qcow2(file, 8 << 16, backing=low, backing_format="raw").write()

    def snapped():
        img = Qcow2(file, 24 << 16, seed=seed)
        fill(img, seed=seed)
        img.snapshot("1", "s")
        return fill(img, seed="more", count=8).write()
    return (filled, lambda: filled(extl2=True), over, snapped,
            lambda: filled(compat=COMPAT_LAZY),
            lambda: Qcow2(file, 500 << 9, cluster_bits=9).write())


class Wrapper:
    """nbdkit, with calls of its that fail."""

    def __init__(self, calls, error, when):
        self.file = path("faulty")
        with open(self.file, "w") as f:
            f.write("#!/bin/sh\nexec strace -D -f --seccomp-bpf -qq "
                    "-o '%s' -e signal=none "
                    "-e trace=%s -e 'inject=%s:error=%s:when=%s' -- '%s' "
                    "\"$@\"\n" % (path("strace.out"), calls, calls, error,
                                  when, qtest.NBDKIT))
        os.chmod(self.file, 0o755)

    def server(self, *args):
        real, qtest.NBDKIT = qtest.NBDKIT, self.file
        try:
            return Server(*args, readonly=False)
        finally:
            qtest.NBDKIT = real


def load_of(seed, srv, img, units, rnd, serial, may_fail):
    return Load(seed, srv, units, rnd, rnd.choice((1, 4, 8)), 8, img.cs,
                img.cs // 32 if img.extl2 else img.cs, serial=serial,
                trims=img.version >= 3 or img.backing is None,
                compressed=any(e.kind == "comp" for t in img.active.values()
                               for e in t.entries.values()),
                may_fail=may_fail)


def legal(seed, units, got, began, crash, what):
    for k in range(units.n):
        value = got[k * units.unit:(k + 1) * units.unit]
        why = units.legal(k, value, began, crash=crash)
        stamps.reads_checked += 1
        if why is not None:
            fail("%s: %s: unit %d (offset %d): %s: %s...\n%s" % (
                seed, what, k, k * units.unit, why, value[:32].hex(),
                units.story(k)))
            return False
    return True


def read_what_can_be(h, units, seed):
    """Reading goes on; where it fails, there is nothing to compare."""
    n = 1 << 16
    for at in range(0, units.size, n):
        n = min(n, units.size - at)
        began = stamps.time.monotonic_ns()
        try:
            got = bytes(h.pread(n, at))
        except nbd.Error as e:
            check(e.errnum in FAILS, "%s: read: %s" % (seed, e))
            continue
        first = at // units.unit
        if not units.check(first, got, began, stamps.time.monotonic_ns(),
                           seed + ", after the errors", quiet=True):
            return False
    return True


def sticks(h, seed):
    """After the host failed to make something safe nobody knows what is:
    no later flush may be answered as if all was well, nor more be taken."""
    for what, ask in (("flush", h.flush),
                      ("write", lambda: h.pwrite(bytes(512), 0)),
                      ("flush", h.flush)):
        try:
            ask()
            fail("%s: a %s is answered after a failed one" % (seed, what))
        except nbd.Error as e:
            check(e.errnum == errno.EIO, "%s: %s" % (seed, e))


def check_image(seed, img, allowed):
    p = run("qemu-img", "check", "-f", "qcow2", img.path, ok=False)
    if img.compat & COMPAT_LAZY and p.returncode not in allowed:
        # The dirty bit may be left, and says so.
        p = run("qemu-img", "check", "-f", "qcow2", "-r", "all", img.path,
                ok=False)
        check(p.returncode == 0, "%s: qemu-img check -r all: %s" % (
            seed, (p.stdout + p.stderr).decode()[-400:]))
        return
    check(p.returncode in allowed, "%s: qemu-img check: exit %d: %s" % (
        seed, p.returncode, (p.stdout + p.stderr).decode()[-400:]))


def content(img):
    out = path("e.out")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", img.path, out)
    with open(out, "rb") as f:
        return f.read()


def again(seed, img, units, rnd, serial, args):
    """Without faults all is well: leaks are mended, requests are done."""
    run("qemu-img", "check", "-f", "qcow2", "-r", "all", img.path, ok=False)
    units.base(content(img))
    try:
        srv = Server("file=" + img.path, *args, readonly=False)
    except StartError as e:
        fail("%s: %s" % (seed, e))
        return
    with srv:
        load = load_of(seed, srv, img, units, rnd, serial, ())
        ok = load.run(qtest.volume(100)) and load.quiet()
        if not ok:
            srv.p.kill()
            srv.p.wait()
            return
        load.close()
    check_image(seed, img, (0,))
    qtest.equal(content(img), units.content, "%s: in the end" % seed)


def snapshots(seed, img):
    out = path("e.out")
    for s in img.snapshots:
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l",
            "snapshot.name=" + s.name.decode(), img.path, out)
        qtest.file_equal(out, bytes(img.render(s)), "%s: snapshot" % seed)


failures = 0


def one(seed, make, fault, harmless):
    global failures
    qtest.images += 1
    rnd = random.Random("errors-" + seed)
    img = make()
    units = Units(bytes(img.render()), 512)
    calls, error, when = fault
    if "%d" in when:
        when = when % rnd.choice((1, 2, 5, rnd.randrange(3, 40),
                                  rnd.randrange(3, 200)))
    what = "%s: %s, %s at %s" % (seed, calls, error, when)
    args = ("follow=beneath",) if img.backing is not None else ()
    try:
        srv = Wrapper(calls, error, when).server("file=" + img.path, *args)
    except StartError as e:
        # Nothing could be opened: that is an answer, too.
        check(not harmless and "crash" not in str(e), "%s: %s" % (what, e))
        return
    with srv:
        try:
            load = load_of(what, srv, img, units, rnd, 0,
                           () if harmless else FAILS)
        except nbd.Error as e:
            check(not harmless, "%s: %s" % (what, e))
            srv.stop(quiet=False)
            check_image(what, img, (0, 3))
            return
        ok = load.run(qtest.volume(300))
        if ok and harmless:
            ok = load.quiet()
        elif ok:
            failures += load.failures
            h = load.handles[0]
            ok = read_what_can_be(h, units, what)
            if calls == "fdatasync" and load.flush_failed:
                sticks(h, what)
        if not ok:
            srv.p.kill()
            srv.p.wait()
            return
        load.close()
        srv.p.terminate()
        rc = srv.p.wait(60)
        check(rc >= 0, "%s: nbdkit was ended by signal %d" % (what, -rc))
        if harmless:
            check(rc == 0 and not srv.errors(), "%s: exit %d: %s" % (
                what, rc, srv.log()[-300:]))
    check_image(what, img, (0,) if harmless else (0, 3))
    snapshots(what, img)
    now = stamps.time.monotonic_ns()
    if legal(what, units, content(img), now, not harmless,
             "what is on disk"):
        again(what, img, units, rnd, load.serial, args)


def full(turn):
    """The file may not grow beyond what holds a part of the disk: who finds
    no room is told, others go on, and trims make room.  Once the limit is
    away all is well."""
    for make, size in ((lambda f: Qcow2(f, 100 << 16), 3 << 20),
                       (lambda f: Qcow2(f, 100 << 16, extl2=True), 3 << 20),
                       (lambda f: Qcow2(f, 4000 << 9, cluster_bits=9,
                                        refcount_order=6), 150 << 10)):
        img = make(path("e.qcow2")).write()
        seed = "full-%d-%d" % (img.cluster_bits + img.extl2, turn)
        if ONLY not in (None, seed):
            continue
        qtest.images += 1
        limited(seed, img, size)


def limited(seed, img, size):
    global failures
    file, real = path("limited"), qtest.NBDKIT
    with open(file, "w") as f:
        f.write("#!/bin/sh\ntrap '' XFSZ\n"
                "exec prlimit --fsize=%d:unlimited -- '%s' \"$@\"\n" % (
                    size, real))
    os.chmod(file, 0o755)
    rnd = random.Random(seed)
    units = Units(bytes(img.render()), 512)
    qtest.NBDKIT = file
    with Server("file=" + img.path, readonly=False) as srv:
        qtest.NBDKIT = real
        load = load_of(seed, srv, img, units, rnd, 0, (errno.ENOSPC,))
        ok = load.run(qtest.volume(1200)) and load.quiet()
        check(load.failures > 0, "%s: it was never full" % seed)
        failures += load.failures
        if ok:
            run("prlimit", "--pid", str(srv.p.pid), "--fsize=unlimited")
            load.may_fail = ()
            ok = load.run(qtest.volume(700)) and load.quiet()
        if not ok:
            srv.p.kill()
            srv.p.wait()
            return
        load.close()
        srv.stop(quiet=False)
    check_image(seed, img, (0,))
    qtest.equal(content(img), units.content, "%s: in the end" % seed)


k = 0
for turn in range(ROUNDS):
    full(turn)
    for faults, harmless in ((FAULTS, False), (HARMLESS, True)):
        for fault in faults:
            # Each fault on one or two kinds of images, others in the next
            # round; there are six kinds, and each has its turn.
            for _ in range(2 if qtest.VOLUME > 1 else 1):
                k += 1
                seed = "%s-%s-%d" % (fault[0].split(",")[0], fault[1], k)
                makers = images(seed)
                if ONLY in (None, seed):
                    one(seed, makers[(k + turn) % len(makers)], fault,
                        harmless)
qtest.comparisons += stamps.reads_checked
print("requests: %d, of which failed: %d, units looked at: %d" % (
    stamps.requests, failures, stamps.reads_checked))
qtest.finish("writing while the host's calls fail")
