# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows with images on an NBD server."""

import os

import clients
import proofs
from common import QEMU_DEFAULT, QEMU_TUNED, MiB, run
from rows import turns
from rows_read import ReadRow
from rows_write import WriteRow
from same import check_same

# A wire which takes as long as this there and back.
DELAY = ("rdelay=1ms", "wdelay=1ms", "delay-extents=1ms")
# A server does not grow: what there is behind the image for its tables.
ROOM = 64 * MiB


class Far:
    """What those which read and those which write have in common."""
    kind = "far"
    table = "far"
    warm = False

    def start(self, bench, server, reference, image, **kw):
        s = bench.start_far(server, reference, image, self.delay, **kw)
        if self.delay and self.warm:
            run("nbdinfo", "--map", s.uri())
        return s


class FarReadRow(Far, ReadRow):
    def __init__(self, *args, delay=(), warm=True, **kw):
        super().__init__(*args, **kw)
        self.delay = delay
        self.warm = warm        # once the tables are in memory

    def check(self, bench):
        check_same(bench, self.data, bench.start_far, " over NBD")

    def measure(self, bench):
        return turns(bench, self, ["raw", QEMU_DEFAULT, "ours", QEMU_TUNED])


class FarWriteRow(Far, WriteRow):
    def __init__(self, *args, delay=(), **kw):
        super().__init__(*args, **kw)
        self.delay = delay
        self.warm = not self.fresh

    def serve(self, bench, server, path, **kw):
        size = (self.size or bench.data.seq_size) + ROOM
        if server != "raw" and os.path.getsize(path) < size:
            os.truncate(path, size)
        return self.start(bench, server, path, path, write=True, **kw)


def far4k(name, title, count, **kw):
    return FarWriteRow(name, title, clients.fio_write, "IOPS", "copy",
                       rw="randwrite", depth=16, count=count, **kw)


def far_copy_to(name, title, **kw):
    return FarWriteRow(name, title, clients.copy_to, "MiB/s", "fresh",
                       ["source"], proof=proofs.prove_copy, **kw)


ROWS = [
    FarReadRow("farseq", "NBD, sequential read, all allocated (nbdcopy)",
               "seq", clients.nbdcopy, "MiB/s", 0.8, 1.2),
    far_copy_to("farwseq", "NBD, sequential write, fresh, with flush "
                "(nbdcopy)", want_raw=0.8, want_qemu=1.2),
    FarReadRow("farrand1", "NBD, random 4 KiB, depth 16, 1 connection",
               "seq", clients.fio, "IOPS", 0.8, 1.2, rw="randread",
               depth=16),
    far4k("farover1", "NBD, random 4 KiB overwrites, depth 16", 131072,
          want_raw=0.8, want_qemu=1.2),
    FarReadRow("fardelayseq", "1 ms away, sequential read (nbdcopy)",
               "seq", clients.nbdcopy, "MiB/s", 0.9, delay=DELAY),
    far_copy_to("fardelaywseq", "1 ms away, sequential write, fresh, with "
                "flush (nbdcopy)", want_raw=0.9, delay=DELAY),
    FarReadRow("fardelayrand1", "1 ms away, random 4 KiB, depth 16",
               "seq", clients.fio, "IOPS", 0.9, rw="randread", depth=16,
               delay=DELAY),
    far4k("fardelayover1", "1 ms away, random 4 KiB overwrites, depth 16",
          32768, want_raw=0.9, delay=DELAY),
    FarReadRow("farmap", "1 ms away, nbdinfo --map, 1 TiB, 8192 clusters",
               "scatter", clients.nbdinfo, "maps/s", None, 3, delay=DELAY,
               warm=False),
]
