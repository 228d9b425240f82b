# SPDX-License-Identifier: BSD-3-Clause
"""The commands of "Backups of a disk in use" in the manual, in their order, while a
guest writes; each file that they make is what the disk was at its point."""

import os
import random
import re
import signal
import subprocess
import time
from urllib.parse import unquote

import nbd
import qtest
from frozen import Busy
from points import Guest, SIZE, check_image
from qtest import path, run, check, equal

HEAD = "=head2 Backups of a disk in use\n"


def commands(head):
    """Those of a section of the manual, one a line."""
    with open(os.environ["POD"]) as f:
        text = f.read().split(head)[1].split("\n=head")[0]
    lines = "\n".join(x for x in text.split("\n") if x.startswith(" "))
    return [" ".join(x.split()) for x in
            lines.replace("\\\n", " ").split("\n")]


def shell(command):
    p = subprocess.run(["bash", "-c", command], cwd=path("."),
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=300)
    check(p.returncode == 0, "%s: %s" % (command, p.stdout))


class Serving:
    """The server that the manual starts: what Guest wants of one."""

    def __init__(self, command):
        self.sock, pid = path("disk.sock"), path("disk.pid")
        if os.path.exists(pid):
            os.unlink(pid)
        self.p = subprocess.Popen(
            command.replace("nbdkit ", "exec nbdkit -f --exit-with-parent "
                            "-P disk.pid "),
            shell=True, cwd=path("."), stdin=subprocess.DEVNULL)
        # The socket is there before anybody listens to it.
        while not os.path.exists(pid) and self.p.poll() is None:
            time.sleep(0.01)

    def connect(self, export="", meta=True):
        h = nbd.NBD()
        h.set_export_name(export)
        h.connect_unix(self.sock)
        return h

    def stop(self):
        self.p.send_signal(signal.SIGTERM)
        equal(self.p.wait(60), 0, "the server's end")


def raw(name, fmt):
    """What is in a file, without the server."""
    if fmt == "raw":
        return open(path(name), "rb").read()
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", path(name),
        path("content"))
    with open(path("content"), "rb") as f:
        return f.read()


def main():
    todo = commands(HEAD)
    run("qemu-img", "create", "-q", "-f", "qcow2", path("disk.qcow2"),
        str(SIZE))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 7M", "-c",
        "write -z 3M 1M", path("disk.qcow2"))
    sunday = raw("disk.qcow2", "qcow2")
    while not todo[0].startswith("nbdkit"):
        shell(todo.pop(0))
    srv = Serving(todo.pop(0))
    guest = Guest(srv, random.Random(7), 65536)
    guest.steps(20)
    was = {}
    while "disk.sock" in todo[0]:
        command = todo.pop(0)
        token = re.search(r"now%2F(\w+)", command)
        made = re.search(r"(\S+\.(?:qcow2|raw))(?: --backing=\S+.*)?$",
                         command).group(1)
        was[made] = sunday
        holder = None
        if token:
            holder = srv.connect(unquote(token.group(0)))
            was[made] = bytes(guest.disk)
        with Busy(guest):
            shell(command)
        if holder is not None:
            check(was[made] != bytes(guest.disk), "the guest wrote nothing")
            holder.shutdown()
        fmt = made.rsplit(".")[-1]
        equal(raw(made, fmt), was[made], command)
        qtest.images += 1
    equal(sorted(was), ["full.qcow2", "monday.qcow2", "sunday.raw",
                        "thursday.qcow2", "tuesday.qcow2", "wednesday.qcow2"],
          "what was made")
    # All of it is still what it was, and takes what has changed.
    for made in was:
        equal(raw(made, made.rsplit(".")[-1]), was[made], made)
        if made.endswith("qcow2"):
            run("qemu-img", "check", "-q", path(made))
    guest.h.shutdown()
    srv.stop()
    check_image(path("disk.qcow2"), "disk")
    for command, made, out in zip(todo, ("monday.qcow2", "thursday.qcow2"),
                                  ("restored.qcow2", "restored.raw")):
        shell(command)
        equal(raw(out, out.rsplit(".")[-1]), was[made], command)
    equal(len(todo), 2, "commands that restore")


if __name__ == "__main__":
    main()
    qtest.finish("backups")
