# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""The sample data.  Each maker leaves NAME.raw, the data as nbdkit file serves
it, and NAME.qcow2.  Only complete ones get a .done file and are used again."""

import glob
import json
import os
import random
import shutil
import subprocess

from common import CLUSTER, GiB, MiB, TiB, die, make_image, run, say
from formats import to_make


class Data:
    def __init__(self, folder, quick):
        self.folder = folder
        self.seq_size = 256 * MiB if quick else 2 * GiB
        self.text_size = 192 * MiB if quick else GiB
        self.chain_size = 256 * MiB if quick else GiB
        self.big_size = 64 * GiB if quick else TiB
        self.increment_size = 512 * MiB if quick else 16 * GiB

    def path(self, name):
        return os.path.join(self.folder, name)

    def drop(self, pattern):
        for path in glob.glob(os.path.join(glob.escape(self.folder),
                                           pattern)):
            os.unlink(path)

    def get(self, name):
        """Make the data set unless it is there; return its paths: raw and
        the image, and for QED the same data as qcow2."""
        done = self.path(name + ".done")
        maker = getattr(self, "make_" + name)
        stamp = "%s %d %d %d %d %d\n" % (
            name, self.seq_size, self.text_size, self.chain_size,
            self.big_size, self.increment_size)
        try:
            with open(done) as f:
                fresh = f.read() == stamp
        except FileNotFoundError:
            fresh = False
        if not fresh:
            say("making data:", name)
            names = maker()
            with open(self.path(name + ".names"), "w") as f:
                json.dump(names, f)
            with open(done, "w") as f:
                f.write(stamp)
        with open(self.path(name + ".names")) as f:
            return [self.path(x) for x in json.load(f)]

    def convert(self, raw, qcow2, *options):
        # -m 1: clusters in the order of the disk, the same each time.
        make_image("qemu-img", "convert", "-m", "1", "-W", "-f", "raw",
                   "-O", "qcow2", *options, self.path(raw), self.path(qcow2))

    def qemu_io(self, image, commands):
        """Run commands of qemu-io (which says "wrote" for each)."""
        out = run("qemu-io", "-f", "qcow2", "-t", "writeback",
                  self.path(image), data="".join(c + "\n" for c in commands)
                  .encode()).decode(errors="replace")
        n = out.count("wrote ")
        if n != len(commands):
            die("qemu-io wrote %d times instead of %d" % (n, len(commands)))

    def noise(self, name, seed, size=None):
        rnd = random.Random(seed)
        with open(self.path(name), "wb") as f:
            for _ in range((size or self.seq_size) // MiB):
                f.write(rnd.getrandbits(8 * MiB).to_bytes(MiB, "little"))

    def make_seq(self):
        """All allocated, no cluster like another, incompressible."""
        self.noise("seq.raw", 1)
        self.convert("seq.raw", "seq.qcow2")
        return "seq.raw", "seq.qcow2"

    def make_qed(self):
        self.get("seq")
        run("qemu-img", "convert", "-m", "1", "-W", "-f", "raw", "-O", "qed",
            self.path("seq.raw"), self.path("qed.qed"))
        return "seq.raw", "qed.qed", "seq.qcow2"

    def make_luks(self):
        self.get("seq")
        self.convert("seq.raw", "luks.luks", *to_make("luks.luks"))
        return "seq.raw", "luks.luks"

    def make_datafile(self):
        self.get("seq")
        image = self.path("datafile.datafile")
        self.convert("seq.raw", image, *to_make(image))
        return "seq.raw", "datafile.datafile", "seq.qcow2"

    def make_source(self):
        """What is copied to the servers: as seq, but no byte of it."""
        self.noise("source.raw", 6)
        return ("source.raw",)

    def make_text(self):
        """What a guest's disk is full of: the files of this /usr."""
        raw = self.path("text.raw")
        tar = subprocess.Popen(
            ["tar", "-C", "/usr", "--sort=name", "--mtime=@0", "--owner=0",
             "--group=0", "--format=gnu", "-cf", "-", "bin", "lib", "share"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        left = self.text_size
        with open(raw, "wb") as f:
            while left > 0:
                b = tar.stdout.read(min(left, MiB))
                if not b:
                    break
                f.write(b)
                left -= len(b)
        tar.stdout.close()
        tar.wait()
        if left > 0:
            if left > self.text_size * 3 // 4:
                die("/usr is too small to make sample data of it")
            # A small /usr: repeat it.  Each cluster is compressed alone,
            # so this does not make them any easier to compress.
            have = self.text_size - left
            with open(raw, "r+b") as f:
                while left > 0:
                    n = min(left, have)
                    f.seek(0)
                    b = f.read(n)
                    f.seek(0, os.SEEK_END)
                    f.write(b)
                    left -= n
        return ("text.raw",)

    def make_deflate(self):
        self.get("text")
        self.convert("text.raw", "deflate.qcow2", "-c",
                     "-o", "compression_type=zlib")
        return "text.raw", "deflate.qcow2"

    def make_zstd(self):
        self.get("text")
        self.convert("text.raw", "zstd.qcow2", "-c",
                     "-o", "compression_type=zstd")
        return "text.raw", "zstd.qcow2"

    def make_tib(self):
        """1 TiB, every cluster mapped (128 MiB of L2 tables), to space in
        the host's file which is a hole.  The raw file is one hole too."""
        with open(self.path("tib.raw"), "wb") as f:
            f.truncate(TiB)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "preallocation=metadata", self.path("tib.qcow2"), str(TiB))
        return "tib.raw", "tib.qcow2"

    @staticmethod
    def scattered():
        """8192 clusters out of 1 TiB, no two of them neighbours."""
        n = TiB // CLUSTER // 8192
        rnd = random.Random(2)
        return [(i * n + rnd.randrange(n - 1)) * CLUSTER for i in range(8192)]

    def make_scatter(self):
        raw = self.path("scatter.raw")
        with open(raw, "wb") as f:
            f.truncate(TiB)
            for i, at in enumerate(self.scattered()):
                f.seek(at)
                f.write(bytes([i % 255 + 1]) * CLUSTER)
        run("qemu-img", "create", "-q", "-f", "qcow2",
            self.path("scatter.qcow2"), str(TiB))
        self.qemu_io("scatter.qcow2",
                     ["write -P %d %d %d" % (i % 255 + 1, at, CLUSTER)
                      for i, at in enumerate(self.scattered())])
        return "scatter.raw", "scatter.qcow2"

    def make_chain(self):
        """16 layers: a full one, and 15 above it which each replace one
        16th of the clusters, at random."""
        rnd = random.Random(3)
        n = self.chain_size // CLUSTER
        layer_of = [rnd.randrange(16) for _ in range(n)]
        raw = self.path("chain.raw")
        with open(raw, "wb") as f:
            for i in range(n):
                f.write(bytes([(i * 7 + layer_of[i]) % 255 + 1]) * CLUSTER)
        below = None
        for layer in range(16):
            name = "chain%d.qcow2" % layer
            create = ["qemu-img", "create", "-q", "-f", "qcow2"]
            if below:
                create += ["-b", below, "-F", "qcow2"]
            run(*create, self.path(name), str(self.chain_size))
            todo = [i for i in range(n)
                    if layer == 0 or layer_of[i] == layer]
            self.qemu_io(name, ["write -P %d %d %d" %
                                ((i * 7 + layer) % 255 + 1,
                                 i * CLUSTER, CLUSTER) for i in todo])
            below = name
        return "chain.raw", "chain15.qcow2"

    # For backups.

    def make_changed(self):
        """scatter, all of whose clusters are others in the second of two
        internal snapshots."""
        self.get("scatter")
        self.copy("scatter.qcow2", "changed.qcow2")
        run("qemu-img", "snapshot", "-c", "A", self.path("changed.qcow2"))
        self.qemu_io("changed.qcow2", ["write -P %d %d %d" %
                                       (255 - i % 255, at, CLUSTER) for i, at
                                       in enumerate(self.scattered())])
        run("qemu-img", "snapshot", "-c", "B", self.path("changed.qcow2"))
        return ("changed.qcow2",)

    def make_increment(self):
        """All allocated; of its two snapshots 1 % of the clusters
        differ."""
        size = self.increment_size
        self.noise("increment.raw", 7, size)
        self.convert("increment.raw", "increment.qcow2")
        os.unlink(self.path("increment.raw"))
        run("qemu-img", "snapshot", "-c", "A", self.path("increment.qcow2"))
        n = size // CLUSTER
        self.qemu_io("increment.qcow2",
                     ["write -P %d %d %d" % (i % 255 + 1, k * CLUSTER,
                                             CLUSTER)
                      for i, k in enumerate(random.Random(8).sample(
                          range(n), n // 100))])
        run("qemu-img", "snapshot", "-c", "B", self.path("increment.qcow2"))
        return ("increment.qcow2",)

    # For the tool's commands.

    def make_base(self):
        """What is committed to."""
        self.get("source")
        self.convert("source.raw", "base.qcow2")
        return "source.raw", "base.qcow2"

    def make_half(self):
        """seq, of which the first half was trimmed; raw: the other one."""
        self.get("seq")
        half = self.seq_size // 2
        shutil.copyfile(self.path("seq.qcow2"), self.path("half.qcow2"))
        run("qemu-io", "-f", "qcow2", "-d", "unmap", "-c",
            "discard 0 %d" % half, self.path("half.qcow2"))
        with open(self.path("seq.raw"), "rb") as f, \
                open(self.path("half.raw"), "wb") as to:
            f.seek(half)
            shutil.copyfileobj(f, to, MiB)
        return "half.raw", "half.qcow2"

    def places(self):
        """Of the disk of "big" those which have something: (where, a byte
        that they are full of, and the one that half of them have later)."""
        step = self.big_size // 64
        return [(i * step + i * CLUSTER, i + 1, i + 100 if i % 2 else i + 1)
                for i in range(64)]

    def make_big(self):
        """As tib, but for 64 clusters which are not zeros."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "preallocation=metadata", self.path("big.qcow2"),
            str(self.big_size))
        self.qemu_io("big.qcow2", ["write -P %d %d %d" % (b, at, CLUSTER)
                                   for at, b, _ in self.places()])
        return ("big.qcow2",)

    def make_later(self):
        """big, with an internal snapshot, and written after that."""
        self.get("big")
        self.copy("big.qcow2", "later.qcow2")
        run("qemu-img", "snapshot", "-c", "before", self.path("later.qcow2"))
        self.qemu_io("later.qcow2", ["write -P %d %d %d" % (b, at, CLUSTER)
                                     for at, _, b in self.places()])
        return ("later.qcow2",)

    def copy(self, name, to):
        """With its holes."""
        run("cp", "--sparse=always", self.path(name), self.path(to))

    # What a row writes to is called written.raw, .qcow2 and so on.

    def make_written(self, row, kind):
        """An image for row, of which nothing is left to be written back
        while something is measured."""
        path = self.path("written." + kind)
        self.drop("written.%s*" % kind)
        if row.image == "copy" and kind == "datafile":
            self.convert("seq.raw", path, *to_make(path))
        elif row.image == "copy":
            shutil.copyfile(self.path(("luks." if kind == "luks" else "seq.")
                                      + kind), path)
        elif kind == "raw":
            with open(path, "wb") as f:
                f.truncate(row.size or self.seq_size)
        else:
            below = (["-b", "seq.raw", "-F", "raw"] if row.image == "overlay"
                     else [])
            make_image("qemu-img", "create", "-q", "-f",
                       "qed" if kind == "qed" else "qcow2", *below,
                       *to_make(path), *row.options, path,
                       str(row.size or self.seq_size))

    def written(self, row, kind, fresh):
        """The path of the image; made if fresh, or if there is none."""
        path = self.path("written." + kind)
        if fresh or not os.path.exists(path):
            self.make_written(row, kind)
        self.sync(path)
        return path

    @staticmethod
    def sync(path):
        """It, and what else begins with its name."""
        for file in glob.glob(glob.escape(path) + "*"):
            fd = os.open(file, os.O_RDWR)
            os.fsync(fd)
            os.close(fd)

    def warm(self, name):
        """Into the page cache with it."""
        with open(self.path(name), "rb") as f:
            while f.read(MiB):
                pass

    def get_warm(self, sets):
        for name in sets:
            self.warm(self.get(name)[0])
