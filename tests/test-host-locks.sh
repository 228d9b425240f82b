#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# File systems without locks answer this or that to them: then there are none,
# which the log says, once.  locking=on asks for them, and locking=off for none.

. ./functions.sh

requires_python_nbd
requires_qemu
requires qemu-nbd --version
requires strace --version
requires strace -f --seccomp-bpf -P "$tmp" -e inject=fcntl:error=ENOSYS -o "$tmp/probe" true

# The calls for the files of one folder fail.
mkdir "$tmp/d"
cat > "$tmp/lockless" <<'SH'
#!/bin/sh
exec strace -D -f --seccomp-bpf -o /dev/null -P "$FOLDER/image.qcow2" \
    -P "$FOLDER/base.qcow2" -P "$FOLDER/new.qcow2" -e trace=fcntl \
    -e inject=fcntl:error="$ERROR" -e signal=none \
    -- "$REAL_NBDKIT" "$@"
SH
chmod +x "$tmp/lockless"
export REAL_NBDKIT="$NBDKIT" FOLDER="$tmp/d"
NBDKIT="$tmp/lockless"
base="$tmp/d/base.qcow2"
image="$tmp/d/image.qcow2"
qemu-img create -q -f qcow2 "$base" 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$image"
qemu-img bitmap --add --disable "$image" monday

# once MESSAGE: the log has this in one line.
once ()
{
    test "$(grep -c -- "$1" "$log")" = 1 ||
        die "$ERROR: not once: $1: $(cat "$log")"
}
written ()
{
    "$PYTHON" -c 'import sys, nbd
for k in range(2):
    h = nbd.NBD()
    h.connect_unix(sys.argv[1])
    assert not h.is_read_only()
    h.pwrite(b"w" * 512, 0)
    h.flush()
    h.shutdown()' "$sock" || die "$ERROR: the client failed"
}
# Nor is a bitmap there, which others may make wrong.
read_only ()
{
    "$PYTHON" -c 'import sys, nbd
names = []
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
h.opt_list(lambda name, d: names.append(name) or 0)
h.opt_abort()
assert names == [""], names
h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert h.is_read_only()
h.pread(512, 0)
h.shutdown()' "$sock" || die "$ERROR: the client failed"
}

nr=0
for ERROR in ENOSYS EIO EPERM EOPNOTSUPP EINVAL ENOLCK EACCES EAGAIN; do
    export ERROR
    start_nbdkit "$PLUGIN" "$image" follow=beneath
    written
    stop_nbdkit "$pid"
    once "note: .*image.qcow2: locks can't be had"
    test "$(wc -l < "$log")" = 1 || die "more is said: $(cat "$log")"
    check_clean "$image"

    # What does not depend on the error.
    start_nbdkit -r "$PLUGIN" "$image" follow=beneath
    read_only
    stop_nbdkit "$pid"
    once "locks can't be had"
    nr=$(( nr + 1 ))
    if every_other $nr; then
        start_nbdkit -r "$PLUGIN" "$image" follow=beneath force-share=true
        read_only
        stop_nbdkit "$pid"

        start_nbdkit "$PLUGIN" "$image" follow=beneath locking=off
        written
        stop_nbdkit "$pid"
        test ! -s "$log" || die "locking=off: $(cat "$log")"
    fi

    for mode in '' -r; do
        expect_refusal "image.qcow2: locks can't be had .*locking=on" \
            $mode "$PLUGIN" "$image" follow=beneath locking=on
    done

    # A new image, and in place of another.
    for create in true overwrite; do
        start_nbdkit "$PLUGIN" "$tmp/d/new.qcow2" create=$create size=1M
        written
        stop_nbdkit "$pid"
        once "locks can't be had"
        check_clean "$tmp/d/new.qcow2"
    done
    expect_refusal "new.qcow2: locks can't be had .*locking=on" \
        "$PLUGIN" "$tmp/d/new.qcow2" create=overwrite size=1M locking=on
    check_clean "$tmp/d/new.qcow2"
    rm "$tmp/d/new.qcow2"
done

# --- Where there are locks a conflict is one; with locking=off nobody looks.
NBDKIT="$REAL_NBDKIT"
for locking in auto on; do
    qemu_holds "$image"
    expect_refusal 'image.qcow2: another process is writing' \
        -r "$PLUGIN" "$image" follow=beneath locking=$locking
    qemu_lets_go
    start_nbdkit "$PLUGIN" "$image" follow=beneath locking=$locking
    written
    qemu-io -r -f qcow2 -c 'read 0 512' "$image" > "$tmp/qemu.out" 2>&1 &&
        die "locking=$locking: QEMU reads what we write"
    grep -q lock "$tmp/qemu.out"
    stop_nbdkit "$pid"
    test ! -s "$log" || die "locking=$locking: $(cat "$log")"
done
qemu_holds "$base"
start_nbdkit -r "$PLUGIN" "$image" follow=beneath locking=off
read_only
stop_nbdkit "$pid"
qemu_lets_go
start_nbdkit "$PLUGIN" "$image" follow=beneath locking=off
written
qemu-io -r -f qcow2 -c 'read 0 512' "$image" > "$tmp/qemu.out" 2>&1 ||
    die "locking=off: $(cat "$tmp/qemu.out")"
stop_nbdkit "$pid"
check_clean "$image"
expect_refusal 'locking=maybe: must be auto, on or off' \
    "$PLUGIN" "$image" locking=maybe
