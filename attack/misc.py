import os, sys, json, random, struct, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests")); sys.path.insert(0, os.path.dirname(__file__))
import nbd, qtest
from qtest import path, run, check, equal, Server
MB = 1 << 20
N = [0]
def img(opts="cluster_size=64k", size=4 * MB):
    N[0] += 1; f = path("m%d.qcow2" % N[0]); run("qemu-img", "create", "-f", "qcow2", "-o", opts, f, str(size)); return f
def serve(f, *a, **k): return Server(f, "point-in-time=true", "point-in-time-linger=0", *a, readonly=k.get("ro", False))
def info(f):
    j = json.loads(run("qemu-img", "info", "-U", "--output=json", f).stdout)
    return {b["name"]: b["flags"] for b in j["format-specific"]["data"].get("bitmaps", [])}, [s["name"] for s in j.get("snapshots", [])]
def qcheck(f):
    j = json.loads(run("qemu-img", "check", "-U", "--output=json", f, ok=False).stdout)
    return {k: j.get(k, 0) for k in ("corruptions", "leaks", "check-errors")}
def try_(srv, e):
    try: h = srv.connect(e); h.shutdown(); return "ok"
    except nbd.Error: return (srv.errors() or ["?"])[-1][-200:]
def ext(f, insert=None, drop_auto=False):
    """Parse header extensions; insert: list of (type, data) put first."""
    with open(f, "r+b") as x:
        d = bytearray(x.read(65536)); hl = struct.unpack(">I", d[100:104])[0]; at = hl; l = []
        bo = struct.unpack(">Q", d[8:16])[0]
        while True:
            t, n = struct.unpack(">II", d[at:at+8])
            if t == 0: break
            l.append((t, bytes(d[at+8:at+8+n]))); at += 8 + (n + 7) // 8 * 8
        if insert:
            out = b"".join(struct.pack(">II", t, len(v)) + v + bytes(-len(v) % 8) for t, v in insert(l)) + bytes(8)
            d[hl:hl+len(out)] = out; x.seek(0); x.write(d[:4096])
        if drop_auto:
            x.seek(88); x.write(struct.pack(">Q", struct.unpack(">Q", d[88:96])[0] & ~1))
        return l
def w(srv, at, c=b"x", n=65536):
    h = srv.connect(); h.pwrite(c * n, at); h.flush(); h.shutdown()
def stale():
    f = img(); run("qemu-img", "bitmap", "--add", f, "e"); run("qemu-img", "bitmap", "--add", "--disable", f, "d"); ext(f, drop_auto=True)
    print("stale before", qcheck(f)); s = serve(f); w(s, 0); print("stale:", try_(s, "take/a?bitmap=n"), try_(s, "take/a2?bitmap=m&disable=e")); s.stop(quiet=False); print("stale after", qcheck(f), info(f))
def unknown():
    for name, fn in {"first": lambda l: [(0x12345678, b"u" * 37)] + l, "last": lambda l: l + [(0x12345678, b"u" * 37)], "big first": lambda l: [(0x12345678, b"u" * 380)] + l, "big last": lambda l: l + [(0x12345678, b"u" * 600)], "nonames": lambda l: [x for x in l if x[0] != 0x6803f857]}.items():
        for bm in (0, 1):
            f = img()
            if bm: run("qemu-img", "bitmap", "--add", f, "e")
            ext(f, insert=fn); s = serve(f)
            r0 = try_(s, ""); 
            try: w(s, 0)
            except Exception as e: r0 = repr(e)
            r = try_(s, "take/a?bitmap=n" + ("&disable=e" if bm else "")); s.stop(quiet=False)
            l = ext(f); print("unknown", name, bm, r[-140:], qcheck(f), info(f), [hex(t) for t, v in l], any(t == 0x12345678 and v == b"u" * len(v) for t, v in l))
