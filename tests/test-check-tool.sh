#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool: exit codes, output, locks, and that its map and its
# numbers are those of qemu-img.

. ./functions.sh

requires_qemu
requires qemu-nbd --version
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

# expect STATUS REGEX ARG...: the tool exits so, and says that.
expect ()
{
    local want=$1 regex="$2" status=0
    shift 2
    "$tool" "$@" > "$tmp/out" 2> "$tmp/err" || status=$?
    test $status -eq "$want" || {
        cat "$tmp/out" "$tmp/err" >&2
        die "exits with $status instead of $want: $*"
    }
    grep -Eq -- "$regex" "$tmp/out" "$tmp/err" || {
        cat "$tmp/out" "$tmp/err" >&2
        die "does not say '$regex': $*"
    }
}

base="$tmp/base.qcow2"
image="$tmp/image.qcow2"
qemu-img create -q -f qcow2 "$base" 8M
qemu-io -f qcow2 -c 'write -P 1 0 3M' "$base" > /dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$image"
qemu-io -f qcow2 -c 'write -P 2 1M 200k' -c 'write -z 2M 64k' \
    -c 'write -c -P 3 4M 64k' "$image" > /dev/null
qemu-img snapshot -c 'a "name"' "$image"
qemu-img bitmap --add "$image" bits
qemu-io -f qcow2 -c 'write -P 4 6M 64k' "$image" > /dev/null

# Exit codes: clean, no image, not an image, errors, leaks.
expect 0 'found: +0 errors, 0 leaked' check "$image"
expect 1 'No such file' check "$tmp/none"
printf 'x%.0s' {1..2000} > "$tmp/x"
expect 1 'not a qcow2 image' check "$tmp/x"

set_byte ()
{
    printf "\\x$3" | dd of="$1" bs=1 seek=$2 conv=notrunc status=none
}
# The refcounts are in the third cluster; the last one that is used is raised.
cp "$image" "$tmp/bad"
set_byte "$tmp/bad" $(( 0x20000 + 9 )) 00
expect 2 '[1-9][0-9]* errors' check "$tmp/bad"
expect 2 'left damage' check --repair=leaks "$tmp/bad"
expect 0 'now: +0 errors, 0 leaked' check -r all "$tmp/bad"
check_clean "$tmp/bad"
cp "$image" "$tmp/bad"
set_byte "$tmp/bad" $(( 0x20000 + 2 * 200 + 1 )) 01
truncate -s $(( 201 * 65536 )) "$tmp/bad"
expect 3 'leak: cluster at 0xc80000' check "$tmp/bad"
expect 3 '^found: +0 errors, 1 leaked' check --messages=0 "$tmp/bad"
test ! -s "$tmp/err" || die "printed findings with --messages=0"
expect 0 'now: +0 errors, 0 leaked' check -r leaks "$tmp/bad"
check_clean "$tmp/bad"

# More findings than are listed, which is said.
qemu-img create -q -f qcow2 "$tmp/cut" 64M
qemu-io -f qcow2 -c 'write -q 0 8M' "$tmp/cut"
truncate -s 300000 "$tmp/cut"
expect 2 '128 errors' check "$tmp/cut"
grep -q '^no more than 100 findings are listed: see --messages$' "$tmp/err"
test "$(wc -l < "$tmp/err")" -eq 101
expect 2 '128 errors' check --messages=128 "$tmp/cut"
test "$(wc -l < "$tmp/err")" -eq 128
: > "$tmp/empty"
expect 1 'not a qcow2 image: it has 0 bytes' check "$tmp/empty"

# Options.
expect 1 'human or json' check --output=xml "$image"
expect 1 'leaks or all' check --repair=some "$image"
expect 1 'number from 0' check --messages=many "$image"
expect 1 'does not take --repair' map --repair=all "$image"
expect 1 'does not take --follow' check --follow=any "$image"
expect 1 'exclude each other' check -U -r all "$image"
expect 1 'no such command' shrink "$image"
expect 1 'image is wanted' check
expect 1 '--follow=beneath allows' map "$image"
expect 0 'Usage: ' --help
expect 0 'qcow2' --version
expect 0 '100%' check -p "$image"

# Locks.
qemu_holds "$image"
expect 1 'lock\): -U reads it all the same' check "$image"
expect 0 'virtual-size +8 MiB .8388608 bytes' info -U "$image"
qemu_lets_go
qemu_holds "$image" -r
expect 0 'found: +0 errors' check "$image"
expect 1 'lock' check --repair=all "$image"
qemu_lets_go
before=$(fingerprint "$image")
expect 0 'found: +0 errors' check "$image"
test "$before" = "$(fingerprint "$image")" || die "written by a check"

# As qemu-img has it.
qemu-img check -f qcow2 --output=json "$image" > "$tmp/check.q"
"$tool" check --output=json "$image" > "$tmp/check.t"
qemu-img info -f qcow2 --output=json "$image" > "$tmp/info.q"
"$tool" info --output=json --follow=beneath "$image" > "$tmp/info.t"
qemu-img map -f qcow2 --output=json "$image" > "$tmp/map.q"
"$tool" map --output=json --follow=beneath "$image" > "$tmp/map.t"
expect 0 'base.qcow2' map --follow=any "$image"
expect 0 'base.qcow2 \(qcow2, 8388608 bytes\)' info --follow=any "$image"
expect 0 'bitmaps:' info "$image"
"$PYTHON" - "$tmp" <<'PY'
import json
import sys


def load(name):
    with open(sys.argv[1] + "/" + name) as f:
        return json.load(f)


def same(what, a, b):
    if a != b:
        sys.exit("%s: %r, and %r in qemu-img" % (what, a, b))


t, q = load("check.t"), load("check.q")
for key in ("check-errors", "corruptions", "leaks", "image-end-offset",
            "total-clusters", "allocated-clusters", "fragmented-clusters",
            "compressed-clusters"):
    same(key, t[key], q.get(key, 0))

t, q = load("info.t"), load("info.q")
data = q["format-specific"]["data"]
same("virtual-size", t["virtual-size"], q["virtual-size"])
same("cluster-size", t["cluster-size"], q["cluster-size"])
same("version", t["version"], 3 if data["compat"] == "1.1" else 2)
same("refcount-bits", t["refcount-bits"], data["refcount-bits"])
same("backing", t["backing-filename"], q["backing-filename"])
same("format", t["backing-format"], q["backing-filename-format"])
same("chain", [c["format"] for c in t["backing-chain"]], ["qcow2"])
same("snapshots", [(s["id"], s["name"]) for s in t["snapshots"]],
     [(s["id"], s["name"]) for s in q["snapshots"]])
same("bitmaps", [(b["name"], b["granularity"]) for b in t["bitmaps"]],
     [(b["name"], b["granularity"]) for b in data["bitmaps"]])


def pieces(runs):
    """By 64 KiB, since where runs are cut is not what matters."""
    out = {}
    for r in runs:
        for at in range(r["start"], r["start"] + r["length"], 65536):
            offset = r.get("offset")
            if offset is not None and not r.get("compressed"):
                offset += at - r["start"]
            out[at] = (r["zero"], r["data"],
                       offset if r["data"] and not r.get("compressed")
                       else None, r["depth"] if r["data"] else None)
    return out


t, q = load("map.t"), load("map.q")
compressed = {r["start"] for r in t if r["compressed"]}
same("compressed", compressed, {4 << 20})
mine, theirs = pieces(t), pieces(q)
same("map's length", sorted(mine), sorted(theirs))
for at in mine:
    if at not in compressed:
        same("map at %d" % at, mine[at], theirs[at])
PY
