# SPDX-License-Identifier: BSD-3-Clause
"""Images that hold little and claim much: hostile.py NAME FILE.

Each is sparse, has at most 2 MiB on disk, and was made so that going through
what it claims would take very long, or very much memory.  All that is in them
is written here from the specification; names() tells which there are.
"""

import os
import struct
import sys

DIRTY = 1


def words(start, step, n, flags=0):
    return b"".join(struct.pack(">Q", start + i * step | flags)
                    for i in range(n))


class Sparse:
    """A file of which most is holes: what is put in it here and there."""

    def __init__(self, path):
        if os.path.exists(path):
            os.unlink(path)
        self.file = open(path, "wb")

    def put(self, at, data):
        self.file.seek(at)
        self.file.write(data)

    def end(self, size):
        self.file.truncate(size)
        self.file.close()


class Qcow2(Sparse):
    def __init__(self, path, bits, **fields):
        super().__init__(path)
        f = dict(disk=1 << 20, l1=(0, 0), table=(0, 1), snapshots=(0, 0),
                 incompatible=0, autoclear=0, order=4, extensions=b"")
        f.update(fields)
        self.put(0, struct.pack(
            ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, bits, f["disk"], 0,
            f["l1"][1], f["l1"][0], f["table"][0], f["table"][1],
            f["snapshots"][1], f["snapshots"][0], f["incompatible"], 0,
            f["autoclear"], f["order"], 104) + f["extensions"])


def refcount_blocks(path, n):
    """n refcount blocks of 16 million refcounts each, all in holes."""
    c = 1 << 21
    s = Qcow2(path, 21, l1=(2 * c, 1), table=(c, 1), incompatible=DIRTY,
              order=0)
    s.put(c, words(4 * c, c, n))
    s.end((4 + n) * c)


def few_refcount_blocks(path):
    refcount_blocks(path, 100)


def many_refcount_blocks(path):
    refcount_blocks(path, 120000)


def colliding(path):
    """L2 tables whose numbers a multiplication by the golden ratio makes small:
    they collided in a hash without a key."""
    golden, top = 0x9e3779b97f4a7c15, (1 << 44) - (1 << 20)
    inverse = pow(golden, -1, 1 << 64)
    mask, limit = (1 << 64) - 1, top >> 9
    # The lattice of small products: by short steps from one to the next.
    found, product = set(), 0
    step, best = 1, None
    while step < limit:
        p = step * golden & mask
        p = min(p, (1 << 64) - p)
        if best is None or p < best[0]:
            best = (p, step)
        step += step // 3 + 1
    for i in range(1, 1 << 22):
        x = i * inverse & mask
        if 4096 < x < limit:
            found.add(x)
    # Few are so near to zero: the rest are multiples of the best step.
    x = 4096
    while len(found) < 100000 and x < limit:
        found.add(x)
        x += max(best[1] % 4096, 1)
    tables = sorted(found)[:100000]
    s = Qcow2(path, 9, disk=len(tables) << 15, l1=(1 << 20, len(tables)),
              table=(4096, 1))
    s.put(4096, struct.pack(">Q", 8192))
    s.put(8192, b"\0\1" * 256)
    s.put(1 << 20, b"".join(struct.pack(">Q", t << 9 | 1 << 63)
                            for t in tables))
    s.end(top)