def namesx():
    f = img(); s = serve(f); w(s, 0)
    print(try_(s, "take/p%25q%2Fbitmap%2Fz?bitmap=x%2Fy%3D%26%3F")); w(s, MB)
    print(try_(s, "take/p?bitmap=second&disable=x%2Fy%3D%26%3F"))
    for e in ("snapshot/p%q/bitmap/z", "snapshot/p%q/bitmap/z/bitmap/x/y=&?", "snapshot/p/bitmap/x/y=&?", "snapshot/1/bitmap/second", "snapshot/p/bitmap/", "snapshot/p/bitmap/none", "bitmap/x/y=&?"): print(e, try_(s, e)[-150:])
    for e in ("take/a%00b?bitmap=n", "take/a?bitmap=n%00m", "take/a?bitmap=%zz", "take/a?bitmap=%", "take/a?bitmap=" + "n" * 1023, "take/b?bitmap=" + "n" * 1024, "take/c?bitmap=n&disable=%01", "take/" + "L" * 2000 + "?bitmap=long", "take/d?bitmap=n?&disable=x", "take/e?bitmap=%C3%28", "take/f?Bitmap=x", "take/g?bitmap=n&", "take/h?&bitmap=n", "take/i?bitmap=n&granularity=0x200", "take/j?bitmap=n&granularity=512", "take/k?bitmap=second", "take/%3F?bitmap=q%25"): print(e[:60], try_(s, e)[-120:])
    s.stop(quiet=False); print(qcheck(f), {k[:20]: v for k, v in info(f)[0].items()}, [x[:20] for x in info(f)[1]])
def refused():
    f = img(); run("qemu-img", "bitmap", "--add", f, "e"); h0 = open(f, "rb").read()
    s = serve(f, ro=True); print("-r:", try_(s, "take/a?bitmap=n&disable=e")[-100:]); s.stop(quiet=False); check(open(f, "rb").read() == h0, "-r wrote")
    s = serve(f, "bitmaps=invalidate"); print("inv:", try_(s, "take/a?bitmap=n")[-100:], try_(s, "take/p")); s.stop(quiet=False); print(qcheck(f), info(f))
    f = img("refcount_bits=1"); s = serve(f); w(s, 0); sz = []
    for i in range(60): r = try_(s, "take/a?bitmap=n"); sz.append(os.path.getsize(f))
    print("refcount 1:", r[-90:], sz[0], sz[-1]); s.stop(quiet=False); print(qcheck(f), info(f))
    f = img("data_file=" + path("df")); s = serve(f, "follow=any"); w(s, 0); print("data file:", try_(s, "take/a?bitmap=n")[-100:]); s.stop(quiet=False)
