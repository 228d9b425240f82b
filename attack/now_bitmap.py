"""A point taken after the point of a rotation, read by the bitmap that ends:
base + increment must be the point."""
import os, sys, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
import nbd, qtest
from qtest import path, run, Server
MB = 1 << 20
SIZE = int(os.environ.get("MIB", "64")) * MB
f = path("a.qcow2")
run("qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=512", f, str(SIZE))
srv = Server("file=" + f, "point-in-time=true", readonly=False) if 0 else Server(f, "point-in-time=true", readonly=False)
g = srv.connect()
for i in range(0, SIZE, MB):
    g.pwrite(b"B" * MB, i)
g.flush()
srv.connect("take/full?bitmap=b0&granularity=4096").shutdown()
full = srv.connect("snapshot/full")

def take():
    h = srv.connect("take/x?bitmap=b1&disable=b0&granularity=4096"); h.shutdown()
t = threading.Thread(target=take); t0 = time.time(); t.start()
n = 0
# Writes of 4 KiB 1 MiB apart... until 40 are answered
while n < 8 and t.is_alive():
    g.pwrite(b"W" * 4096, n * MB); n += 1
    time.sleep(0.02)
if not t.is_alive(): print("take was over after", time.time() - t0)
alive = t.is_alive()
def conn(export):
    h = nbd.NBD(); h.add_meta_context("base:allocation"); h.set_export_name(export)
    h.connect_unix(srv.sock); return h
now = conn("now/T/bitmap/b0")
alive2 = t.is_alive()
t.join()
print("take took", time.time() - t0, "alive when opened:", alive, alive2, "writes", n)
def dirty(h):
    out = []; at = 0
    while at < SIZE:
        e = []
        h.block_status(min(SIZE - at, 32*MB), at, lambda c, o, x, err: e.append((o, list(x))) and 0)
        for o, x in e:
            for l, fl in zip(x[::2], x[1::2]):
                if at < SIZE:
                    out.append((at, min(l, SIZE-at), fl)); at += l
    return out
d = dirty(now)
snapx = conn("snapshot/x")
wrong = []
for a, l, fl in d:
    if fl != 1: continue
    for p in range(a, a + l, MB):
        m = min(MB, a + l - p)
        if now.pread(m, p) != full.pread(m, p): wrong.append(p)
print("dirty extents", [(hex(a), l) for a, l, fl in d if fl != 1][:80])
print("places that differ from full at T, and are clean in now/T/bitmap/b0:", [hex(x) for x in wrong])
for h in (now, snapx, full, g):
    try: h.shutdown()
    except Exception as e: print(e)
srv.stop(quiet=False)
sys.exit(1 if wrong else 0)
