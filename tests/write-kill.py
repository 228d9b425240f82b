# SPDX-License-Identifier: BSD-3-Clause
"""The server is killed in the midst of requests, again and again.  What was
flushed is there, everything else is as it was before or as a later request
made it, and the image has leaks at most.  Snapshots and backing files are
as before.

QTEST_KILLS is how often it is killed; as a default, each kind of image has its
turn, QTEST_VOLUME times.
QTEST_ONLY takes a seed that a failure named, and does that alone."""

import errno
import os
import random
import time

import nbd

import qedmade
import qtest
import stamps
from qtest import path, run, check, fail, Server, StartError
from filled import fill
from qcow2make import EXT_DATAFILE, Qcow2, Raw, COMPAT_LAZY
from streams import noise
from stamps import Units, Load

ONLY = os.environ.get("QTEST_ONLY")
# With QTEST_FAR the server that has the image can be killed instead.
KILL_FAR = "QTEST_KILL_FAR" in os.environ
# The second server opens what a killed one has left.
KILLS_OF_IMAGE = 4 if qtest.VOLUME > 1 else 2

kills = 0
under_way = 0           # requests, when it was killed
began = time.monotonic()


class Killed:
    """One image and what is done to it."""

    def __init__(self, seed, img, args):
        self.seed, self.img, self.args = seed, img, args
        self.rnd = random.Random("kill-" + seed)
        self.units = Units(bytes(img.render()), 512)
        self.format = getattr(img, "format", "qcow2")
        self.lazy = img.compat & COMPAT_LAZY
        self.serial = 0
        self.comp = any(e.kind == "comp" for t in img.active.values()
                        for e in t.entries.values())
        self.snaps = [(s.name.decode(), bytes(img.render(s)))
                      for s in img.snapshots]

    def session(self):
        """Until it is killed."""
        global kills, under_way
        img = self.img
        try:
            srv = Server("file=" + img.path, *self.args, readonly=False)
        except StartError as e:
            fail("%s: %s" % (self.seed, e))
            return False
        connections = self.rnd.choice((1, 4, 4, 8))
        with srv:
            load = Load(self.seed, srv, self.units, self.rnd, connections, 8,
                        img.cs, img.cs // 32 if img.extl2 else img.cs,
                        trims=img.version >= 3 or img.backing is None,
                        compressed=self.comp, serial=self.serial,
                        may_fail=(errno.EIO,) if KILL_FAR else ())
            ok = load.run(5000, self.rnd.randrange(1, 700))
            if self.rnd.random() < 0.5:     # while it works on the rest
                time.sleep(self.rnd.random() / 1000)
            under_way += sum(map(len, load.flights))
            if KILL_FAR:
                ok = self.far_killed(srv, load) and ok
            srv.p.kill()
            srv.p.wait()
        kills += 1
        self.serial = load.serial
        return ok

    def far_killed(self, srv, load):
        """Each request is answered, and none goes well any more that would
        have to reach the image."""
        srv.far.kill()
        ok = load.run(0)
        h = srv.connect()
        try:
            h.pwrite(bytes(512), 0)
            return check(False, "%s: a write goes well without a far server" %
                         self.seed)
        except nbd.Error as e:
            return check(e.errnum == errno.EIO,
                         "%s: %s" % (self.seed, e)) and ok

    def checked(self):
        file = self.img.path
        p = run("qemu-img", "check", "-f", self.format, file, ok=False)
        if self.lazy and p.returncode not in (0, 3):
            # The dirty bit says that they are wrong.
            p = run("qemu-img", "check", "-f", "qcow2", "-r", "all", file,
                    ok=False)
            check(p.returncode == 0, "%s: qemu-img check -r all: exit %d: %s"
                  % (self.seed, p.returncode,
                     (p.stdout + p.stderr).decode()[-400:]))
        check(p.returncode in (0, 3), "%s: qemu-img check: exit %d: %s" % (
            self.seed, p.returncode, (p.stdout + p.stderr).decode()[-400:]))

    def compared(self):
        file, out, u = self.img.path, path("k.out"), self.units
        run("qemu-img", "convert", "-f", self.format, "-O", "raw", file, out)
        with open(out, "rb") as f:
            got = f.read()
        now = stamps.time.monotonic_ns()
        for k in range(u.n):
            value = got[k * 512:k * 512 + 512]
            why = u.legal(k, value, now, crash=True)
            stamps.reads_checked += 1
            if why is not None:
                fail("%s: after a kill: unit %d (offset %d): %s: %s...\n%s" %
                     (self.seed, k, k * 512, why, value[:32].hex(),
                      u.story(k)))
                return False
        for name, want in self.snaps:
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l",
                "snapshot.name=" + name, file, out)
            qtest.file_equal(out, want, "%s: snapshot %s" % (self.seed, name))
        u.base(got)
        return True

    def mend(self):
        """What a lazy image needs before it can be written again; others
        go on with what has leaked."""
        if self.lazy:
            run("qemu-img", "check", "-f", "qcow2", "-r", "all",
                self.img.path)

    def end(self):
        """Leaks mended it is clean, and so it stays."""
        run("qemu-img", "check", "-f", self.format, "-r", "all",
            self.img.path, ok=False)
        with Server("file=" + self.img.path, *self.args,
                    readonly=False) as srv:
            h = srv.connect()
            h.pwrite(b"the end" + bytes(505), 0)
            h.shutdown()
        p = run("qemu-img", "check", "-f", self.format, self.img.path,
                ok=False)
        # What leaks in the midst of a QED file nothing can give back.
        fine = (0, 3) if self.format == "qed" else (0,)
        check(p.returncode in fine, "%s: at the end: %s" % (
            self.seed, (p.stdout + p.stderr).decode()[-400:]))

    def keep(self):
        to = os.environ.get("QTEST_KEEP")
        if to and qtest.failures:
            run("cp", self.img.path, os.path.join(to, self.seed + ".qcow2"))


