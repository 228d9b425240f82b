#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Names out of images, from clients and of files, made to forge lines of the
# log or to hide what they are: what is printed is printable and says which
# bytes were there; JSON gives them back.

. ./functions.sh

requires_python_nbd
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

cd "$tmp"
"$PYTHON" - "$tool" <<'PY'
import json
import os
import struct
import subprocess
import sys
import unicodedata

import nbd
import qtest
from qtest import Server, StartError, check, fail
from qcow2make import Qcow2, EXT_FEATURES

tool = sys.argv[1]

# C0, DEL, C1 as a byte and as a character, and what turns the direction,
# starts a line or is not seen; not UTF-8; what looks like an escape.
EVIL = {
    b"a\x1b[31m\nforged line": "a\\x1b[31m\\x0aforged line",
    b"b\x7f": "b\\x7f",
    b"c\x9b31m": "c\\x9b31m",
    "d\u009b31m\u0085".encode(): "d\\xc2\\x9b31m\\xc2\\x85",
    "e\u202egnp.2wocq\u2066\u200f".encode():
        "e\\xe2\\x80\\xaegnp.2wocq\\xe2\\x81\\xa6\\xe2\\x80\\x8f",
    "f\u061c\u2028\u2029".encode():
        "f\\xd8\\x9c\\xe2\\x80\\xa8\\xe2\\x80\\xa9",
    "g\ufeff\u200b".encode(): "g\\xef\\xbb\\xbf\\xe2\\x80\\x8b",
    b"h\xff\xc3": "h\\xff\\xc3",
    b"i\\x9b": "i\\\\x9b",
    "j\u00e4 \u6708 \U0001f4be".encode(): "j\u00e4 \u6708 \U0001f4be",
}


def harmless(what, out):
    try:
        text = out.decode()
    except UnicodeDecodeError as e:
        return fail("%s: not UTF-8: %r" % (what, out))
    for c in text:
        kind = unicodedata.category(c)
        check(c in "\n\u200c\u200d" or
              kind not in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"),
              "%s: U+%04X in %r" % (what, ord(c), text))
    check("\nforged" not in text, "%s: %r" % (what, text))
    return text


def run(*args, status=0):
    p = subprocess.run([tool, *args], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE)
    check(p.returncode == status, "%s: exits with %d: %r" % (
        args, p.returncode, p.stderr))
    return p


def has(what, text, part):
    check(part in text, "%s: %r is not in %r" % (what, part, text))


def log_of(*args):
    try:
        srv = Server(*args)
    except StartError as e:
        return e.log
    srv.stop(quiet=False)
    fail("served: %s" % (args,))


for n, (evil, shown) in enumerate(EVIL.items()):
    evil_str = evil.decode(errors="replace")

    # --- A backing file's name, and that of a file which is named by a path.
    with open(evil, "wb") as f:
        f.write(bytes(65536) + b"x" * 65536)
    over = b"over-%d-" % n + evil
    img = Qcow2(os.fsdecode(over), 1 << 20, backing_name=evil,
                backing_format="raw", autoclear=1)
    img.data(3)
    img.snapshot(evil[:16], evil)
    img.bitmap(evil)
    img.write()
    for args in ((), ("follow=beneath", "backing-format=qcow2")):
        # The bytes of the log.
        p = subprocess.run(
            [os.environ.get("NBDKIT", "nbdkit"), "-f", "-U", "-",
             os.environ["PLUGIN"], b"file=" + over, *args, "--run", "true"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(p.returncode != 0, "served")
        lines = [x for x in p.stderr.split(b"\n") if x]
        check(len(lines) == 1, "%r" % lines)
        text = harmless("log", lines[0])
        has("log", text, "over-%d-%s" % (n, shown))
        if not args:
            has("log", text, 'its backing file is "%s"' % shown)

    out = run("map", "--follow=any", os.fsdecode(over)).stdout
    has("map", harmless("map", out), " ./" + shown + "\n")
    has("map", harmless("map", out), " over-%d-%s\n" % (n, shown))
    err = run("map", os.fsdecode(over), status=1).stderr
    has("map", harmless("map", err), shown)
    out = run("info", "--follow=any", os.fsdecode(over)).stdout
    text = harmless("info", out)
    for part in ("over-%d-%s\n" % (n, shown), " ./%s (raw" % shown,
                 '"%s", granularity' % shown, '"%s", 20' % shown):
        has("info", text, part)
    err = run("check", os.fsdecode(over) + "/x", status=1).stderr
    has("check", harmless("check", err), shown)

    out = run("info", "--follow=any", "--output=json", os.fsdecode(over))
    j = json.loads(harmless("json", out.stdout))
    check(j["backing-filename"] == evil_str, "JSON: %r" % j)
    check(j["snapshots"][0]["name"] == evil_str, "JSON: %r" % j)
    check(j["bitmaps"][0]["name"] == evil_str, "JSON: %r" % j)
    check(j["backing-chain"][0]["filename"] == "./" + evil_str,
          "JSON: %r" % j)
    os.unlink(evil)
    os.unlink(over)

    # --- The name of a feature.
    name = "feature-%d.qcow2" % n
    img = Qcow2(name, 1 << 20, incompat=1 << 9, features=False, exts=[
        (EXT_FEATURES, struct.pack("BB46s", 0, 9, evil[:46]))])
    img.write()
    has("feature", harmless("feature", log_of("file=" + name).encode()),
        "bit 9 (%s)" % shown)
    err = run("info", name, status=1).stderr
    has("feature", harmless("feature", err), "bit 9 (%s)" % shown)

    # --- What a client asks for.
    name = "client-%d.qcow2" % n
    img = Qcow2(name, 1 << 20)
    img.write()
    try:
        evil.decode()
    except UnicodeDecodeError:
        continue                    # libnbd takes UTF-8 only
    with Server("file=" + name) as srv:
        try:
            srv.connect(evil.decode())
            fail("there is such an export")
        except nbd.Error:
            pass
        srv.stop(quiet=False)
        has("client", harmless("client", "".join(srv.errors()).encode()),
            'no export "%s"' % shown)

# --- Snapshots whose names a client should not see have their ID instead.
img = Qcow2("exports.qcow2", 1 << 20)
img.snapshot("7", "x\u202ey")
img.snapshot("8", "\u05e9\u05dc\u05d5\u05dd")
img.write()
with Server("file=exports.qcow2") as srv:
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(srv.uri())
    names = []
    h.opt_list(lambda name, description: names.append(name) or 0)
    h.opt_abort()
    check(names == ["", "snapshot/7", "snapshot/\u05e9\u05dc\u05d5\u05dd"],
          "exports %r" % names)
    srv.connect("snapshot/7").shutdown()
    srv.stop()
qtest.finish("names")
PY
