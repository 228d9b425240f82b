# SPDX-License-Identifier: BSD-3-Clause
"""QED images by qemu-img, with what the tests of writing ask of an image."""

from qcow2make import Raw
from streams import noise
from qtest import run


class Qed:
    """An image of a QED disk, over a raw file or nothing."""

    format = "qed"
    extl2, compat, snapshots, active = False, 0, (), {}
    version = 2             # over a backing file trims may leave data

    def __init__(self, file, size, cluster_size=65536, table_size=4,
                 backing=None):
        self.path, self.size, self.cs = file, size, cluster_size
        self.backing = backing
        low = () if backing is None else ("-b", backing.path, "-F", "raw")
        run("qemu-img", "create", "-q", "-f", "qed", "-o",
            "cluster_size=%d,table_size=%d" % (cluster_size, table_size),
            *low, file, str(size))

    def render(self):
        content = bytearray(self.size)
        if self.backing is not None:
            with open(self.backing.path, "rb") as f:
                low = f.read(self.size)
            content[:len(low)] = low
        return content


def make(file, seed, clusters, cluster_size=65536, backed=False, **kw):
    """backed: the first three quarters of the disk are a backing file's."""
    size, low = clusters * cluster_size, None
    if backed:
        low = Raw(file + ".low", noise(seed, size * 3 // 4))
    return Qed(file, size, cluster_size, backing=low, **kw)
