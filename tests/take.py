# SPDX-License-Identifier: BSD-3-Clause
"""Internal snapshots of a disk that is being served: each is the disk as it was
when its first client connected, and stays, beside a guest that writes."""

import json
import os
import random
import threading

import nbd
import qtest
from points import KINDS, SIZE, Guest, check_image, make, must_fail
from qtest import path, run, check, equal, Server

PARAMS = ("point-in-time=true", "point-in-time-linger=0")


def names(file):
    """As QEMU lists them."""
    p = run("qemu-img", "info", "-U", "--output=json", file)
    return [s["name"] for s in json.loads(p.stdout).get("snapshots", [])]


def read_snapshot(file, kind, name):
    """By QEMU."""
    out = path("snapshot.raw")
    args = []
    if kind == "luks":
        args = ["--object", "secret,id=s,data=secret"]
        p = run("qemu-img", "convert", *args, "--image-opts",
                "driver=qcow2,encrypt.key-secret=s,file.filename=" + file,
                "-l", "snapshot.name=" + name, "-O", "raw", out)
    else:
        p = run("qemu-img", "convert", "-f", "qcow2", "-l",
                "snapshot.name=" + name, "-O", "raw", file, out)
    check(p.returncode == 0, "convert")
    with open(out, "rb") as f:
        return f.read()


def each_kind(kind, options, unit):
    qtest.images += 1
    rnd = random.Random(kind)
    file, params = make(kind, options, rnd)
    if kind == "snapshot":
        run("qemu-img", "snapshot", "-c", "old", file)
    srv = Server(file, *PARAMS, *params, readonly=False)
    guest = Guest(srv, rnd, unit)
    guest.steps(40)
    taken = {}
    for name in ("one", "with space", "a/b%", "\u00e4"):
        export = "take/" + name.replace("%", "%25").replace("/", "%2F")
        want = bytes(guest.disk)
        h = srv.connect(export)
        check(h.is_read_only() and h.get_size() == SIZE, "%s: %s" % (kind, name))
        taken[name] = want
        guest.steps(20)
        equal(qtest.read_all(h), want, "%s: %s" % (kind, name))
        h.shutdown()
        for old, content in taken.items():
            with_it = srv.connect("snapshot/" + old)
            equal(qtest.read_all(with_it), content, "%s: %s" % (kind, old))
            with_it.shutdown()
    equal(qtest.read_all(guest.h), bytes(guest.disk), "%s: live" % kind)
    live = bytes(guest.disk)
    guest.h.shutdown()
    listed = run("nbdinfo", "--list", srv.uri()).stdout.decode()
    check("snapshot/one" in listed and "take/" not in listed, "list: " + listed)
    must_fail(srv, "take/one", "exists already: read \"snapshot/one\"")
    srv.stop(quiet=False)
    check_image(file, kind)
    old = ["old"] if kind == "snapshot" else []
    check(names(file) == old + list(taken), "%s: %s" % (kind, names(file)))
    for name, want in taken.items():
        if "%" not in name and " " not in name:
            equal(read_snapshot(file, kind, name), want, "%s: %s by QEMU" % (
                kind, name))
    with Server(file, *params, readonly=False) as srv:
        h = srv.connect()
        equal(qtest.read_all(h), live, "%s: served again" % kind)
        h.shutdown()
        srv.stop()
    if kind != "luks":
        run("qemu-img", "snapshot", "-a", "one", file)
        run("qemu-img", "snapshot", "-d", "one", file)
    check_image(file, kind)


