# SPDX-License-Identifier: BSD-3-Clause
"""hostile-cost.py TOOL PLUGIN NBDKIT FOLDER: what images cost that claim much.

Of any file of at most 2 MiB on disk, opening, the first write, check, repair,
amend and info each take about a second of a processor at most (two under a sanitizer), and
the memory that the man page promises.  Prints what each took.
"""

import os
import resource
import subprocess
import sys
import time

import nbd

import hostile

TOOL, PLUGIN, NBDKIT, FOLDER = sys.argv[1:5]
SANITIZED = b"__asan_init" in open(PLUGIN, "rb").read()
# Half as much again: the processor may be one of two that share a core.
SECONDS = 1.5 * (2 if SANITIZED else 1)
# The check's 64 MiB and an eighth, tables, what a process takes without any.
MEMORY = 128 << 20
TICK = os.sysconf("SC_CLK_TCK")

failures = 0


def judge(name, what, seconds, memory):
    global failures
    bad = seconds > SECONDS or (memory > MEMORY and not SANITIZED)
    failures += bad
    print("%s%-24s %-18s %5.2f s %6.1f MiB" %
          ("too much: " if bad else "", name, what, seconds, memory / 2 ** 20),
          flush=True)


def run_tool(name, image, what, *arguments):
    p = subprocess.Popen([TOOL, *arguments, image],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    if p.returncode not in (0, 1, 2, 3):
        raise Exception("%s %s: status %d" % (name, what, p.returncode))
    judge(name, what, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


class Server:
    def __init__(self, image, *parameters):
        self.socket = os.path.join(FOLDER, "sock")
        pid = os.path.join(FOLDER, "pid")
        for path in (self.socket, pid):
            if os.path.exists(path):
                os.unlink(path)
        self.log = open(os.path.join(FOLDER, "server.log"), "wb")
        self.process = subprocess.Popen(
            [NBDKIT, "-f", "-U", self.socket, "-P", pid, PLUGIN, image,
             *parameters], stderr=self.log)
        while not os.path.exists(pid):
            if self.process.poll() is not None:
                raise EOFError
            time.sleep(0.01)

    def seconds(self):
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self):
        with open("/proc/%d/status" % self.process.pid) as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def connect(server):
    h = nbd.NBD()
    try:
        h.connect_unix(server.socket)
        return h
    except nbd.Error:
        return None


def serve(name, image):
    """Two clients: what the first found out costs the second nothing."""
    try:
        server = Server(image, "bitmaps=invalidate")
    except EOFError:
        print("%-24s is refused" % name)
        return
    judge(name, "start", server.seconds(), server.memory())
    before = server.seconds()
    h = connect(server)
    judge(name, "first client", server.seconds() - before, server.memory())
    before = server.seconds()
    if h is not None and not h.is_read_only():
        try:
            h.pwrite(b"\1" * 512, 0)
            h.flush()
        except nbd.Error:
            pass
        judge(name, "first write", server.seconds() - before, server.memory())
    elif h is None:
        connect(server)
        again = server.seconds() - before
        # Much less than a second: it is told what the first was told.
        judge(name, "second client", again * 10, server.memory())
    if h is not None:
        h.shutdown()
    server.end()


def measure(make):
    """Returns how much was too costly."""
    global failures
    failures = 0
    name = make.__name__
    image = os.path.join(FOLDER, "image")
    make(image)
    held = os.stat(image).st_blocks * 512
    if held > 2 << 20:
        raise Exception("%s has %d bytes on disk" % (name, held))
    run_tool(name, image, "info", "info")
    run_tool(name, image, "check", "check", "--messages=1")
    serve(name, image)
    make(image)
    run_tool(name, image, "repair", "check", "--messages=1", "--repair=all")
    make(image)
    with open(image, "r+b") as f: # what is marked as dirty is refused at once
        f.seek(79)
        f.write(b"\0")
    for option in "refcount_bits=32", "refcount_bits=1", "compression_type=zstd":
        run_tool(name, image, "amend " + option[:8], "amend", "-o", option)
    os.unlink(image)
    return failures


# What other programs do at the same time makes it cost more, up to twice; so
# the least of three counts.
for make in hostile.names():
    if measure(make) > 0 and measure(make) > 0 and measure(make) > 0:
        sys.exit("%s: too costly three times" % make.__name__)
