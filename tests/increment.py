# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit-qcow2-tool increment, against the disk that its chain must be."""

import json
import os
import random
import signal
import subprocess
import time

import qtest
from qtest import path, run, check, equal, Server

MIB = 1 << 20
TOOL = os.path.join(os.environ["BUILD"], "tool/nbdkit-qcow2-tool")


def increment(uri, new, full, *options, ok=True):
    return run(TOOL, "increment", uri, path(new), "--backing=" + full,
               *options, ok=ok)


def raw(file, *options):
    run("qemu-img", "convert", "-O", "raw", *options, path(file),
        path("raw"))
    with open(path("raw"), "rb") as f:
        return f.read()


def own(file):
    """What is not the backing file's: (bytes of data, of zeros)."""
    entries = [e for e in json.loads(run(
        "qemu-img", "map", "--output=json", path(file)).stdout)
        if e["depth"] == 0]
    return (sum(e["length"] for e in entries if e["data"]),
            sum(e["length"] for e in entries if not e["data"]))


def io(file, *commands):
    run("qemu-io", "-f", "qcow2", *[x for c in commands for x in ("-c", c)],
        path(file))


def by_snapshots(options, size):
    """A full copy of the first, an increment for each that follows."""
    qtest.images += 1
    rnd = random.Random(options)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options,
        path("d.qcow2"), str(size))
    want = []
    for k in range(4):
        if k == 2:
            size += 3 * MIB
            run("qemu-img", "resize", "-q", path("d.qcow2"), str(size))
        io("d.qcow2", *["%s %d %d" % (
            rnd.choice(("write -P %d" % rnd.randrange(1, 256), "write -z",
                        "discard")),
            rnd.randrange((size - 300 * 512) // 512) * 512,
            512 * (1 + rnd.randrange(300))) for _ in range(12)])
        want.append(raw("d.qcow2"))
        run("qemu-img", "snapshot", "-c", "s%d" % k, path("d.qcow2"))
    names = ["inc%d.qcow2" % k for k in range(4)]
    for n in names:
        if os.path.exists(path(n)):
            os.remove(path(n))
    with Server("file=" + path("d.qcow2")) as srv:
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2",
            srv.uri("snapshot/s0"), path(names[0]))
        for k in 1, 2, 3:
            extra = ["--follow=beneath", "--backing-format=qcow2"]
            if k == 2:
                p = increment(srv.uri("changed/s1/s2"), names[2], names[1],
                              *extra, ok=False)
                check(b"--resized" in p.stderr, "resized: %s" % p.stderr)
                extra.append("--resized")
            if k == 3:
                extra.append("--compress=zstd" if "1.1" in options else
                             "--compress=zlib")
            increment(srv.uri("changed/s%d/s%d" % (k - 1, k)), names[k],
                      names[k - 1], *extra)
    for k, name in enumerate(names):
        equal(raw(name), want[k], "%s: %s" % (options, name))
        run("qemu-img", "check", "-q", path(name))


def sizes():
    """Only what has changed is in it; zeros take no space."""
    qtest.images += 1
    run("qemu-img", "create", "-q", "-f", "qcow2", path("s.qcow2"), "64M")
    io("s.qcow2", "write -P 1 0 64M")
    run("qemu-img", "bitmap", "--add", path("s.qcow2"), "b")
    run("qemu-img", "convert", "-O", "qcow2", path("s.qcow2"),
        path("sfull.qcow2"))
    io("s.qcow2", "write -P 2 1M 1M", "write -z 8M 4M", "discard 20M 1M",
       "write -P 3 %d 512" % (30 * MIB + 512))
    with Server("file=" + path("s.qcow2")) as srv:
        p = increment(srv.uri("bitmap/b"), "sinc.qcow2", "sfull.qcow2",
                      "--progress")
        check(b"100%\n" in p.stderr, "progress: %s" % p.stderr)
        equal(own("sinc.qcow2"), (MIB + 65536, 5 * MIB), "what it has")
        equal(raw("sinc.qcow2"), raw("s.qcow2"), "sizes")
        check(not [n for n in os.listdir(path(".")) if n.startswith("sinc")
                   and n != "sinc.qcow2"], "a temporary file is left")
        # The live disk itself: all of it is copied.
        increment(srv.uri(), "sall.qcow2", "sfull.qcow2")
        equal(raw("sall.qcow2"), raw("s.qcow2"), "all of it")


