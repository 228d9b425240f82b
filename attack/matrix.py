import os, sys, json, random, struct, subprocess, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
import nbd, qtest, points
from qtest import path, run, check, equal, Server
SIZE = 9 << 20
points.SIZE = SIZE
from points import Guest
qtest.VOLUME = 1
def flags(h):
    out = bytearray(SIZE); at = 0
    while at < SIZE:
        e = []
        h.block_status(SIZE - at, at, lambda c, o, x, err: e.extend(x) and 0)
        for l, fl in zip(e[::2], e[1::2]):
            l = min(l, SIZE - at)
            if fl != 1: out[at:at+l] = b"\1" * l
            at += l
    return out
def combine(base, inc, d):
    out = bytearray(base)
    import itertools
    at = 0
    while at < SIZE:
        v = d[at]; e = d.find(b"\0" if v else b"\1", at)
        if e < 0: e = SIZE
        if v: out[at:e] = inc[at:e]
        at = e
    return bytes(out)
def rd(srv, export):
    h = srv.connect(export); r = qtest.read_all(h); return h, r
def info(f):
    p = run("qemu-img", "info", "-U", "--output=json", f)
    j = json.loads(p.stdout)
    return {b["name"]: (b["flags"], b["granularity"]) for b in j["format-specific"]["data"].get("bitmaps", [])}, [s["name"] for s in j.get("snapshots", [])]
def nbd_b(f, name):
    s = path("qn%d" % random.randrange(1 << 30)); 
    p = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", s, "-B", name, "-f", "qcow2", f], stderr=subprocess.PIPE)
    while not os.path.exists(s):
        if p.poll() is not None: raise RuntimeError("qemu-nbd -B: " + p.stderr.read().decode())
        time.sleep(0.005)
    h = nbd.NBD(); h.add_meta_context("qemu:dirty-bitmap:" + name); 
    for k in range(400):
        try: h.connect_unix(s); break
        except nbd.Error:
            time.sleep(0.02); h = nbd.NBD(); h.add_meta_context("qemu:dirty-bitmap:" + name)
    out = bytearray(SIZE); at = 0
    while at < SIZE:
        e = []
        h.block_status(SIZE - at, at, lambda c, o, x, err: e.extend(x) and 0)
        for l, fl in zip(e[::2], e[1::2]):
            l = min(l, SIZE - at)
            if fl & 1: out[at:at+l] = b"\1" * l
            at += l
    h.shutdown(); p.terminate(); p.wait(); return out
def superset(d, a, b, what):
    for at in range(0, SIZE, 512):
        if a[at:at+512] != b[at:at+512] and not d[at]:
            check(False, "%s: %#x changed, clean" % (what, at)); return
