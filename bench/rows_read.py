# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows which read."""

import clients
from common import OURS_QCOW2, QEMU_DEFAULT, say
from rows import Row, turns
from same import check_same


class ReadRow(Row):
    @property
    def needs_nbd(self):
        return self.data in ("tib", "scatter")

    def check(self, bench):
        check_same(bench, self.data, bench.start)

    def start(self, bench, server, reference, image, **kw):
        return bench.start(server, reference, image, **kw)

    def sample(self, bench, server, first):
        raw, image, *qcow2 = bench.data.get(self.data)
        cpu = bench.opts.cpu if self.depth == 1 else None
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        reference = qcow2[0] if server == OURS_QCOW2 else raw
        s = self.start(bench, server, reference, image, conns=self.conns,
                       cpu=cpu)
        try:
            return self.load(bench, s, self, raw, pin)
        finally:
            s.stop()

    def measure(self, bench):
        servers = self.servers()
        if (self.load is not clients.nbdinfo and self.reference == "raw" and
                not bench.opts.no_threads):
            servers += ["raw -t 1", "ours -t 1", "raw -t 4", "ours -t 4"]
        if self.data == "tib":
            # This data can't be read as a whole, to have it in the page
            # cache.  But fio reads the same places each time.
            for server in [s for s in servers if s != QEMU_DEFAULT]:
                say("%s, warming up: %s" % (self.name, server))
                self.sample(bench, server, True)
        return turns(bench, self, servers)


def rand(name, title, data, **kw):
    return ReadRow(name, title, data, clients.fio, "IOPS",
                   rw="randread", depth=16, **kw)


ROWS = [
    ReadRow("seq", "sequential read, all allocated (nbdcopy)",
            "seq", clients.nbdcopy, "MiB/s", 0.9, 1.5),
    rand("rand1", "random 4 KiB, depth 16, 1 connection", "seq",
         want_raw=0.85, want_qemu=1.3),
    rand("rand4", "random 4 KiB, depth 16, 4 connections", "seq",
         conns=4, want_raw=0.85, want_qemu=1.3),
    rand("tib1", "the same over 1 TiB, 1 connection", "tib",
         want_raw=0.85),
    rand("tib4", "the same over 1 TiB, 4 connections", "tib",
         conns=4, want_raw=0.85),
    ReadRow("deflate", "deflate, sequential (nbdcopy)",
            "deflate", clients.nbdcopy, "MiB/s", None, 2.5),
    ReadRow("deflate4k", "deflate, 4 KiB sequential, depth 1",
            "deflate", clients.fio, "IOPS", None, 8, rw="read", depth=1),
    ReadRow("zstd", "zstd, sequential (nbdcopy)",
            "zstd", clients.nbdcopy, "MiB/s", None, 1.4),
    ReadRow("map", "nbdinfo --map, 1 TiB, 8192 clusters",
            "scatter", clients.nbdinfo, "maps/s", None, 4),
    ReadRow("map-again", "the same map, repeated",
            "scatter", clients.nbdinfo, "maps/s", None, 4, again=True),
    rand("chain", "chain 16 deep, random 4 KiB, depth 16", "chain",
         want_qemu=1.3),
]