def refused():
    run("qemu-img", "create", "-q", "-f", "qcow2", path("r.qcow2"), "4M")
    run("qemu-img", "create", "-q", "-f", "qcow2", path("other.qcow2"), "5M")
    run("qemu-img", "create", "-q", "-f", "raw", path("full.raw"), "4M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "full.raw", "-F",
        "raw", path("upper.qcow2"))
    run("qemu-img", "create", "-q", "-f", "qcow2", path("same.qcow2"), "4M")
    run("qemu-img", "snapshot", "-c", "s", path("r.qcow2"))
    with Server("file=" + path("r.qcow2")) as srv:
        uri = srv.uri("changed/s")
        for name, why, *args in (
                ("r.qcow2", "exists already", uri, "same.qcow2"),
                ("n.qcow2", "No such file", uri, "none.qcow2"),
                ("n.qcow2", "--resized", uri, "other.qcow2"),
                ("n.qcow2", "follow", uri, "upper.qcow2"),
                ("n.qcow2", "full.raw", uri, "full.raw"),
                ("none/n.qcow2", "No such file", uri,
                 path("r.qcow2")),
                ("n.qcow2", "", srv.uri("changed/none"), "full.raw"),
                ("n.qcow2", "", "nbd+unix:///?socket=/nowhere", "full.raw")):
            p = increment(args[0], name, args[1], ok=False)
            check(p.returncode == 1 and why.encode() in p.stderr,
                  "%s on %s: %s" % (name, args[1], p.stderr))
        after = [n for n in os.listdir(path("."))
                 if n.split(".")[0] in ("n", "r", "none")]
        equal(sorted(after), ["r.qcow2"], "files that are left")
        srv.stop(quiet=False)


def interrupted():
    """A server that goes away leaves nothing."""
    qtest.images += 1
    run("qemu-img", "create", "-q", "-f", "qcow2", path("i.qcow2"), "64M")
    io("i.qcow2", "write -P 1 0 64M")
    run("qemu-img", "create", "-q", "-f", "qcow2", path("ifull.qcow2"), "64M")
    with Server("file=" + path("i.qcow2"), "error-pread=EIO",
                "error-pread-rate=100%", opts=["--filter=error"]) as srv:
        p = increment(srv.uri(), "inew.qcow2", "ifull.qcow2", ok=False)
        check(p.returncode == 1, "an error was not told")
        equal([n for n in os.listdir(path(".")) if n.startswith("inew")], [],
              "left by an error")
        srv.stop(quiet=False)


def left(new):
    return [n for n in os.listdir(path(".")) if n.startswith(new)]


