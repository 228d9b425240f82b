# SPDX-License-Identifier: BSD-3-Clause
"""A long wire: a Unix socket that leads to another one, and whatever passes
arrives later.  As a program: farwire.py LISTEN TO MILLISECONDS (each way)."""

import collections
import socket
import sys
import threading
import time


class Wire:
    def __init__(self, listen, to, ms):
        self.to, self.delay = to, ms / 1000
        self.s = socket.socket(socket.AF_UNIX)
        self.s.bind(listen)
        self.s.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.s.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.to)
            for a, b in ((near, far), (far, near)):
                self.carry(a, b)

    def carry(self, a, b):
        queue, more = collections.deque(), threading.Condition()

        def take():
            while True:
                try:
                    data = a.recv(1 << 18)
                except OSError:
                    data = b""
                with more:
                    queue.append((time.monotonic() + self.delay, data))
                    more.notify()
                if not data:
                    return

        def give():
            while True:
                with more:
                    while not queue:
                        more.wait()
                    when, data = queue.popleft()
                time.sleep(max(0, when - time.monotonic()))
                try:
                    if data:
                        b.sendall(data)
                    else:
                        b.shutdown(socket.SHUT_WR)
                        return
                except OSError:
                    return

        for f in (take, give):
            threading.Thread(target=f, daemon=True).start()


if __name__ == "__main__":
    Wire(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    print("ready", flush=True)
    threading.Event().wait()
