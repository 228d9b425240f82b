# SPDX-License-Identifier: BSD-3-Clause
"""diskclient.py SOCKET RAW SEED [KEY=VALUE...]: random requests to a server,
and to a raw file that says what its disk has.  There is no flush at the end
unless asked for.

Keys: requests (how many, default 100); cluster, granule; trims=0 where a trim
may do nothing; trims=no for none; status=0 for no maps; block, that requests
are whole ones of; align, the same for maps; connections; flush=1; busy=FILE:
then make this file and go on with writes that change nothing until the server
goes."""

import random
import sys

import nbd
import diskmodel

sock, raw, seed = sys.argv[1:4]
o = dict(a.split("=", 1) for a in sys.argv[4:])

with open(raw, "rb") as f:
    content = f.read()
cluster = int(o.get("cluster", 65536))
disk = diskmodel.Disk("seed %s" % seed, content, random.Random(seed),
                      cluster=cluster,
                      granule=int(o.get("granule", cluster)),
                      trims=o.get("trims", "1") == "1")
if o.get("trims") == "no":
    disk.trim = disk.zero
disk.block = int(o.get("block", 1))
disk.status_block = int(o.get("align", disk.block))
if o.get("status") == "0":
    disk.status = disk.read


class Socket:
    def connect(self):
        h = nbd.NBD()
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        h.connect_unix(sock)
        return h


ok = disk.connect(Socket(), int(o.get("connections", 1)))
ok = ok and disk.many(int(o.get("requests", 100))) and disk.all()
if not ok:
    sys.exit(1)
h = disk.handles[0]
last = disk.blocks(len(content) // 3, min(70000, len(content) // 2),
                   disk.block)
disk.write(*last)
if "flush" in o:
    h.flush()
with open(raw, "r+b") as f:
    f.write(disk.store.get(0, disk.size))
if "busy" in o:
    # What becomes of the last ones is open, so they say what is there.
    was = disk.store.get(0, 4096)
    open(o["busy"], "w").close()
    try:
        while True:
            h.pwrite(was, 0)
    except nbd.Error:
        sys.exit(0)
disk.disconnect()
