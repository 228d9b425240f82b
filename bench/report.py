# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""The report, in markdown."""

import os
import platform
import statistics
import time

from common import (CONVERT_TUNED, DURABLE, MiB, OURS_QCOW2, QEMU_TUNED,
                    TUNED_FLAGS, run)


def medians(samples):
    return {k: statistics.median(s[k] for s in samples) for k in samples[0]}


def number(x):
    if x is None:
        return "-"
    if x >= 1000:
        return "%d" % round(x)
    return "%.3g" % x


def cpu_text(row, x):
    if x is None:
        return "-"
    if row.unit == "IOPS":
        return "%.1f us" % (x * 1e6)
    if row.unit == "MiB/s":
        return "%.2f s/GiB" % x
    return "%.0f ms" % (x * 1e3)


def aim(text, want, good):
    return "%s (%s: %s)" % (text, want, "yes" if good else "**no**")


def over(a, b, want=None):
    """a / b, if there are both."""
    if not a or not b:
        return "-"
    x = a / b
    text = "%.2f" % x
    return aim(text, "≥ %g" % want, x >= want) if want else text


def speed_line(row, med, first, title, raw, qemu, ours):
    r, q, o = (med.get(s, {}).get("speed") for s in (raw, qemu, ours))
    mine = number(o)
    if row.want and first:
        mine = aim(mine, "≥ %g" % row.want, o >= row.want)
    return [title, row.unit, number(r),
            number(q) + (" (tuned)" if qemu.startswith(QEMU_TUNED) else ""),
            mine,
            over(o, r, row.want_raw if first else None),
            over(o, q, row.want_qemu if first else None),
            over(q, r)]


def cpu_line(row, med, title, *servers):
    r, q, o = (med.get(s, {}).get("cpu") for s in servers)
    return [title, *(cpu_text(row, x) for x in (r, q, o)),
            over(o, r), over(o, q)]


def rss_line(med, title, *servers):
    return [title] + ["%.1f MiB" % (med[s]["rss"] / MiB) for s in servers]


def size_line(row, med, title, raw, qemu, ours):
    q, o = med[qemu], med[ours]
    ratio = o["length"] / q["length"]
    text = "%.3f" % ratio
    if row.want_length:
        text = aim(text, "≤ %g" % row.want_length, ratio <= row.want_length)
    disk = "%d" % o["disk"]
    if row.want_disk:
        disk = aim(disk, "≤ %d" % row.want_disk, o["disk"] <= row.want_disk)
    return [title, "%d" % q["length"], "%d" % o["length"], text,
            "%d" % q["disk"], disk]


def table(about, head, rule, lines):
    """Lines of markdown; none without lines."""
    if not lines:
        return []
    return (["", about, ""] if about else []) + [head, rule] + [
        "| %s |" % " | ".join(line) for line in lines]


def speed_table(about, reference, lines):
    return table(about,
                 "| workload | unit | %s | qemu | ours | ours/%s | ours/qemu "
                 "| qemu/%s |" % ((reference,) * 3),
                 "|---|---|---:|---:|---:|---|---|---:|", lines)


def cpu_table(about, reference, lines):
    return table(about,
                 "| workload | %s | qemu | ours | ours/%s | ours/qemu |"
                 % ((reference,) * 2),
                 "|---|---:|---:|---:|---:|---:|", lines)


def report(results):
    speed, cpu = ({"raw": [], OURS_QCOW2: []} for _ in range(2))
    rss, size = [], []
    for row, got in results:
        med = {s: medians(v) for s, v in got.items()}
        lines = row.lines(med)
        for line in lines:
            speed[row.reference].append(speed_line(row, med, line is lines[0],
                                                   *line))
            cpu[row.reference].append(cpu_line(row, med, *line))
        if row.data == "tib":
            rss.append(rss_line(med, *lines[0]))
        if row.kind == "create":
            size.append(size_line(row, med, *lines[0]))
    cpu_about = "The server's CPU time per unit of work (user and system)"
    return "\n".join(
        speed_table(None, "raw", speed["raw"]) +
        cpu_table(cpu_about + "; for a new image that of all programs which "
                  "make it:", "raw", cpu["raw"]) +
        speed_table("QED and external data files, beside the same data in "
                    "an ordinary image, which this plugin serves too:",
                    "qcow2", speed[OURS_QCOW2]) +
        cpu_table(cpu_about + ", of these:", "qcow2", cpu[OURS_QCOW2]) +
        table("The server's peak resident memory:",
              "| workload | raw | qemu | ours |",
              "|---|---:|---:|---:|", rss) +
        table("The length of the new images, and what they take on disk, in "
              "bytes:",
              "| workload | qemu | ours | ours/qemu | qemu, on disk "
              "| ours, on disk |",
              "|---|---:|---:|---|---:|---|", size))


def header(bench, rows):
    def first(*cmd):
        return run(*cmd).decode().split("\n")[0]
    cpus = len(os.sched_getaffinity(0))
    model = platform.machine()
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    o = bench.opts
    lines = [
        "%s; %d CPUs, %s; Linux %s; %s; %s; libnbd %s; %s." % (
            time.strftime("%Y-%m-%d"), cpus, model, platform.release(),
            first("nbdkit", "--version"),
            first("qemu-nbd", "--version").partition(" (")[0],
            first("nbdcopy", "--version").split()[-1],
            first("fio", "--version")),
        "Medians of %d rounds%s, %g s for each run of fio (those which "
        "write to new clusters: a fixed number of requests)." % (
            o.rounds, " (--quick: smaller data)" if o.quick else "",
            o.seconds) +
        (" A flush ends each random write row." if o.flush else ""),
    ]
    if bench.aio:
        lines.append("qemu is the better of qemu-nbd's default flags and "
                     "(tuned) `-e 16 %s`."
                     % " ".join(bench.aio + TUNED_FLAGS))
    if any(r.kind == "create" for r in rows):
        lines.append("For new images qemu is the better of qemu-img's "
                     "default flags and (tuned) `%s`; with `%s` its image is "
                     "durable at the end, as ours is in any case."
                     % (" ".join(CONVERT_TUNED), DURABLE.strip()))
    return "\n".join(lines + [n + "." for n in bench.notes])