def while_it_writes():
    """Many take snapshots, by several connections each, while two guests write,
    nbdcopy reads one, and others share them."""
    file, _ = make("busy", "cluster_size=64k", random.Random(1))
    srv = Server(file, "point-in-time=true", readonly=False)
    stop = threading.Event()
    counts = [0, 0]

    def write(me):
        """Block after block, all of it the number of the round."""
        h = srv.connect()
        n = 0
        while not stop.is_set():
            n += 1
            h.pwrite(n.to_bytes(8, "big") * 512,
                     (n % 1000 * 2 + me) * 4096)
            counts[me] = n
        h.shutdown()

    threads = [threading.Thread(target=write, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    while min(counts) < 50:
        pass
    contents = {}
    for i in range(8):
        name = "s%d" % i
        before = list(counts)
        got = [None] * 4

        def take(k):
            h = srv.connect("take/" + name)
            got[k] = h.pread(SIZE, 0)
            h.shutdown()

        takers = [threading.Thread(target=take, args=(k,)) for k in range(4)]
        for t in takers:
            t.start()
        for t in takers:
            t.join()
        check(all(g == got[0] for g in got), "busy: they are not the same")
        for me in (0, 1):
            last = max(int.from_bytes(got[0][at:at + 8], "big") for at in
                       range(me * 4096, 2000 * 4096, 8192))
            check(last >= before[me], "busy: not what had been answered")
            for at in range(me * 4096, 2000 * 4096, 8192):
                n = int.from_bytes(got[0][at:at + 8], "big")
                check(n == last - (last - at // 8192) % 1000 or
                      (n == 0 and last < 1000), "busy: no moment")
        contents[name] = got[0]
    run("nbdcopy", "--connections=4", srv.uri("take/copied"), path("copy"))
    with open(path("copy"), "rb") as f:
        contents["copied"] = f.read()
    stop.set()
    for t in threads:
        t.join()
    srv.stop()
    check_image(file, "busy")
    check(names(file) == list(contents), "busy: %s" % names(file))
    for name, want in contents.items():
        equal(read_snapshot(file, "busy", name), want, "busy: %s" % name)


def killed():
    """In the midst of taking one: the image is whole, with it or without."""
    rnd = random.Random(5)
    for i in range(qtest.volume(6)):
        file, _ = make("killed%d" % i, "cluster_size=4k", rnd)
        srv = Server(file, *PARAMS, readonly=False)
        live = srv.connect()
        want = rnd.randbytes(SIZE)
        for at in range(0, SIZE, 1 << 20):
            live.pwrite(want[at:at + (1 << 20)], at)
        live.flush()
        threading.Timer(i * 0.003, srv.p.kill).start()
        try:
            srv.connect("take/x")
            made = True
        except nbd.Error:
            made = False
        srv.p.kill()
        srv.p.wait()
        with Server(file, readonly=False, opts=()) as srv:
            live = srv.connect()
            equal(qtest.read_all(live), want, "killed: live")
            live.pwrite(b"x", 0)
            live.shutdown()
            exports = run("nbdinfo", "--list", srv.uri()).stdout.decode()
            check(not made or "snapshot/x" in exports, "killed: it is not there")
            if "snapshot/x" in exports:
                h = srv.connect("snapshot/x")
                equal(qtest.read_all(h), want, "killed: snapshot")
                h.shutdown()
            srv.stop(quiet=False)  # it tells of a repair
        check_image(file, "killed")


def refused():
    file, _ = make("refused", "refcount_bits=1", random.Random(1))
    with Server(file, *PARAMS, readonly=False) as srv:
        must_fail(srv, "take/x", "its refcounts have one bit")
        must_fail(srv, "take/", "the name of a new snapshot must follow")
        must_fail(srv, "take/a/b", "the name of a new snapshot must follow")
        srv.stop(quiet=False)
    file, _ = make("plain", "", random.Random(1))
    with open(file, "rb") as f:
        before = f.read()
    with Server(file, *PARAMS) as srv:
        must_fail(srv, "take/x", "it is not writable")
        srv.stop(quiet=False)
    with Server(file, *PARAMS, readonly=False) as srv:
        must_fail(srv, "take/" + "n" * 256, "at most 255 bytes")
        srv.stop(quiet=False)
    with Server(file, readonly=False) as srv:
        must_fail(srv, "take/x", "there is no export")
        srv.stop(quiet=False)
    with open(file, "rb") as f:
        check(f.read() == before, "refused: it was written")


def main():
    for k in KINDS:
        each_kind(*k)
    while_it_writes()
    killed()
    refused()
    qtest.finish("taken snapshots")


if __name__ == "__main__":
    main()
