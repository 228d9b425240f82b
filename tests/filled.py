# SPDX-License-Identifier: BSD-3-Clause
"""Images with clusters of every kind, and large disks with few."""

import random

from qcow2make import COPIED, Qcow2, be64
from streams import DEFLATE_FORMS, ZSTD_FORMS, noise, text


def scattered(path, size, clusters, cluster_bits=16):
    """A large disk with data in these guest clusters only, written straight
    into a sparse file: no refcounts, which no reader needs.  Returns what
    tag() puts at the start of each; the rest of a cluster is zeros."""
    img = Qcow2(path, size, cluster_bits=cluster_bits)
    img.write()
    cs, at = img.cs, img.next * img.cs
    tables = {}
    for ci in clusters:
        tables.setdefault(ci // img.l2n, []).append(ci)

    def tag(ci):
        return b"cluster %d of %d\n" % (ci, size)
    with open(path, "r+b") as f:
        for i in sorted(tables):
            f.seek(img.l1_offset + i * 8)
            f.write(be64(at))
            table, at = at, at + cs
            for ci in tables[i]:
                f.seek(table + ci % img.l2n * 8)
                f.write(be64(at | COPIED))
                f.seek(at)
                f.write(tag(ci))
                at += cs
        f.truncate(at)
    return tag


SUB_SHAPES = (
    "d" * 32, "u" * 32, "z" * 32, "du" * 16, "uz" * 16, "dz" * 16,
    "d" + "u" * 31, "u" * 31 + "d", "z" + "u" * 31, "u" * 31 + "z",
    "d" * 16 + "u" * 16, "u" * 16 + "z" * 16, "z" * 8 + "d" * 8 + "u" * 16,
    "dzu" * 10 + "dz")


def fill(img, seed=0, count=None, snapshots=False, first=0):
    """Gives the image clusters of every kind that it can have: first one of
    each, in a random order, then at random."""
    rnd = random.Random("fill-%s" % seed)
    kinds = ["none", "data", "data", "zerodata", "comp", "comp-noise"]
    if img.version >= 3:
        kinds += ["zplain", "zalloc"]
    if img.extl2:
        kinds += ["sub%d" % k for k in range(len(SUB_SHAPES))]
        kinds += ["subrandom", "subhost", "subzhost"]
    forms = list(ZSTD_FORMS if img.comp == "zstd" else DEFLATE_FORMS)
    n = img.clusters if count is None else min(count, img.clusters - first)
    todo = kinds * 2
    rnd.shuffle(todo)
    fi = rnd.randrange(len(forms))
    for k in range(n):
        ci = first + k
        kind = todo[k] if k < len(todo) else rnd.choice(kinds)
        if kind == "data":
            img.data(ci, img.pattern(ci, rnd.random() < 0.2))
        elif kind == "zerodata":
            img.data(ci, bytes(img.cs))
        elif kind == "zplain":
            img.zero_plain(ci)
        elif kind == "zalloc":
            img.zero_alloc(ci)
        elif kind in ("comp", "comp-noise"):
            form = forms[fi % len(forms)]
            fi += 1
            data = img.pattern(ci, True)
            if kind == "comp-noise":
                data = noise("mix%d" % ci, img.cs // 3) + data
                data = data[:img.cs]
            slack = rnd.choice((0, 0, 0, 1, 2)) if img.cluster_bits > 10 else 0
            gap = rnd.choice((0, 0, 1, 7, 100))
            try:
                img.compressed(ci, form, data, slack=slack, gap=gap)
            except AssertionError:
                img.compressed(ci, "plain", text(ci, img.cs))
        elif kind.startswith("sub"):
            rest = kind[3:]
            if rest == "random":
                img.sub(ci, "".join(rnd.choice("dzu") for _ in range(32)))
            elif rest == "host":
                img.sub(ci, "u" * 32, host=True)
            elif rest == "zhost":
                img.sub(ci, "".join(rnd.choice("zu") for _ in range(32)),
                        host=True)
            else:
                img.sub(ci, SUB_SHAPES[int(rest)])
    return img