def far_apart(path, n, blind):
    """References all over the file, of which each takes memory for itself."""
    top, per = 0xfffffff0000, 64
    nr = (n + per - 1) // per
    snapshots = (1 << 17, 1) if blind else (0, 0)
    s = Qcow2(path, 9, disk=nr * per * 512, l1=(1 << 20, nr),
              table=(1 << 16, 1), snapshots=snapshots, incompatible=DIRTY)
    l2 = ((1 << 20) + 8 * nr + 511) // 512 * 512
    s.put(1 << 20, words(l2, 512, nr, 1 << 63))
    s.put(l2, words(1 << 26, (top - (1 << 26)) // n // 512 * 512, n, 1 << 63))
    if blind:
        s.put(1 << 17, struct.pack(">QIHHIIQIIQQ", top + (1 << 30), 1, 1, 1,
                                   0, 0, 0, 0, 16, 0, 512) + b"1a")
    s.end(top)


def far_apart_blind(path):
    far_apart(path, 6000, True)


def far_apart_all(path):
    far_apart(path, 120000, False)


def far_apart_within(path):
    """So many that new refcounts for them are still made."""
    far_apart(path, 37000, False)


def bitmaps_of_one_table(path):
    directory, table = 1 << 20, 8 << 20
    nr, entries = 30000, 131072
    extension = struct.pack(">IIIIQQ", 0x23852875, 24, nr, 0, 24 * nr,
                            directory)
    s = Qcow2(path, 12, l1=(1 << 16, 1), table=(1 << 12, 1),
              incompatible=DIRTY, autoclear=1, extensions=extension)
    s.put(directory, struct.pack(">QIIBBHI", table, entries, 1, 1, 9, 0, 0) *
          nr)
    s.put(table, words(32 << 20, 0, entries))
    s.end(64 << 20)


def snapshots(path, step):
    """L1 tables of 32 MiB, each so many clusters behind the one before."""
    nr, entries, base = 35000, 1 << 22, 1 << 30
    s = Qcow2(path, 9, disk=1 << 15, l1=(1 << 12, 1), table=(1 << 10, 1),
              snapshots=(1 << 20, nr), incompatible=DIRTY)
    s.put(1 << 20, b"".join(
        struct.pack(">QIHHIIQIIQQ", base + i * step * 512, entries, 0, 0, 0, 0,
                    0, 0, 16, 0, 1 << 15) for i in range(nr)))
    s.end(base + nr * step * 512 + 8 * entries + 512)


def snapshots_of_one_table(path):
    snapshots(path, 0)


def snapshots_that_overlap(path):
    snapshots(path, 1)


def snapshots_side_by_side(path):
    snapshots(path, 65536)


def tables_in_holes(path):
    """L2 tables of 2 MiB each, in holes, or with one entry of each."""
    c, n = 1 << 21, 200000
    s = Qcow2(path, 21, disk=n << 39, l1=(4 * c, n), table=(c, 1),
              incompatible=DIRTY)
    s.put(c, words(2 * c, c, 1))
    s.put(4 * c, words(8 * c, c, n, 1 << 63))
    s.end((8 + n) * c)


def tables_with_one_entry(path):
    c, n = 1 << 21, 500
    s = Qcow2(path, 21, disk=n << 39, l1=(4 * c, n), table=(c, 1),
              incompatible=DIRTY)
    s.put(c, words(2 * c, c, 1))
    s.put(4 * c, words(8 * c, c, n, 1 << 63))
    for i in range(n):
        s.put((8 + i) * c + (1 << 20), words((600 + i) * c, 0, 1, 1 << 63))
    s.end((1200 + n) * c)


def one_refcount_block(path):
    """The refcount table has one block for all; all of its bits are set."""
    c, n = 1 << 16, 131072
    s = Qcow2(path, 16, l1=(4 * c, 1), table=(1 << 20, 128), order=0,
              incompatible=DIRTY)
    s.put(1 << 20, words(1 << 24, 0, n))
    s.put(1 << 24, b"\xff" * c)
    s.end(1 << 43)


def nothing_is_free(path):
    """Refcounts of 1 and 2 by turns, of 2 bits, of which none is 0."""
    c = 1 << 16
    s = Qcow2(path, 16, l1=(2 * c, 1), table=(c, 1), order=1)
    s.put(c, words(4 * c, c, 30))
    s.put(4 * c, b"\x66" * (30 * c))
    s.end(1 << 40)


def sound(path, blocks, last):
    """Sound, in clusters of 2 MiB: these refcount blocks, at the cluster that each
    has in the table's order, all counted by the first one; last: the file's last
    cluster."""
    c = 1 << 21
    s = Qcow2(path, 21, l1=(2 * c, 1), table=(c, 1))
    for index, cluster in blocks:
        s.put(c + 8 * index, words(cluster * c, 0, 1))
    s.put(3 * c, b"\0\1" * (last + 1))
    s.end((last + 1) * c)
    return c


def leak_far_away(path):
    """The last cluster that a refcount table can count has a refcount."""
    c = sound(path, [(0, 3), (262143, 4)], 4)
    with open(path, "r+b") as f:
        f.seek(5 * c - 2)
        f.write(b"\0\1")


def refcounts_in_holes(path):
    """Of 131072 refcount blocks one is no hole; it counts all of them."""
    sound(path, [(i, 3 + i) for i in range(131072)], 3 + 131071)


class Qed(Sparse):
    """A QED file, dirty, whose L1 table follows the header of a cluster."""

    def __init__(self, path, cluster, table, entries, **fields):
        super().__init__(path)
        f = dict(features=2, disk=min((table * cluster // 8) ** 2 * cluster,
                                      1 << 50), header=1)
        f.update(fields)
        self.put(0, struct.pack("<4sIIIQQQQQII", b"QED\0", cluster, table,
                                f["header"], f["features"], 0, 0,
                                f["header"] * cluster, f["disk"], 0, 0))
        self.put(f["header"] * cluster, entries)


def le_words(start, step, n):
    return b"".join(struct.pack("<Q", start + i * step) for i in range(n))


def qed_tables_in_holes(path):
    """A quarter of a million L2 tables in which nothing is, the last one
    first."""
    n, c = 261000, 1 << 17
    s = Qed(path, c, 8, le_words((9 + 8 * (n - 1)) * c, -8 * c, n))
    s.end((9 + 8 * n) * c)


def qed_far_apart(path):
    """The longest file that is checked, with data in all places of it."""
    c, total = 4096, 1 << 28
    per = 8 * 4096          # clusters that a page of the bitmap has
    s = Qed(path, c, 16, b"")
    n = total // per
    tables = (n + 8191) // 8192
    s.put(c, le_words(17 * c, 16 * c, tables))
    s.put(17 * c, le_words((17 + 16 * tables) * c, per * c, n - 1))
    s.end(total * c)


def qed_too_long(path):
    """The same, but longer."""
    qed_far_apart(path)
    os.truncate(path, 1 << 41)


def qed_leaks_between(path):
    """Every second cluster of a file is leaked."""
    c = 4096
    s = Qed(path, c, 16, le_words(17 * c, 16 * c, 30))
    s.put(17 * c, le_words(497 * c, 2 * c, 30 * 8192))
    s.end((497 + 2 * 30 * 8192) * c)


def qed_entries_beyond(path):
    """A quarter of a million entries that lead nowhere."""
    c = 4096
    s = Qed(path, c, 16, le_words(17 * c, 16 * c, 30))
    s.put(17 * c, le_words(1 << 50, c, 30 * 8192))
    s.end(497 * c)


def qed_one_table(path):
    """An L1 table of which all entries lead to the same L2 table."""
    c = 1 << 16
    s = Qed(path, c, 8, struct.pack("<Q", 9 * c) * (8 * c // 8))
    s.put(9 * c, le_words(17 * c, c, 8 * c // 8))
    s.end((17 + 8 * c // 8) * c)


def qed_one_entry_each(path):
    """L2 tables of 1 GiB, of which each block of the file is in a piece of
    its own."""
    c = 1 << 26
    s = Qed(path, c, 16, le_words(17 * c, 16 * c, 4))
    for i in range(4):
        for at in range(120):
            s.put((17 + i * 16) * c + at * (8 << 20), b"\1")
    s.end((17 + 16 * 4) * c)


def names():
    return [few_refcount_blocks, many_refcount_blocks, colliding,
            far_apart_blind, far_apart_all, far_apart_within,
            bitmaps_of_one_table, snapshots_of_one_table,
            snapshots_that_overlap, snapshots_side_by_side, tables_in_holes,
            tables_with_one_entry, one_refcount_block, nothing_is_free,
            leak_far_away, refcounts_in_holes,
            qed_tables_in_holes, qed_far_apart, qed_too_long,
            qed_leaks_between, qed_entries_beyond, qed_one_table,
            qed_one_entry_each]


if __name__ == "__main__":
    for make in names():
        if make.__name__ == sys.argv[1]:
            make(sys.argv[2])
