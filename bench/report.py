# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""The report, in markdown."""

import os
import platform
import statistics
import time

from common import (BEFORE, CONVERT_TUNED, DURABLE, MiB, QEMU_TUNED, TUNED_FLAGS,
                    run)


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
            number(q) + (" (tuned)" if q and qemu.startswith(QEMU_TUNED)
                         else ""),
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


def stop_line(med, title, live, _, ours):
    a, b = (1000 / med[s]["speed"] for s in (live, ours))
    return [title.partition(":")[0], "%.2f ms" % a, "%.2f ms" % b,
            aim("%.2f ms" % (b - a), "≤ 1 ms", b - a <= 1)]


def take_line(med, title, *servers):
    t = med["ours"]["seconds"]
    return [title, aim("%.2f s" % t, "≤ 3 s", t <= 3)]


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
    """Lines of markdown; none without lines.  What no line has is left
    out."""
    if not lines:
        return []
    kept = [i for i, column in enumerate(zip(*lines))
            if any(x != "-" for x in column)]
    rows = [[x.strip() for x in row.strip("|").split("|")]
            for row in (head, rule)] + lines
    return (["", about, ""] if about else []) + [
        "| %s |" % " | ".join(row[i] for i in kept) for row in rows]


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


CPU = "The server's CPU time per unit of work (user and system)"


class Table:
    """Rows which are compared with the same, and their headings."""

    def __init__(self, reference, about, cpu_about):
        self.reference = reference
        self.about = about
        self.cpu_about = cpu_about
        self.speed, self.cpu = [], []

    def add(self, row, med, lines):
        for line in lines:
            self.speed.append(speed_line(row, med, line is lines[0], *line))
            self.cpu.append(cpu_line(row, med, *line))

    def text(self):
        return (speed_table(self.about, self.reference, self.speed) +
                cpu_table(self.cpu_about, self.reference, self.cpu))


def tables():
    return {
        "raw": Table("raw", None, CPU + "; for a new image that of all "
                     "programs which make it:"),
        "qcow2": Table("qcow2", "QED and external data files, beside the "
                       "same data in an ordinary image, which this plugin "
                       "serves too:", CPU + ", of these:"),
        "far": Table("raw", "Over NBD: what is served lies behind `nbdkit "
                     "file`, raw is `nbdkit nbd`:", CPU + ", of these, "
                     "without that of the one behind:"),
        "backup": Table("without", "Backups: this plugin beside itself, "
                        "without a bitmap or a point, with a snapshot, or "
                        "copying all:", CPU + ", of these:"),
        BEFORE: Table(BEFORE, "This plugin beside another build of it:",
                      CPU + ", of these:"),
        "manage": Table("cp", "`nbdkit-qcow2-tool` and `qemu-img`, the same "
                        "command on the same image:", "The CPU time of the "
                        "commands (user and system):"),
    }


def report(results):
    kinds = tables()
    rss, size, stop, take = [], [], [], []
    for row, got in results:
        med = {s: medians(v) for s, v in got.items()}
        lines = row.lines(med)
        kinds[row.table].add(row, med, lines)
        if row.data == "tib":
            rss.append(rss_line(med, *lines[0]))
        if row.name == "pointstop":
            stop.append(stop_line(med, *lines[0]))
        if "seconds" in med.get("ours", {}):
            take.append(take_line(med, *lines[0]))
        if row.kind == "create":
            size.append(size_line(row, med, *lines[0]))
    return "\n".join(
        sum((t.text() for t in kinds.values()), []) +
        table("The server's peak resident memory:",
              "| workload | raw | qemu | ours |",
              "|---|---:|---:|---:|", rss) +
        table("How long a point in time holds a write up:",
              "| workload | beside the live disk | beside a point | more |",
              "|---|---:|---:|---|", stop) +
        table("How long making a snapshot takes:",
              "| workload | time |", "|---|---|", take) +
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