def exercise(seed, make, *args, **kw):
    qtest.images += 1
    img = make(path("k.qcow2"), seed, **kw)
    if img.backing is not None:
        args += ("follow=beneath",)
    it = Killed(seed, img, args)
    bad = len(qtest.failures)
    for _ in range(KILLS_OF_IMAGE):
        if not it.session():
            break
        it.checked()
        if not it.compared() or len(qtest.failures) > bad:
            break
        it.mend()
    it.keep()
    if len(qtest.failures) == bad:
        it.end()


def plain(file, seed, clusters, cb=16, **kw):
    return Qcow2(file, clusters << cb, cluster_bits=cb, seed=seed,
                 **kw).write()


def filled(file, seed, clusters, cb=16, **kw):
    img = Qcow2(file, clusters << cb, cluster_bits=cb, seed=seed,
                layout="shuffled", **kw)
    return fill(img, seed=seed).write()


def over(file, seed, clusters, cb=16, **kw):
    low = Raw(path("low.raw"), noise(seed, (clusters << cb) * 3 // 4))
    return Qcow2(file, clusters << cb, cluster_bits=cb, seed=seed,
                 backing=low, backing_format="raw", **kw).write()


def snapped(file, seed, clusters, cb=16, **kw):
    img = Qcow2(file, clusters << cb, cluster_bits=cb, seed=seed,
                layout="shuffled", **kw)
    fill(img, seed=seed)
    for k in range(2):
        img.snapshot(str(k), "s%d" % k)
        fill(img, seed="%s-%d" % (seed, k), count=clusters // 2, first=k)
    return img.write()


def external(file, seed, clusters, cb=16, raw=False, **kw):
    """With an external data file, which holds garbage unless it is raw."""
    data = path("k.data")
    with open(data, "wb") as f:
        if raw:
            f.truncate(clusters << cb)
        else:
            f.write(noise("garbage" + seed, clusters << cb))
    return Qcow2(file, clusters << cb, cluster_bits=cb, seed=seed,
                 incompat=4, autoclear=2 if raw else 0,
                 exts=[(EXT_DATAFILE, data.encode())], **kw).write()


EXERCISES = (
    ("data-file", external, ("follow=beneath",), dict(clusters=8)),
    ("data-file-extl2", external, ("follow=beneath",),
     dict(clusters=8, extl2=True)),
    ("raw-data-file", external, ("follow=beneath",),
     dict(clusters=60, cb=12, raw=True)),
    ("plain", plain, (), dict(clusters=8)),
    ("small-clusters", plain, (), dict(clusters=500, cb=9)),
    ("small-cache", plain, ("cache-size=64K",), dict(clusters=4000, cb=9)),
    ("all-kinds", filled, (), dict(clusters=20)),
    ("zstd", filled, (), dict(clusters=20, comp="zstd")),
    ("version-2", filled, (), dict(clusters=20, version=2)),
    ("version-2-backing", over, (), dict(clusters=8, version=2)),
    ("extl2", filled, (), dict(clusters=34, extl2=True)),
    ("backing", over, (), dict(clusters=8)),
    ("backing-extl2", over, (), dict(clusters=6, extl2=True)),
    ("snapshots", snapped, (), dict(clusters=20)),
    ("snapshots-extl2", snapped, (), dict(clusters=34, extl2=True)),
    ("lazy", filled, (), dict(clusters=20, compat=COMPAT_LAZY)),
    ("lazy-small", plain, (), dict(clusters=500, cb=9, compat=COMPAT_LAZY)),
    ("keep", filled, ("discard=keep",), dict(clusters=20)),
    ("qed", qedmade.make, (), dict(clusters=8)),
    ("qed-small", qedmade.make, ("cache-size=64K",),
     dict(clusters=2000, cluster_size=4096, table_size=2)),
    ("qed-backing", qedmade.make, (), dict(clusters=60, cluster_size=4096,
                                  backed=True)),
    ("refcounts-of-1-bit", filled, (),
     dict(clusters=40, cb=12, refcount_order=0)),
)
if "QTEST_FAR" in os.environ:    # the names in images are those of files here
    EXERCISES = [e for e in EXERCISES if e[1] is not external]
KILLS = int(os.environ.get("QTEST_KILLS",
                           qtest.volume(KILLS_OF_IMAGE * len(EXERCISES))))

turn = 0
while kills < KILLS and not qtest.failures:
    for name, make, args, kw in EXERCISES:
        seed = "%s-%d" % (name, turn)
        if ONLY in (None, seed) and kills < KILLS:
            exercise(seed, make, *args, **kw)
    turn += 1
    if ONLY is not None and kills > 0:
        break
qtest.comparisons += stamps.reads_checked
seconds = time.monotonic() - began
print("killed: %d times in %.0f s (%.0f a minute), with %d requests under "
      "way; requests: %d, units looked at: %d" % (
          kills, seconds, kills * 60 / seconds, under_way, stamps.requests,
          stamps.reads_checked))
qtest.finish("writing, then killed")
