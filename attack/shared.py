"""Two disabled bitmaps that share clusters: the image is writable until a bitmap begins."""
import os, sys, struct
sys.path.insert(0, os.path.dirname(__file__))
sys.argv = ["x", "none"]
src = open(os.path.join(os.path.dirname(__file__), "misc.py")).read().split("for n in sys.argv")[0]
exec(src)
f = img(); [run("qemu-img", "bitmap", "--add", f, n) for n in ("d1", "d2")]
run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", f); [run("qemu-img", "bitmap", "--disable", f, n) for n in ("d1", "d2")]
l = ext(f); e = [v for t, v in l if t == 0x23852875][0]; nr, _, size, off = struct.unpack(">IIQQ", e)
with open(f, "r+b") as x:
    x.seek(off); d = x.read(size); t1 = struct.unpack(">Q", d[:8])[0]; second = (24 + struct.unpack(">H", d[18:20])[0] + 7) // 8 * 8
    t2 = struct.unpack(">Q", d[second:second+8])[0]
    x.seek(t1); bits = x.read(8); x.seek(t2); print(bits, x.read(8)); x.seek(t2); x.write(bits)
with open(f, "r+b") as x:
    x.seek(48); rt = struct.unpack(">Q", x.read(8))[0]; x.seek(rt); rb = struct.unpack(">Q", x.read(8))[0]
    c = struct.unpack(">Q", bits)[0] >> 16; x.seek(rb + 2 * c); x.write(struct.pack(">H", 2))
print(qcheck(f), info(f))
s = serve(f); w(s, 0); print("before: written; take:", try_(s, "take/a?bitmap=n")); w(s, MB); s.stop(quiet=False); print(qcheck(f), info(f))
try:
    s = serve(f); h = s.connect(); print("again: read-only", h.is_read_only()); 
    try: h.pwrite(b"x" * 512, 0); print("written")
    except nbd.Error as e: print(e)
    h.shutdown(); print(s.log()[-400:]); s.stop(quiet=False)
except Exception as e: print("again:", e)