def chain():
    """Many clients at once: rotations of a chain, plain takes, same names; beside a writer."""
    f = img(size=16 * MB); run("qemu-img", "bitmap", "--add", "-g", "4096", f, "b0"); s = serve(f); stop = threading.Event(); cnt = [0]
    def writer():
        h = s.connect(); r = random.Random(3)
        while not stop.is_set(): h.pwrite(r.randbytes(4096), r.randrange(4096) * 4096); cnt[0] += 1
        h.shutdown()
    t = threading.Thread(target=writer); t.start(); res = {}
    def go(e): res[e] = try2(e)
    def try2(e):
        try: h = s.connect(e); h.shutdown(); return "ok"
        except nbd.Error as x: return str(x)[-60:]
    for rnd in range(6):
        es = ["take/r%d?bitmap=b%d&disable=b%d" % (rnd, rnd + 1, rnd)] * 2 + ["take/p%d" % rnd, "take/r%d?bitmap=zz" % rnd, "take/q%d?bitmap=b%d&disable=b%d" % (rnd, rnd + 1, rnd)]
        ts = [threading.Thread(target=go, args=(e,)) for e in es]; [x.start() for x in ts]; [x.join() for x in ts]
    stop.set(); t.join(); print(cnt, {k: v for k, v in res.items()}); 
    b, sn = None, None
    import itertools
    data = {}
    order = info(f)[1]; print(order)
    seq = [n for n in order if n[0] in "rq"]
    # which snapshot ended b_i: by info of increments
    def rd(e): h = s.connect(e); d = qtest.read_all(h); h.shutdown(); return d
    def fl(e):
        h = s.connect(e); out = bytearray(16 * MB); at = 0
        while at < 16 * MB:
            x = []; h.block_status(16 * MB - at, at, lambda c, o, y, er: x.extend(y) and 0)
            for l, g in zip(x[::2], x[1::2]):
                l = min(l, 16 * MB - at)
                if g != 1: out[at:at+l] = b"\1" * l
                at += l
        h.shutdown(); return out
    # winners of each round in time order
    wins = []
    for rnd in range(6):
        wn = [n for n in ("r%d" % rnd, "q%d" % rnd) if n in order and any(k.startswith("take/%s?bitmap=b%d&" % (n, rnd + 1)) and v == "ok" for k, v in res.items())]; wins.append(wn); 
    print(wins)
    for i in range(1, 6):
        if len(wins[i]) == 1 and len(wins[i-1]) == 1:
            a, c = rd("snapshot/" + wins[i-1][0]), rd("snapshot/" + wins[i][0]); d = fl("snapshot/%s/bitmap/b%d" % (wins[i][0], i))
            bad = [p for p in range(0, 16 * MB, 4096) if a[p:p+4096] != c[p:p+4096] and not d[p]]; check(not bad, "chain %d: %s" % (i, bad[:5]))
    s.stop(quiet=False); print(qcheck(f), info(f))
def inuse():
    f = img(); run("qemu-img", "bitmap", "--add", f, "e"); run("qemu-img", "bitmap", "--add", "--disable", f, "d")
    import subprocess
    p = subprocess.Popen(["qemu-nbd", "-t", "-k", path("qq"), "-f", "qcow2", f]); 
    while not os.path.exists(path("qq")): time.sleep(0.01)
    h = nbd.NBD(); h.connect_unix(path("qq")); h.pwrite(b"x" * 4096, 0); h.flush(); p.kill(); p.wait()
    s = serve(f); w(s, 0); print("in use:", try_(s, "take/a?bitmap=n&disable=e")[-100:], try_(s, "take/b?bitmap=n&disable=d")[-100:], try_(s, "take/c?bitmap=n"), try_(s, "take/dd?bitmap=m&disable=n")); s.stop(quiet=False); print(qcheck(f), info(f))
def before():
    """now/T before the bitmap begins; bitmap/OLD across; list."""
    f = img(); s = Server(f, "point-in-time=true", readonly=False); w(s, 0); 
    now = s.connect("now/T"); w(s, MB, b"y"); print(try_(s, "take/s1?bitmap=b1"))
    try:
        h = s.connect("now/T/bitmap/b1"); e = []; h.block_status(4 * MB, 0, lambda c, o, x, er: e.extend(x) and 0)
        b = s.connect("snapshot/s1"); print("point before the bitmap: extents", e, "now differs from s1 at 1M:", now.pread(512, MB) != b.pread(512, MB))
    except nbd.Error as x: print("refused", s.errors()[-1:])
    old = s.connect("bitmap/b1"); print(try_(s, "take/s2?bitmap=b2&disable=b1")); w(s, 2 * MB, b"z"); e = []; old.block_status(4 * MB, 0, lambda c, o, x, er: e.extend(x) and 0); print("bitmap/b1, opened while enabled, after it ended and a write to 2M:", e); 
    print(s.p.poll()); [h.shutdown() for h in (now, old)]; s.stop(quiet=False); print(qcheck(f))
for n in sys.argv[1:] or ["stale", "unknown", "namesx", "refused", "inuse", "before", "chain"]:
    print("==", n, flush=True)
    try: globals()[n]()
    except Exception as e:
        import traceback; traceback.print_exc(file=sys.stdout)
qtest.finish("misc")
