#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# command=: an image on a server that the plugin starts, and that ends with it,
# however it ends.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version
requires nbdcopy --version
requires_libnbd

cd "$tmp"
make_image image.qcow2 expected
cp image.qcow2 unchanged.qcow2

# far [ARGUMENT...]: what starts nbdkit with these arguments, in $far; its
# process is then in far.pid.
far ()
{
    local a
    far=(command="$(command -v nbdkit)" arg=-P "arg=$tmp/far.pid")
    for a; do far+=("arg=$a"); done
    rm -f far.pid
}
# It ends.  Nobody may have collected its status: then it is a zombie.
far_ends ()
{
    wait_until -t 30 _is_dead "$(cat far.pid)" || die "the far server lives on"
}
_is_dead ()
{
    ! kill -0 "$1" 2>/dev/null || grep -q ') Z' "/proc/$1/stat"
}

# write_to SOCKET [flush]
write_to ()
{
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 300000, 100000)
if len(sys.argv) > 2:
    h.flush()
h.shutdown()' "$@"
}
"$PYTHON" - <<'PY'
with open("expected", "rb") as f, open("model", "wb") as m:
    m.write(f.read())
    m.seek(100000)
    m.write(b"x" * 300000)
PY

# --- Reading.
far -r file "$tmp/image.qcow2"
"$NBDKIT" -r -U - "$PLUGIN" "${far[@]}" --run 'nbdcopy "$uri" -' > copy
cmp copy expected
far_ends
cmp image.qcow2 unchanged.qcow2
"$NBDKIT" -r -U - "$PLUGIN" command=qemu-nbd arg=-r arg=-f arg=raw \
    "arg=$tmp/image.qcow2" --run 'nbdcopy "$uri" -' > copy
cmp copy expected

# --- In the background, with a command that is not named by its whole path.
ln -s "$(command -v nbdkit)" here
far -r file "$tmp/image.qcow2"
"$NBDKIT" -r -U "$tmp/bg.sock" -P bg.pid "$PLUGIN" command=./here "${far[@]:1}"
has_gone_to_background bg.pid
nbdcopy "nbd+unix:///?socket=$tmp/bg.sock" copy
cmp copy expected
kill "$(cat bg.pid)"
_gone "$(cat bg.pid)" || die "it does not end"
far_ends

# --- Writing: what is not flushed is written when the server ends, be it by ^C,
# which is sent to all processes of the terminal.
for signal in TERM INT; do
    cp unchanged.qcow2 image.qcow2
    truncate -s +8M image.qcow2
    far file "$tmp/image.qcow2"
    set -m
    start_nbdkit "$PLUGIN" "${far[@]}"
    set +m
    write_to "$sock"
    kill -$signal -- "-$pid"
    wait "$pid" || die "nbdkit ended with status $?"
    forget "$pid"
    far_ends
    check_clean image.qcow2
    same_disk image.qcow2 model
done

# --- Killed: the far one ends as well, though it would serve others (-t), and
# what was flushed is there.
cp unchanged.qcow2 image.qcow2
truncate -s +8M image.qcow2
far=(command=qemu-nbd arg=-t arg=-f arg=raw "arg=--pid-file=$tmp/far.pid"
     "arg=$tmp/image.qcow2")
start_nbdkit "$PLUGIN" "${far[@]}"
write_to "$sock" flush
kill -9 "$pid"
wait "$pid" || true
forget "$pid"
far_ends
qemu-img check -q -f qcow2 image.qcow2 || test $? -eq 3
same_disk image.qcow2 model

# --- The far one is killed: everything fails from then on, reading too.
far file "$tmp/image.qcow2"
start_nbdkit "$PLUGIN" "${far[@]}"
nbdcopy "$uri" copy
cmp copy model
kill -9 "$(cat far.pid)"
for i in 1 2; do
    "$PYTHON" -c 'import errno, sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
for what in (lambda: h.pread(65536, 1 << 20), lambda: h.pwrite(b"y", 0)):
    try:
        what()
    except nbd.Error as e:
        assert e.errnum == errno.EIO, e
    else:
        sys.exit("that goes well")' "$sock" || die "attempt $i"
done
end_process "$pid" || true

# --- What can't be.
far file "$tmp/image.qcow2"
expect_refusal 'create= and command= exclude each other' "$PLUGIN" "${far[@]}" \
    create=true size=1M
expect_refusal 'arg= without command=' "$PLUGIN" image.qcow2 arg=x
expect_refusal 'which command' "$PLUGIN" command=
expect_refusal 'two images: command=' "$PLUGIN" "${far[@]}" image.qcow2
expect_refusal 'command= was given twice' "$PLUGIN" command=a command=b
for arg in retry=1 connections=2; do
    expect_refusal "${arg%=*}= is not for a server that command= starts" \
        "$PLUGIN" "${far[@]}" $arg
done
test ! -e far.pid || die "a server was started"

# refused_late REGEX [PARAMETER...]: when it serves already, nbdkit ends with this.
refused_late ()
{
    local regex="$1" status=0
    shift
    timeout -k 10 60 "$NBDKIT" -f -U late.sock "$PLUGIN" "$@" \
        </dev/null > late.out 2>&1 || status=$?
    rm -f late.sock
    test $status -eq 1 || die "status $status: $*"
    grep -Eq -- "$regex" late.out || { cat late.out >&2; die "$*"; }
}
refused_late 'command=nowhere: connecting' command=nowhere
refused_late 'command=true: connecting' command=true
far memory 1M
refused_late 'command=.*nbdkit: .*qcow2' "${far[@]}"
far_ends
qemu-img create -q -f qcow2 -b expected -F raw rel.qcow2
far file "$tmp/rel.qcow2"
refused_late "can't be found from an NBD server: backing=" "${far[@]}" \
    follow=beneath
far_ends

# --- A backing file.
far file "$tmp/rel.qcow2"
"$NBDKIT" -r -U - "$PLUGIN" "${far[@]}" "backing=$tmp/expected" \
    --run 'nbdcopy "$uri" -' > copy
cmp copy expected
