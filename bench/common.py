# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""What the others share: constants, and how commands are run."""

import os
import resource
import signal
import subprocess
import sys
import time

MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40
CLUSTER = 65536

QEMU_DEFAULT = "qemu"
QEMU_TUNED = "qemu tuned"
OURS_QCOW2 = "ours, qcow2"
BEFORE = "before"           # another build of this plugin: --against
TUNED_FLAGS = ["--cache=writeback", "--discard=unmap", "--detect-zeroes=off"]
# Of qemu-img convert, for the rows which create.
CONVERT_TUNED = ["-W", "-m", "8"]
DURABLE = " -t writeback"
SECRET = "bench"


def say(*args):
    print(*args, file=sys.stderr, flush=True)


def die(*args):
    say("bench:", *args)
    sys.exit(1)


def run(*cmd, data=None):
    """Run a command that has to succeed; return its stdout.  What it has
    started has ended then too, or closed stdout and stderr."""
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         stdin=None if data is None else subprocess.PIPE,
                         process_group=0)
    try:
        out, err = p.communicate(data)
    except BaseException:
        os.killpg(p.pid, signal.SIGTERM)
        raise
    if p.returncode != 0:
        die(" ".join(cmd) + ":", (err or out).decode(errors="replace").strip())
    return out


def make_image(*cmd):
    """qemu-img, which tries how fast a LUKS key can be made, and which now and
    then finds that it can't tell."""
    for _ in range(20):
        p = subprocess.run(cmd, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
        if p.returncode == 0:
            return
        if b"accurate CPU usage" not in p.stdout:
            break
    die(" ".join(cmd) + ":", p.stdout.decode(errors="replace"))


def timed(*cmd):
    """Run it; return how long it took, the CPU time of all that it started,
    and its stdout."""
    c0, t0 = cpu_of_children(), time.monotonic()
    out = run(*cmd)
    return time.monotonic() - t0, cpu_of_children() - c0, out


def cpu_of_children():
    """Seconds that were used by all which have ended."""
    r = resource.getrusage(resource.RUSAGE_CHILDREN)
    return r.ru_utime + r.ru_stime


def allocated(path):
    """Bytes of the host's file system, without holes."""
    return os.stat(path).st_blocks * 512


def stamp(at, salt):
    """What fio writes to the 4 KiB at that place."""
    return (at.to_bytes(8, "little") + salt) * 8
