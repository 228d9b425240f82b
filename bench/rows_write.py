# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Rows which write."""

import random

import clients
import proofs
from common import (CLUSTER, GiB, MiB, OURS_QCOW2, QEMU_DEFAULT, QEMU_TUNED,
                    allocated, die, run)
from formats import for_qemu
from rows import Row, turns


class WriteRow(Row):
    kind = "write"
    needs_nbd = True
    writes = True

    def __init__(self, name, title, load, unit, image, sets=(), size=None,
                 options=(), proof=proofs.prove_requests, bs=4096, count=None,
                 flush=False, flush_after=False, fresh=False, **kw):
        super().__init__(name, title, None, load, unit, **kw)
        # "fresh": nothing is allocated; "copy": of seq, all allocated;
        # "overlay": nothing is, over seq.raw.
        self.image = image
        self.before = None if image == "fresh" else "seq.raw"
        self.fresh = fresh or image != "copy"   # a new one for each sample
        self.sets = list(sets)
        if image != "fresh" and "seq" not in sets:
            self.sets.append("seq")
        self.size = size            # or that of seq
        self.options = options      # of qemu-img create
        self.proof = proof
        self.bs = bs
        self.count = count          # of requests; else it is by time
        self.flush = flush          # after each write
        self.flush_after = flush_after  # ... or once, after all of them

    def serve(self, bench, server, path, **kw):
        return bench.start(server, path, path, write=True, **kw)

    def sample(self, bench, server, first):
        """The image is a new one the first time too, so that the proof
        can't find what another server wrote."""
        import nbd
        cpu = bench.opts.cpu if self.depth == 1 else None
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        kind = {"raw": "raw", OURS_QCOW2: "qcow2"}.get(server, self.format)
        salt = random.Random(self.name + server).randbytes(504)
        path = bench.data.written(self, kind, first or self.fresh)
        used = allocated(path)
        s = self.serve(bench, server, path, conns=self.conns, cpu=cpu)
        try:
            got = self.load(bench, s, self, salt, pin)
        except nbd.Error as e:
            die("%s, %s: %s" % (self.name, server, e))
        finally:
            # Some write back what the page cache holds before they end.
            s.stop(300)
        if s.p.returncode != 0:
            die("%s: %s ended with status %d"
                % (self.name, server, s.p.returncode))
        if kind != "raw":
            run("qemu-img", "check", "-q", *for_qemu(path))
        if self.rw == "randtrim":
            # Else a server would be fast that does not do it.  A few of
            # its own tables may have got bigger.
            freed, want = used - allocated(path), got["requests"] * self.bs
            if freed < want - MiB:
                die("%s: %s trimmed %d bytes, but freed %d of the host's"
                    % (self.name, server, want, freed))
        if first:
            self.prove(bench, server, path, salt, got.get("requests"))
        if self.fresh:
            bench.data.drop("written.%s*" % kind)
        return got

    def prove(self, bench, *args):
        proofs.prove(bench, self, *args)

    def measure(self, bench):
        servers = self.servers()
        if self.image == "overlay" and "raw" in servers:
            servers.remove("raw")
        if self.format == "qed" and QEMU_TUNED in servers:
            # qemu-nbd 7.2 may abort with io_uring: "qed_aio_write_alloc:
            # Assertion `s->allocating_acb == NULL' failed".
            servers = [QEMU_DEFAULT, "ours"]
        if not bench.ours_writes:
            servers.remove("ours")
        bench.data.get_warm(self.sets)
        got = turns(bench, self, servers)
        bench.data.drop("written.*")
        return got


def write4k(name, title, image, depth=16, row=WriteRow, **kw):
    return row(name, title, clients.fio_write, "IOPS", image, rw="randwrite",
               depth=depth, **kw)


def trim(name, title, **kw):
    return WriteRow(name, title, clients.fio_write, "IOPS", "copy",
                    rw="randtrim", depth=16, bs=CLUSTER, count=16384,
                    fresh=True, **kw)


ROWS = [
    WriteRow("wseq", "sequential write, fresh, with flush (nbdcopy)",
             clients.copy_to, "MiB/s", "fresh", ["source"],
             proof=proofs.prove_copy, want_raw=0.9, want_qemu=1.2),
    WriteRow("wseqover", "sequential overwrite, with flush (nbdcopy)",
             clients.copy_to, "MiB/s", "copy", ["source"],
             proof=proofs.prove_copy, want_raw=0.9),
    write4k("wrand", "random 4 KiB writes, fresh 16 GiB, depth 16", "fresh",
            size=16 * GiB, count=40000, want_qemu=3),
    write4k("wback", "random 4 KiB writes over backing, depth 16", "overlay",
            count=8192, want_qemu=2),
    write4k("wbackext", "the same, extended L2, 128 KiB clusters", "overlay",
            options=["-o", "extended_l2=on,cluster_size=128k"], count=8192,
            want_qemu=1.6),
    write4k("wover1", "random 4 KiB overwrites, depth 16, 1 connection",
            "copy", count=131072, want_raw=0.85, want_qemu=2),
    write4k("wover4", "random 4 KiB overwrites, depth 16, 4 connections",
            "copy", count=131072, conns=4, want_raw=0.85, want_qemu=2),
    write4k("wflush", "random 4 KiB overwrite + flush each", "copy", depth=1,
            flush=True, want_raw=0.95),
    write4k("wflushfresh", "random 4 KiB write + flush each, fresh 16 GiB",
            "fresh", depth=1, flush=True, size=16 * GiB, want_qemu=1.8),
    trim("wtrim", "random 64 KiB trims, allocated, depth 16", want_qemu=2),
    trim("wtrimflush", "the same and one flush after them",
         flush_after=True),
    WriteRow("wzero", "zero 100 GiB + flush, fresh 200 GiB", clients.zero,
             "GiB/s", "fresh", size=200 * GiB, proof=proofs.prove_zero,
             want_qemu=1),
]
