#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Old kernels do not have some system calls, and old containers forbid them
# (EPERM).  Everything goes on as it would with them; nothing is silently
# read-only.

. ./functions.sh

requires_python_nbd
requires_qemu
requires strace --version
requires strace -f --seccomp-bpf -e trace=getrandom -e inject=getrandom:error=ENOSYS \
    -o "$tmp/probe" true

cat > "$tmp/old" <<'SH'
#!/bin/sh
# With -D it is nbdkit that is the caller's child.
for call in $CALLS; do
    set -- -e "inject=$call:error=$ERROR" "$@"
done
inject=
while test "$1" = -e; do
    inject="$inject -e $2"
    shift 2
done
exec strace -D -f --seccomp-bpf -o "$TRACE" \
    -e trace=$(echo $CALLS | tr ' ' ,) $inject -e signal=none \
    -- "$REAL_NBDKIT" "$@"
SH
chmod +x "$tmp/old"
export REAL_NBDKIT="$NBDKIT" TRACE="$tmp/trace"
NBDKIT="$tmp/old"
cd "$tmp"

# These happened, with the error.
happened ()
{
    local call
    for call; do
        # strace ends last
        wait_until -t 10 grep -q "$call(.*INJECTED" "$TRACE" ||
            die "$call was not called"
    done
}

# written IMAGE [PARAMETER...]: it is served read-write, also with FUA.
written ()
{
    local image="$1"
    shift
    rm -f "$TRACE"
    start_nbdkit "$PLUGIN" "$image" "$@"
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert not h.is_read_only()
for k in range(3):
    h.pwrite(b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(8192, 0) == b"f" * 4096 + b"b" * 4096
h.shutdown()' "$sock" || die "$ERROR $CALLS: $image: the client failed"
    stop_nbdkit "$pid"
    test ! -s "$log" || die "$ERROR $CALLS: $(cat "$log")"
    check_clean "$image"
}

mkdir -p d/sub out
head -c 1M /dev/zero | tr '\0' b > d/sub/base.raw
cp d/sub/base.raw out/base.raw
ln -s sub/../sub/base.raw d/link-in
ln -s ../out/base.raw d/link-out
{ head -c 4096 /dev/zero | tr '\0' f; tail -c +4097 d/sub/base.raw; } > want

for ERROR in EPERM ENOSYS; do
    export ERROR
    # --- follow=beneath.
    export CALLS=openat2
    for name in sub/base.raw link-in "$tmp/d/sub/base.raw"; do
        qemu-img create -q -f qcow2 -u -b "$name" -F raw d/o.qcow2 1M
        written d/o.qcow2 follow=beneath
        happened openat2
        same_disk d/o.qcow2 want
    done
    for name in ../out/base.raw link-out "$tmp/out/base.raw" \
                sub/../../out/base.raw; do
        qemu-img create -q -f qcow2 -u -b "$name" -F raw d/o.qcow2 1M
        expect_refusal 'not beneath|refused by follow=beneath' \
            "$PLUGIN" d/o.qcow2 follow=beneath
    done

    # --- Whether it can be written, and FUA.
    export CALLS='faccessat2 pwritev2'
    qemu-img create -q -f qcow2 -u -b sub/base.raw -F raw d/o.qcow2 1M
    written d/o.qcow2 follow=beneath
    happened faccessat2 pwritev2
    same_disk d/o.qcow2 want

    # --- A new image.
    export CALLS='getrandom renameat2'
    for more in '' ' link linkat'; do
        export CALLS="getrandom renameat2$more"
        rm -f d/o.qcow2
        written d/o.qcow2 create=true backing=sub/base.raw backing-format=raw
        happened getrandom renameat2
        same_disk d/o.qcow2 want
        expect_refusal 'it exists already' "$PLUGIN" d/o.qcow2 create=true \
            size=1M
        written d/o.qcow2 create=overwrite backing=sub/base.raw \
            backing-format=raw
        test "$(ls -A d | tr '\n' ' ')" = 'link-in link-out o.qcow2 sub ' ||
            die "there are files: $(ls -A d)"
    done
done

# --- A file that can't grow: what has space is written, and the rest is ENOSPC,
# once in the log; the end is as clean as always.
for ERROR in ENOSYS EOPNOTSUPP; do
    export ERROR CALLS=ftruncate
    qemu-img create -q -f qcow2 fixed.qcow2 16M
    qemu-io -f qcow2 -c 'write -P 98 0 64k' fixed.qcow2 >/dev/null
    size="$(stat -c %s fixed.qcow2)"
    rm -f "$TRACE"
    start_nbdkit "$PLUGIN" fixed.qcow2
    "$PYTHON" -c 'import errno, sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"f" * 4096, 0)
for at in range(1 << 20, 4 << 20, 1 << 20):
    try:
        h.pwrite(b"g" * 65536, at)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
    else:
        sys.exit("written where there is no space")
h.flush()
h.trim(65536, 0)
h.flush()
h.pwrite(b"h" * 4096, 1 << 20)
h.flush()
assert h.pread(65536, 0) == bytes(65536)
assert h.pread(8192, 1 << 20) == b"h" * 4096 + bytes(4096)
h.shutdown()' "$sock" || die "$ERROR: the client failed"
    stop_nbdkit "$pid"
    happened ftruncate
    test "$(grep -c 'error: ' "$log")" -eq 1 || die "$ERROR: $(cat "$log")"
    test "$(stat -c %s fixed.qcow2)" -eq "$size" || die "another size"
    check_clean fixed.qcow2
done

# --- What can't be had is said, not hidden: here the file can't be written,
# and no call at all would tell.
export ERROR=EPERM CALLS=faccessat2
chmod 0444 d/o.qcow2
as_nobody
chmod 0755 d
TRACE=/dev/null
"${as[@]}" "$NBDKIT" -U - "$PLUGIN" d/o.qcow2 follow=beneath \
    --run 'nbdinfo --is read-only "$uri"' > "$tmp/out.log" 2>&1
grep -q 'opening it for writing: Permission denied.*read-only' "$tmp/out.log"
