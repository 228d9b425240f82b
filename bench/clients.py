# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""The workloads.  Each returns a dict: "speed", more is better; "cpu", seconds
of the server's CPU per unit of work; perhaps "rss".  Of those which write
"requests" is how many there were, for the proof."""

import json
import os
import time

from common import CLUSTER, GiB, MiB, die, run, stamp


def nbdcopy(bench, s, row, raw, pin):
    size, t = 0, 0
    c0 = s.cpu()
    t0 = time.monotonic()
    # Several times if it is fast, as the clock of cpu() is coarse.
    while t < bench.opts.seconds / 3:
        run("nbdcopy", s.uri(), "null:")
        t = time.monotonic() - t0
        size += os.path.getsize(raw)
    return {"speed": size / t / MiB, "cpu": (s.cpu() - c0) / size * GiB}


def run_fio(bench, s, row, pin, *options):
    cmd = ["fio", "--name=bench", "--ioengine=nbd", "--uri=" + s.uri(),
           "--rw=" + row.rw, "--bs=%d" % row.bs,
           "--iodepth=%d" % row.depth,
           "--numjobs=%d" % row.conns, "--group_reporting",
           "--randseed=5", "--output-format=json"]
    c0 = s.cpu()
    out = run(*pin, *cmd, *options).decode()
    c = s.cpu() - c0
    out = json.loads(out[out.index("{"):])["jobs"][0]
    if out["error"]:
        die("fio reported error", out["error"])
    out = out[row.rw.replace("rand", "")]
    return {"speed": out["iops"],
            "cpu": c / out["total_ios"],
            "rss": s.peak_rss(),
            "requests": out["total_ios"]}


def fio(bench, s, row, raw, pin):
    return run_fio(bench, s, row, pin, "--time_based",
                   "--runtime=%dms" % (bench.opts.seconds * 1000),
                   "--size=%d" % os.path.getsize(raw), "--norandommap")


def nbdinfo(bench, s, row, raw, pin):
    # The first one after the start ...
    c0 = s.cpu()
    t0 = time.monotonic()
    run("nbdinfo", "--map", s.uri())
    t = time.monotonic() - t0
    if row.again:
        # ... or with whatever the server remembers of it.
        n = 5
        c0 = s.cpu()
        t0 = time.monotonic()
        for _ in range(n):
            run("nbdinfo", "--map", s.uri())
        t = (time.monotonic() - t0) / n
        return {"speed": 1 / t, "cpu": (s.cpu() - c0) / n}
    return {"speed": 1 / t, "cpu": s.cpu() - c0}


def copy_to(bench, s, row, salt, pin):
    source, = bench.data.get("source")
    size = os.path.getsize(source)
    c0 = s.cpu()
    t0 = time.monotonic()
    run("nbdcopy", "--flush", source, s.uri())
    t = time.monotonic() - t0
    return {"speed": size / t / MiB, "cpu": (s.cpu() - c0) / size * GiB}


def fio_write(bench, s, row, salt, pin):
    """No place is written twice, and each connection has its own part
    of the disk: as many places have changed as there were requests."""
    size = (row.size or bench.data.seq_size) // row.conns
    options = ["--size=%d" % size, "--offset_increment=%d" % size]
    if row.count:
        # The same work for each, as it gets easier the more clusters
        # are allocated already.
        n = row.count // (8 if bench.opts.quick else 1)
        options.append("--io_size=%d" % (n // row.conns * row.bs))
    elif row.runtime and not bench.opts.quick:
        options.append("--runtime=%ds" % row.runtime)
    else:
        options.append("--runtime=%dms" % (bench.opts.seconds * 500))
    if row.rw == "randwrite":
        options += ["--verify=pattern", "--do_verify=0",
                    "--verify_state_save=0",
                    "--verify_pattern=%o0x" + salt.hex()]
    if row.flush:
        options.append("--fsync=1")
    c0 = s.cpu()
    got = run_fio(bench, s, row, pin, *options)
    if row.flush_after or bench.opts.flush and not row.flush:
        n = got["requests"]
        t = n / got["speed"] + flush(bench, s)
        got.update(speed=n / t, cpu=(s.cpu() - c0) / n)
    return got


def flush(bench, s):
    """Returns how long it took."""
    h = bench.connect(s)
    t0 = time.monotonic()
    h.flush()
    t = time.monotonic() - t0
    h.shutdown()
    return t


# Written before, to see them go in the first 100 GiB, and stay above.
MARKERS = [i * 7 * GiB + i * CLUSTER for i in range(28)]


def zero(bench, s, row, salt, pin):
    h = bench.connect(s)
    for at in MARKERS:
        h.pwrite(stamp(at, salt), at)
    h.flush()
    c0 = s.cpu()
    t0 = time.monotonic()
    for i in range(100):
        h.zero(GiB, i * GiB)
    h.flush()
    t = time.monotonic() - t0
    c = s.cpu() - c0
    h.shutdown()
    return {"speed": 100 / t, "cpu": c}
