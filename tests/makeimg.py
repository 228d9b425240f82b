# SPDX-License-Identifier: BSD-3-Clause
"""makeimg.py IMAGE EXPECTED [KEY=VALUE...]: an image with clusters of every
kind, and beside it the raw disk that must be read from it.

Keys: size, cluster_bits, version, order, extl2, comp, seed, snapshots (how
many; each one's disk goes to EXPECTED.N), backing (a raw file below it)."""

import os
import sys

from filled import fill
from qcow2make import Qcow2, Raw

out, expected = sys.argv[1:3]
o = dict(a.split("=", 1) for a in sys.argv[3:])
cb = int(o.get("cluster_bits", 16))
backing = Raw(o["backing"]) if "backing" in o else None
seed = o.get("seed", "img")
img = Qcow2(out, int(o.get("size", 40 << cb)), cluster_bits=cb,
            version=int(o.get("version", 3)),
            refcount_order=int(o.get("order", 4)),
            extl2=o.get("extl2", "0") != "0", comp=o.get("comp", "deflate"),
            seed=seed, backing=backing,
            backing_format="raw" if backing else None,
            layout=o.get("layout", "shuffled"))
fill(img, seed=seed)
snaps = []
for n in range(int(o.get("snapshots", 0))):
    snaps.append(img.snapshot(str(n + 1), "snap%d" % (n + 1)))
    img.seed = "%s-after-%d" % (seed, n)
    fill(img, seed=img.seed, count=15, first=n)
img.write()
with open(expected, "wb") as f:
    f.write(img.render())
for n, s in enumerate(snaps):
    with open("%s.%d" % (expected, n + 1), "wb") as f:
        f.write(img.render(s))
