# SPDX-License-Identifier: BSD-3-Clause
"""The commands of "Backups of a disk in use, day by day" in the manual, in their order,
while a guest writes all the time; each backup is the disk as it was between two of the
guest's requests, and what QEMU reads of the snapshot."""

import hashlib
import random

import qtest
from backups import Serving, commands, raw, shell
from frozen import Busy
from points import Guest, SIZE, check_image
from qtest import path, run, check, equal

HEAD = "=head2 Backups of a disk in use, day by day\n"


class Recording(Guest):
    """Knows what the disk has been after each request, by hashes."""

    def __init__(self, *args):
        super().__init__(*args)
        self.states = [self.state()]

    def state(self):
        return hashlib.sha256(self.disk).digest()

    def step(self):
        super().step()
        self.states.append(self.state())


def snapshot(name):
    """By QEMU, of the image that nobody serves."""
    run("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=" + name,
        "-O", "raw", path("disk.qcow2"), path("content"))
    with open(path("content"), "rb") as f:
        return f.read()


def bitmaps():
    """What QEMU says of them: {name: is it enabled?}"""
    p = run("qemu-img", "info", "--output=json", path("disk.qcow2"))
    data = qtest.json.loads(p.stdout)["format-specific"]["data"]
    return {b["name"]: b["flags"] == ["auto"] for b in data.get("bitmaps", [])}


def main():
    todo = commands(HEAD)
    run("qemu-img", "create", "-q", "-f", "qcow2", path("disk.qcow2"),
        str(SIZE))
    srv = Serving(todo.pop(0))
    guest = Recording(srv, random.Random(11), 65536)
    guest.steps(20)
    days = {}
    with Busy(guest):
        for day, made in (("sunday", "full.qcow2"), ("monday", "monday.qcow2"),
                          ("tuesday", "tuesday.qcow2")):
            command = ""
            while made not in command.split():
                command = todo.pop(0)
                before = len(guest.states) - 1
                shell(command)
                if "/take" in command:
                    between = (before, len(guest.states) + 1)
            days[made] = (day, between)
    guest.h.shutdown()
    srv.stop()
    content = {}
    for made, (day, (first, last)) in days.items():
        content[made] = raw(made, "qcow2")
        check(hashlib.sha256(content[made]).digest() in
              guest.states[first:last + 1], "%s: not a state of the disk" % day)
        equal(content[made], snapshot(day), "%s: the snapshot" % day)
        run("qemu-img", "check", "-q", path(made))
        qtest.images += 1
    check(len({hashlib.sha256(c).digest() for c in content.values()}) == 3,
          "the guest wrote nothing")
    check_image(path("disk.qcow2"), "disk")
    equal(bitmaps(), {"b0": False, "b1": False, "b2": True}, "bitmaps")
    shell(todo.pop(0))
    equal(raw("restored.qcow2", "qcow2"), content["tuesday.qcow2"], "restored")
    live = raw("disk.qcow2", "qcow2")
    for command in todo:
        shell(command)
    equal(bitmaps(), {"b2": True}, "what is left of the bitmaps")
    equal(raw("disk.qcow2", "qcow2"), live, "the disk")
    equal(snapshot("tuesday"), content["tuesday.qcow2"], "tuesday")
    check_image(path("disk.qcow2"), "disk")


main()
qtest.finish("daily backups")