def hung_up():
    """nohup: it goes on."""
    qtest.images += 1
    run("qemu-img", "create", "-q", "-f", "qcow2", path("h.qcow2"), "4M")
    io("h.qcow2", "write -P 1 0 4M")
    run("qemu-img", "create", "-q", "-f", "qcow2", path("hfull.qcow2"), "4M")
    with Server("file=" + path("h.qcow2"), "rdelay=1",
                opts=["--filter=delay"]) as srv:
        tool = subprocess.Popen(
            [TOOL, "increment", srv.uri(), path("hnew.qcow2"),
             "--backing=hfull.qcow2"],
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        while tool.poll() is None and not left("hnew"):
            time.sleep(0.01)
        tool.send_signal(signal.SIGHUP)
        equal(tool.wait(), 0, "SIGHUP that is ignored")
    equal((raw("hnew.qcow2"), left("hnew")), (raw("h.qcow2"), ["hnew.qcow2"]),
          "made under nohup")


def is_pending(pid, how):
    with open("/proc/%d/status" % pid) as f:
        masks = [int(line.split()[1], 16) for line in f
                 if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(m >> (how - 1) & 1 for m in masks)


def stopped(how, twice=False, **delay):
    """A signal ends it, though the server is silent, and leaves nothing.  It
    may come twice: timeout(1) sends it to the process, and to its group.
    """
    qtest.images += 1
    run("qemu-img", "create", "-q", "-f", "qcow2", path("k.qcow2"), "64M")
    io("k.qcow2", "write -P 1 0 64M")
    run("qemu-img", "create", "-q", "-f", "qcow2", path("kfull.qcow2"), "64M")
    with Server("file=" + path("k.qcow2"),
                *["%s=%d" % d for d in delay.items()],
                opts=["--filter=delay"]) as srv:
        tool = subprocess.Popen(
            [TOOL, "increment", srv.uri(), path("knew.qcow2"),
             "--backing=kfull.qcow2"], stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(how, signal.SIG_DFL))
        while tool.poll() is None and not left("knew"):
            time.sleep(0.01)
        tool.send_signal(how)
        if twice:
            while is_pending(tool.pid, how):
                pass
            os.kill(tool.pid, how)
        try:
            _, told = tool.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            tool.kill()
            _, told = tool.communicate()
        equal((tool.returncode, left("knew")), (1, []),
              "%s, %s: %s" % (how, delay, told))
        check(b"interrupted" in told, "%s: %s" % (how, told))
        srv.stop(quiet=False)


def foreign(plugin, new, *options):
    """An increment of what another plugin of nbdkit serves."""
    run(qtest.NBDKIT, "-r", "-U", "-", *plugin, "--run",
        'exec "$0" increment "$uri" "$@"'.replace("$0", TOOL).replace(
            "$@", '" "'.join((path(new),) + options)))


def odd_size():
    """The rest of the last sector is zeros, not what the full copy has."""
    qtest.images += 1
    content = b"x" * 700001
    with open(path("odd.raw"), "wb") as f:
        f.write(content)
    run("qemu-img", "create", "-q", "-f", "qcow2", path("ofull.qcow2"), "1M")
    io("ofull.qcow2", "write -P 0x11 0 1M")
    for name, *options in ("odd.qcow2",), ("oddz.qcow2", "--compress=zlib"):
        foreign(("file", path("odd.raw")), name, "--backing=ofull.qcow2",
                "--resized", *options)
        equal(raw(name), content + bytes(415), "an odd size: %s" % name)
        run("qemu-img", "check", "-q", path(name))


def tiny_extents():
    """A server that tells of each byte by itself: few requests, and all that has
    changed is copied.
    """
    size = 4 * 65536 + 512
    rnd = random.Random("tiny")
    content = rnd.randbytes(size)
    with open(path("tiny.raw"), "wb") as f:
        f.write(content)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", path("tiny.raw"),
        path("tfull.qcow2"))
    io("tfull.qcow2", *["write -P 1 %d 512" % at for at in (
        65536 + 512, 2 * 65536 - 512, size - 512)])
    for name, awk in (
            # All bytes of the second cluster, and each third of the last.
            ("many", "for (i = o; i < o + n; ++i) print i, 1,"
             " (i >= 262144 ? (i % 3 != 0) :"
             " (i >= 65536 && i < 131072 ? i % 2 : 1))"),
            ("one", "print o, 1, 1")):
        qtest.images += 1
        foreign(("eval", "get_size=echo %d" % size,
                 "pread=echo r >> '%s'; dd if='%s' skip=$4 count=$3 "
                 "iflag=count_bytes,skip_bytes status=none" % (
                     path(name + ".log"), path("tiny.raw")),
                 "can_extents=exit 0",
                 "extents=echo e >> '%s'; awk -v o=$4 -v n=$3 'BEGIN { %s }'" % (
                     path(name + ".log"), awk)),
                name + ".qcow2", "--backing=tfull.qcow2")
        equal(raw(name + ".qcow2"), content, "%s extents" % name)
        with open(path(name + ".log")) as f:
            requests = len(f.readlines())
        check(requests <= 10, "%s extents: %d requests" % (name, requests))


if __name__ == "__main__":
    sizes()
    odd_size()
    tiny_extents()
    refused()
    interrupted()
    hung_up()
    stopped(signal.SIGHUP, rdelay=600)
    stopped(signal.SIGINT, rdelay=600)
    stopped(signal.SIGTERM, **{"delay-extents": 600})
    for _ in range(5):
        stopped(signal.SIGTERM, twice=True, rdelay=600)
        stopped(signal.SIGINT, twice=True, rdelay=600)
    by_snapshots("compat=1.1", 20 * MIB)
    by_snapshots("compat=1.1,cluster_size=4k", 9 * MIB)
    by_snapshots("compat=1.1,extended_l2=on,cluster_size=128k", 20 * MIB)
    qtest.finish("increment")
