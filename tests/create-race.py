# SPDX-License-Identifier: BSD-3-Clause
"""create-race.py WHEN NAME VICTIM

In the current directory: as soon as a file NAME.xxxxxxxx is made (WHEN is
"temporary"), or one gets the name NAME (WHEN is "named"), a symbolic link to
VICTIM takes its place.  Says "ready" when it is waiting, and goes on until it
is killed.
"""

import ctypes
import os
import struct
import sys

IN_MOVED_TO, IN_CREATE = 0x80, 0x100

when, name, victim = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(0)
if fd < 0 or libc.inotify_add_watch(fd, b".", IN_CREATE | IN_MOVED_TO) < 0:
    sys.exit("inotify: errno %d" % ctypes.get_errno())
os.symlink(victim, "link")
print("ready", flush=True)
while True:
    events = os.read(fd, 65536)
    while events:
        length, = struct.unpack_from("12xI", events)
        made = events[16:16 + length].rstrip(b"\0").decode()
        events = events[16 + length:]
        if (made == name if when == "named" else
                made.startswith(name + ".") and len(made) == len(name) + 9):
            try:
                if os.path.islink(made):
                    continue # ours
                os.rename("link", made)
                os.symlink(victim, "link")
            except OSError:
                pass # it is gone already
