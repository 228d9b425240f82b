# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows with QED, LUKS and external data files."""

import clients
import proofs
from common import GiB, OURS_QCOW2
from rows_read import ReadRow
from rows_write import WriteRow, write4k


class QedRow(ReadRow):
    """The same data as QED, and as qcow2 served by us."""
    format = "qed"
    reference = OURS_QCOW2
    table = "qcow2"

    def __init__(self, name, title, load, unit, **kw):
        super().__init__(name, title, "qed", load, unit, **kw)
        self.sets = ["qed", "seq"]


class QedWriteRow(WriteRow):
    format = "qed"
    table = "qcow2"


class LuksRow(ReadRow):
    format = "luks"

    def __init__(self, name, title, load, unit, **kw):
        super().__init__(name, title, "luks", load, unit, **kw)
        self.sets = ["luks", "seq"]


class LuksWriteRow(WriteRow):
    format = "luks"

    def __init__(self, name, title, load, unit, image, sets=(), **kw):
        super().__init__(name, title, load, unit, image, sets, **kw)
        if image == "copy":
            self.sets.append("luks")


class DataFileRow(ReadRow):
    """The data in a file of its own, and in the image, served by us."""
    format = "datafile"
    reference = OURS_QCOW2
    table = "qcow2"

    def __init__(self, name, title, load, unit, **kw):
        super().__init__(name, title, "datafile", load, unit, **kw)
        self.sets = ["datafile", "seq"]


class DataFileWriteRow(WriteRow):
    format = "datafile"
    reference = OURS_QCOW2
    table = "qcow2"


ROWS = [
    QedRow("qedseq", "QED, sequential read, all allocated (nbdcopy)",
           clients.nbdcopy, "MiB/s", want_raw=0.95, want_qemu=1.5),
    QedRow("qedrand1", "QED, random 4 KiB, depth 16, 1 connection",
           clients.fio, "IOPS", rw="randread", depth=16, want_raw=0.95,
           want_qemu=1.3),
    QedRow("qedrand4", "QED, random 4 KiB, depth 16, 4 connections",
           clients.fio, "IOPS", rw="randread", depth=16, conns=4,
           want_raw=0.95, want_qemu=1.3),
    write4k("qedwrand", "QED, random 4 KiB writes, fresh 16 GiB, depth 16",
            "fresh", row=QedWriteRow, size=16 * GiB, count=40000,
            want_qemu=1.5),
    write4k("qedwback", "QED, random 4 KiB writes over backing, depth 16",
            "overlay", row=QedWriteRow, count=8192, want_qemu=1.5),
    LuksRow("luksseq", "LUKS, sequential read, all allocated (nbdcopy)",
            clients.nbdcopy, "MiB/s", want_qemu=3),
    LuksRow("luksrand1", "LUKS, random 4 KiB, depth 16, 1 connection",
            clients.fio, "IOPS", rw="randread", depth=16, want_qemu=1.3),
    LuksWriteRow("lukswseq", "LUKS, sequential write, fresh, with flush "
                 "(nbdcopy)", clients.copy_to, "MiB/s", "fresh", ["source"],
                 proof=proofs.prove_copy, want_qemu=2),
    write4k("luksover1", "LUKS, random 4 KiB overwrites, depth 16", "copy",
            row=LuksWriteRow, count=131072, want_qemu=1.3),
    DataFileRow("dataseq", "data file, sequential read (nbdcopy)",
                clients.nbdcopy, "MiB/s", want_raw=0.95),
    DataFileRow("datarand1", "data file, random 4 KiB, depth 16, "
                "1 connection", clients.fio, "IOPS", rw="randread", depth=16,
                want_raw=0.95),
    DataFileWriteRow("datawseq", "data file, sequential write, fresh, with "
                     "flush (nbdcopy)", clients.copy_to, "MiB/s", "fresh",
                     ["source"], proof=proofs.prove_copy, want_raw=0.95),
    write4k("dataover1", "data file, random 4 KiB overwrites, depth 16",
            "copy", row=DataFileWriteRow, count=131072, want_raw=0.95),
]
