# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows which create new images."""

import json
import os
import shlex
import time

from common import (CONVERT_TUNED, DURABLE, GiB, MiB, QEMU_DEFAULT, QEMU_TUNED,
                    TiB, allocated, cpu_of_children, die, run)
from rows import Row, faster_qemu, turns


def copy(source):
    return 'nbdcopy --flush %s "$uri"' % shlex.quote(source)


def new_by_us(bench, row, source, out):
    """The command which makes the image."""
    options = ["size=%d" % (row.size or os.path.getsize(source))]
    if row.compress:
        options.append("compress=" + row.compress)
    if row.level:
        options.append("compress-level=%d" % row.level)
    if row.size:
        client = "true"
        if source:
            options += ["backing=" + source, "backing-format=raw"]
    else:
        client = copy(source)
    return ["nbdkit", "-U", "-", bench.plugin, out, "create=true",
            *options, "--run", client]


def new_raw(source, out):
    """The same copy to a raw file, by nbdkit file."""
    return ["sh", "-c", 'truncate -s "$1" "$2" && '
            'exec nbdkit -U - file "$2" --run "$3"', "sh",
            "%d" % os.path.getsize(source), out, copy(source)]


def new_by_qemu(row, server, source, out):
    """The same by qemu-img."""
    if row.size:
        below = ["-b", source, "-F", "raw"] if source else []
        return ["qemu-img", "create", "-q", "-f", "qcow2", *below,
                out, str(row.size)]
    name, _, cache = server.partition(" -t ")
    options = []
    if name == QEMU_TUNED:
        options += CONVERT_TUNED
    if cache:
        options += ["-t", cache]
    if row.compress:
        options += ["-c", "-o", "compression_type=" + row.compress]
    return ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options,
            source, out]


def prove_new(row, server, source, out):
    """That the image is what was asked for, for QEMU."""
    size = row.size or os.path.getsize(source)
    info = json.loads(run("qemu-img", "info", "-f", "qcow2",
                          "--output=json", out))
    method = info["format-specific"]["data"]["compression-type"]
    if (info["virtual-size"], method) != (size, row.compress or "zlib"):
        die("%s: %s made an image of %d bytes, for %s"
            % (row.name, server, info["virtual-size"], method))
    # A shorter raw file counts as zeros from its end on.
    nothing = {"driver": "raw", "file": {
        "driver": "null-co", "size": size, "read-zeroes": True}}
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw",
        out, source or "json:" + json.dumps(nothing))


def time_command(bench, cmd):
    """Wall-clock from its start to its end, and the CPU time of all
    that it starts: (seconds, seconds), means if it is fast."""
    n, t, c0 = 0, 0, cpu_of_children()
    while t < bench.opts.seconds / 3:
        bench.data.drop("written.*")
        t0 = time.monotonic()
        run(*cmd)
        t += time.monotonic() - t0
        n += 1
    return t / n, (cpu_of_children() - c0) / n


class CreateRow(Row):
    kind = "create"
    qemu_nbd = False

    def __init__(self, name, title, source=None, compress=None, level=None,
                 size=None, want=None, want_length=None, want_disk=None,
                 **kw):
        super().__init__(name, title, None, None,
                         "images/s" if size else "MiB/s", **kw)
        # A data set.  Its raw file is copied to the image, or, if there is
        # a size, is the backing file of an image of that size.
        self.source = source
        self.sets = [source] if source else []
        self.compress = compress
        self.level = level
        self.size = size
        self.want = want
        self.want_length = want_length  # times QEMU's, at most
        self.want_disk = want_disk  # bytes on disk, at most
        if size:
            self.servers = [QEMU_DEFAULT, "ours"]
        else:
            # Without -W QEMU compresses one cluster at a time.
            qemu = [QEMU_TUNED] if compress else [QEMU_DEFAULT, QEMU_TUNED]
            raw = [] if compress else ["raw"]
            self.servers = raw + qemu + ["ours"] + [q + DURABLE for q in qemu]

    def lines(self, med):
        out = [(self.title, "raw", faster_qemu(med), "ours")]
        if QEMU_TUNED + DURABLE in med:
            out.append((self.title + ", qemu-img" + DURABLE, None,
                        faster_qemu(med, DURABLE), "ours"))
        return out

    def sample(self, bench, server, first):
        source = bench.data.get(self.source)[0] if self.source else None
        out = bench.data.path("written.qcow2")
        if server == "ours":
            cmd = new_by_us(bench, self, source, out)
        elif server == "raw":
            cmd = new_raw(source, out)
        else:
            cmd = new_by_qemu(self, server, source, out)
        t, c = time_command(bench, cmd)
        if server == "raw":
            run("cmp", source, out)
        else:
            run("qemu-img", "check", "-q", "-f", "qcow2", out)
            if first:
                prove_new(self, server, source, out)
        got = {"speed": 1 / t, "cpu": c,
               "length": os.path.getsize(out), "disk": allocated(out)}
        if not self.size:
            size = os.path.getsize(source)
            got.update(speed=size / t / MiB, cpu=c / size * GiB)
        bench.data.drop("written.*")
        return got

    def measure(self, bench):
        bench.data.get_warm(self.sets)
        return turns(bench, self, self.servers)


ROWS = [
    CreateRow("newraw", "raw to a new image", "source", want_qemu=1.2),
    CreateRow("newzlib", "raw to a new image, zlib", "text", "zlib",
              want_qemu=4, want_length=1.1),
    CreateRow("newzlibsize", "raw to a new image, zlib level 5", "text",
              "zlib", 5, want_qemu=1, want_length=1.02),
    CreateRow("newzstd", "raw to a new image, zstd", "text", "zstd",
              want_qemu=1.3, want_length=1.02),
    # 50 ms each, at most.
    CreateRow("newlarge", "empty image of 16 TiB", size=16 * TiB, want=20,
              want_disk=MiB),
    CreateRow("newoverlay", "overlay of 16 TiB", "source", size=16 * TiB,
              want=20, want_disk=MiB),
]