def one(kind, create, unit, params=(), bitmaps=False, kill=False, gran="", qemu=True, prep=None):
    what = "%s%s%s" % (kind, " bitmaps" if bitmaps else "", " kill" if kill else "")
    f = path("i%d.qcow2" % random.randrange(1 << 30))
    rnd = random.Random(what)
    for _ in range(3):
        p = run(*(["qemu-img", "create"] + create + [f, str(SIZE)]), ok=False)
        if p.returncode == 0: break
    if p.returncode: print(what, "create:", p.stderr); return
    if bitmaps:
        run("qemu-img", "bitmap", "--add", "-g", "512", f, "fine"); run("qemu-img", "bitmap", "--add", f, "dis"); run("qemu-img", "bitmap", "--disable", f, "dis")
    if prep: prep(f)
    srv = Server(f, "point-in-time=true", "point-in-time-linger=0", *params, readonly=False)
    try:
        g = Guest(srv, rnd, unit); g.steps(15)
        try:
            srv.connect("take/s0?bitmap=b0" + gran).shutdown()
        except nbd.Error as e:
            print(what, "refused:", srv.errors()[-1:] or e); g.h.shutdown(); srv.stop(quiet=False)
            print("   ", info(f) if qemu else ""); return
        d0 = bytes(g.disk); g.steps(15)
        srv.connect("take/s1?bitmap=b1&disable=b0" + gran).shutdown(); d1 = bytes(g.disk)
        g.steps(15)
        srv.connect("take/s2?bitmap=b2&disable=b1" + gran).shutdown(); d2 = bytes(g.disk)
        g.steps(15)
        ds = [d0, d1, d2]
        for i in (0, 1, 2):
            h, r = rd(srv, "snapshot/s%d" % i); equal(r, ds[i], what + " s%d" % i); h.shutdown()
        for i in (1, 2):
            h, r = rd(srv, "snapshot/s%d/bitmap/b%d" % (i, i-1)); d = flags(h)
            equal(combine(ds[i-1], r, d), ds[i], what + " increment %d" % i); h.shutdown()
            extra = sum(1 for a in range(0, SIZE, 65536) if any(d[a:a+65536]) and not any(lo < a+65536 and hi > a for lo, hi in g.touched))
            if extra: print(what, "extra regions", extra)
        g.h.flush() if kill else None
        live = bytes(g.disk)
        if kill:
            srv.p.kill(); srv.p.wait()
        else:
            g.h.shutdown(); srv.stop()
    except Exception as e:
        check(False, what + ": " + repr(e) + " " + srv.log()[-300:]); srv.p.kill(); return
    if qemu:
        p = run("qemu-img", "check", "--output=json", f, ok=False); j = json.loads(p.stdout)
        for k in ("corruptions", "check-errors") + (() if kill else ("leaks",)): check(j.get(k, 0) == 0, "%s %s %s" % (what, k, j.get(k)))
        b, s = info(f)
        want = {"b0": [], "b1": [], "b2": ["auto"]}
        if bitmaps: want.update(fine=["auto"], dis=[])
        check({k: v[0] for k, v in b.items()} == want, what + " %s" % b)
        check(s == ["s0", "s1", "s2"], what + str(s))
        for n, (x, y) in {"b0": (d0, d1), "b1": (d1, d2), "b2": (d2, live)}.items():
            superset(nbd_b(f, n), x, y, what + " QEMU " + n)
        # QEMU writes, then ours again
        run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", f)
        check({k: v[0] for k, v in info(f)[0].items()} == want, what + " after qemu-io %s" % (info(f),))
    srv = Server(f, "point-in-time=true", *params, readonly=False)
    h, r = rd(srv, ""); w = bytearray(live)
    if qemu: w[1<<20:(1<<20)+65536] = b"\7" * 65536
    equal(r, bytes(w), what + " live again"); 
    srv.connect("take/s3?bitmap=b3&disable=b2").shutdown()
    hh, r = rd(srv, "snapshot/s3/bitmap/b2"); equal(combine(d2, r, flags(hh)), bytes(w), what + " again"); hh.shutdown(); h.shutdown(); srv.stop()
    if qemu:
        p = run("qemu-img", "check", "--output=json", f, ok=False); j = json.loads(p.stdout)
        for k in ("corruptions", "check-errors") + (() if kill else ("leaks",)): check(j.get(k, 0) == 0, "%s %s %s" % (what, k, j.get(k)))
    os.unlink(f); print(what, "ok", flush=True)
def overlay(n):
    d = path("d" * 40)
    while len(d) < n - 60: d += "/" + "e" * 50
    os.makedirs(d, exist_ok=True); b = d + "/" + "b" * (n - len(d) - 1)
    if len(b) != n: b = b[:n]
    with open(b, "wb") as x: x.write(random.Random(1).randbytes(SIZE))
    return ["-f", "qcow2", "-b", b, "-F", "raw"]
Q = ["-f", "qcow2", "-o"]
K = [("64k", Q + ["lazy_refcounts=on"], 65536, ()),
 ("2m", Q + ["cluster_size=2M"], 2 << 20, ()), ("extl2", Q + ["extended_l2=on,cluster_size=64k"], 2048, ()), ("zstd compress", Q + ["compression_type=zstd"], 65536, ("compress=zstd",)),
 ("rb64", Q + ["refcount_bits=64"], 65536, ()), ("rb2", Q + ["refcount_bits=2"], 65536, ())]
which = sys.argv[1:]
if not which or "base" in which:
    for k, c, u, p in K:
        for b in (False, True):
            if b and k in ("v2", "datafile"): continue
            one(k, c, u, p, bitmaps=b, kill=b)
            
    one("luks", ["-f", "qcow2", "--object", "secret,id=s,data=secret", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"], 65536, ("passphrase=secret",), qemu=False)
    one("gran512", Q + ["cluster_size=4k"], 4096, gran="&granularity=512", bitmaps=True)
    one("gran2G", Q + ["cluster_size=4k"], 4096, gran="&granularity=2147483648")
if not which or "overlay" in which:
    for n in (200, 420, 1000):
      for cs in ("64k", "1k"):
        one("overlay%d/%s" % (n, cs), overlay(n) + ["-o", "cluster_size=" + cs], 65536, ("follow=any",), bitmaps=False)
      one("overlay%d" % n, overlay(n), 65536, ("follow=any",), bitmaps=True, kill=True)
qtest.finish("matrix")
