# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Servers of one image each, and what is known of this run of the
benchmark."""

import os
import signal
import subprocess
import tempfile
import time

from common import (BEFORE, OURS_QCOW2, QEMU_DEFAULT, QEMU_TUNED, TUNED_FLAGS,
                    die, run, say)
from data import Data
from formats import for_qemu, for_raw, for_us


def listening(sock):
    """Some servers exist a while before they do."""
    with open("/proc/net/unix") as f:
        return any(line.split()[7:] == [sock] and
                   int(line.split()[3], 16) & 0x10000 for line in f)


class Server:
    """One server of one image, on a Unix socket of its own."""

    running = set()
    below = None                # another one, that goes when this one does

    def __init__(self, argv, sock, cpu=None):
        self.sock = sock
        if os.path.exists(sock):
            os.unlink(sock)
        if cpu is not None:
            argv = ["taskset", "-c", str(cpu)] + argv
        self.errors = tempfile.TemporaryFile()
        self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                  stdout=self.errors, stderr=self.errors)
        Server.running.add(self)
        for _ in range(3000):
            if listening(sock):
                return
            if self.p.poll() is not None:
                break
            time.sleep(0.01)
        self.stop()
        self.errors.seek(0)
        raise RuntimeError("%s: %s" % (
            " ".join(argv),
            self.errors.read().decode(errors="replace").strip()))

    def uri(self, export=""):
        return "nbd+unix:///%s?socket=%s" % (export, self.sock)

    def cpu(self):
        """Seconds of CPU used so far, by all threads."""
        with open("/proc/%d/stat" % self.p.pid) as f:
            fields = f.read().rpartition(")")[2].split()
        return ((int(fields[11]) + int(fields[12])) /
                os.sysconf("SC_CLK_TCK"))

    def peak_rss(self):
        """In bytes."""
        with open("/proc/%d/status" % self.p.pid) as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0

    def stop(self, seconds=20):
        Server.running.discard(self)
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            try:
                self.p.wait(seconds)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()
        if self.below:
            self.below.stop()


class Bench:
    def __init__(self, opts, folder, sockets):
        self.opts = opts
        self.data = Data(folder, opts.quick)
        self.sock = os.path.join(sockets, "s")
        self.plugin = opts.plugin
        self.aio = []
        self.notes = []
        self.ours_writes = False
        self.checked = set()    # what returns the same from all servers

    def choose_aio(self):
        """io_uring for the tuned qemu-nbd, if this machine has it."""
        probe = os.path.join(os.path.dirname(self.sock), "probe.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", probe, "1M")
        for aio in "io_uring", "threads":
            self.aio = ["--aio=" + aio]
            try:
                s = self.start(QEMU_TUNED, probe, probe)
                run("nbdinfo", "--size", s.uri())
                s.stop()
                return
            except RuntimeError as e:
                self.notes.append("qemu-nbd --aio=%s is not available: %s"
                                  % (aio, str(e).rpartition("qemu-nbd:")[2]
                                     .strip()))
        die("qemu-nbd does not start")

    def try_writing(self):
        """Write rows are measured without this plugin if it can't."""
        import nbd
        probe = os.path.join(os.path.dirname(self.sock), "probe.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", probe, "1M")
        s = None
        try:
            s = self.start("ours", probe, probe, write=True)
            h = self.connect(s)
            h.pwrite(bytes(4096), 0)
            h.shutdown()
            self.ours_writes = True
        except (RuntimeError, nbd.Error) as e:
            self.notes.append("The write rows are without this plugin, "
                              "which does not write: %s" % e)
            say(self.notes[-1])
        finally:
            if s:
                s.stop()

    @staticmethod
    def connect(s, export="", context="base:allocation"):
        import nbd
        h = nbd.NBD()
        h.add_meta_context(context)
        h.connect_uri(s.uri(export))
        return h

    def start(self, server, reference, image, conns=1, cpu=None,
              write=False, options=()):
        """server: "qemu", "qemu tuned", "ours", "before" (--against); or what
        serves the reference, "raw", or ours with QCOW2.  "raw" and "ours" perhaps
        with " -t N".  options are more parameters of ours."""
        name, _, threads = server.partition(" -t ")
        threads = ["-t", threads] if threads else []
        read_only = [] if write else ["-r"]
        nbdkit = ["nbdkit"] + read_only + ["-f", "-U", self.sock] + threads
        qemu = ["qemu-nbd"] + read_only + ["-t", "-k", self.sock]
        if name == "raw":
            argv = nbdkit + for_raw(reference)
        elif name in ("ours", OURS_QCOW2, BEFORE):
            plugin = self.opts.against if name == BEFORE else self.plugin
            argv = nbdkit + [plugin, *options] + for_us(
                reference if name == OURS_QCOW2 else image)
        elif name == QEMU_DEFAULT:
            # It serves one client at a time unless told otherwise.
            share = ["-e", str(conns)] if conns > 1 else []
            # Without this it frees clusters, but keeps the host's space.
            share += ["--discard=unmap"] if write else []
            argv = qemu + share + for_qemu(image)
        else:
            argv = (qemu + ["-e", "16"] + self.aio + TUNED_FLAGS +
                    for_qemu(image))
        return Server(argv, self.sock, cpu)

    def start_far(self, server, reference, image, delay=(), write=False,
                  **kw):
        """The same, but over NBD: nbdkit serves the file, with a delay if
        there are parameters for one."""
        file = reference if server == "raw" else image
        below = Server(["nbdkit", "-f", "-U", self.sock + ".far"] +
                       ([] if write else ["-r"]) +
                       (["--filter=delay"] if delay else []) +
                       ["file", file, *delay], self.sock + ".far")
        try:
            s = self.start(server, below.uri(), below.uri(), write=write,
                           **kw)
        except RuntimeError:
            below.stop()
            raise
        s.below = below
        return s
