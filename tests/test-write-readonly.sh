#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# With -r, through the export of a snapshot, and with files that it may not
# write, nothing can be written: clients are told, and refused when they try
# all the same, and not one byte or date changes.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version

mkdir "$tmp/d"
seq 1 300000 > "$tmp/d/base.raw"
image="$tmp/d/image.qcow2"
make_image "$image" "$tmp/expected" snapshots=2 backing="$tmp/d/base.raw"

state ()
{
    fingerprint "$tmp/d"/*
    stat -c '%n %A %y %z' "$tmp/d" "$tmp/d"/*
}
# unchanged BEFORE: the folder is as it was then.
unchanged ()
{
    diff <(echo "$1") <(state) || die "something has changed"
}

# try EXPORT: all that could write, and a flush and reads.
try ()
{
    "$PYTHON" - "$sock" "$1" <<'PY'
import errno
import sys
import nbd

h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])
assert h.is_read_only()
assert not h.can_zero() and not h.can_trim()
# Ask all the same: it is the server that must refuse.
h.set_strict_mode(0)
n = min(h.get_size(), 1 << 20)
was = bytes(h.pread(n, 0))
for what in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.pwrite(b"x", 7),
             lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA),
             lambda: h.zero(512, 0), lambda: h.trim(65536, 0)):
    try:
        what()
    except nbd.Error as e:
        assert e.errnum in (errno.EPERM, errno.EROFS, errno.EINVAL), e
    else:
        sys.exit("the server takes a write")
assert not h.can_flush()
assert bytes(h.pread(n, 0)) == was
h.shutdown()
PY
}

# --- With -r.
before="$(state)"
start_nbdkit -r "$PLUGIN" "$image" follow=beneath
for export in '' snapshot/snap1 snapshot/snap2; do
    try "$export"
done
stop_nbdkit "$pid"
unchanged "$before"

# --- Snapshots, of an image that could be written.
start_nbdkit "$PLUGIN" "$image" follow=beneath
for export in snapshot/snap1 snapshot/snap2; do
    try "$export"
    nbdinfo --is read-only "nbd+unix:///$export?socket=$sock"
done
stop_nbdkit "$pid"
unchanged "$before"

# --- A client that only reads, and one that only flushes.
start_nbdkit "$PLUGIN" "$image" follow=beneath
"$PYTHON" - "$sock" <<'PY'
import sys
import nbd

for what in ("read", "flush"):
    h = nbd.NBD()
    h.connect_unix(sys.argv[1])
    assert not h.is_read_only() and h.can_flush() and h.can_fua()
    assert h.can_zero() and h.can_trim()
    h.pread(h.get_size(), 0)
    if what == "flush":
        h.flush()
    h.shutdown()
PY
stop_nbdkit "$pid"
unchanged "$before"

# --- A file that may not be written.
as_nobody
chmod 0755 "$tmp/d"
chmod 0444 "$tmp/d"/*
before="$(state)"
sock="$tmp/nobody.sock"
mkdir -m 0777 "$tmp/open"
for export in '' snapshot/snap1; do
    timeout -k 10 250 "${as[@]}" "$NBDKIT" -U "$tmp/open/sock" -P "$tmp/open/pid" \
        -f "$PLUGIN" "$image" follow=beneath > "$tmp/nobody.log" 2>&1 &
    nbdkit=$!
    _pids+=("$nbdkit")
    wait_until -p "$nbdkit" test -s "$tmp/open/pid" ||
        die "$(cat "$tmp/nobody.log")"
    sock="$tmp/open/sock"
    try "$export"
    kill "$(cat "$tmp/open/pid")"
    wait "$nbdkit" || die "nbdkit ended with an error"
    forget "$nbdkit"
    rm -f "$tmp/open/pid" "$tmp/open/sock"
done
unchanged "$before"

# --- But where the image can be written, a backing file that can't is fine.
chmod 0666 "$image"
sum="$(sha256sum "$tmp/d/base.raw")"
"${as[@]}" "$NBDKIT" -U - "$PLUGIN" "$image" follow=beneath \
    --run 'nbdinfo --can write "$uri"' || die "can't be written"
"${as[@]}" "$NBDKIT" -U - "$PLUGIN" "$image" follow=beneath \
    --run "'$PYTHON' -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.zero(h.get_size(), 0)
h.shutdown()' \"\$unixsocket\""
truncate -s "$(stat -c %s "$tmp/expected")" "$tmp/zeros"
same_disk "$image" "$tmp/zeros"
check_clean "$image"
test "$sum" = "$(sha256sum "$tmp/d/base.raw")" || die "backing file changed"
