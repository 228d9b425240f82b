#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir=: which names of a folder are images, and which can be opened.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version

cd "$tmp"
mkdir folder folder/sub other
qemu-img create -q -f qcow2 folder/a.qcow2 16M
qemu-io -f qcow2 -c 'write -P 1 0 64k' folder/a.qcow2 > /dev/null
qemu-img snapshot -c monday folder/a.qcow2
qemu-io -f qcow2 -c 'write -P 2 0 64k' folder/a.qcow2 > /dev/null
qemu-img bitmap --add folder/a.qcow2 changes
qemu-img create -q -f qed 'folder/with space' 8M
qemu-img create -q -f qcow2 folder/sub/c.qcow2 4M
qemu-img create -q -f qcow2 other/out.qcow2 4M
ln -s sub/c.qcow2 folder/inner
ln folder/a.qcow2 folder/hard
ln -s hard folder/link
ln -s ../other/out.qcow2 folder/outer
ln -s "$tmp/other/out.qcow2" folder/absolute
ln -s "$tmp/folder/a.qcow2" folder/absolute-inner
ln -s ../folder/a.qcow2 folder/out-and-in
ln -s loop folder/loop
ln -s nothing folder/to-nothing
echo 'some text' > folder/text
: > folder/empty
printf 'QFI' > folder/short
truncate -s 1M folder/raw
mkfifo folder/fifo
ln -s fifo folder/to-fifo
"$PYTHON" -c 'import socket, sys
socket.socket(socket.AF_UNIX).bind("folder/socket")'
mknod folder/device c 1 3 2> /dev/null || true
printf 'QFI\373 this is damaged' > folder/damaged
cp folder/a.qcow2 $'folder/line\nerror: forged'
cp folder/a.qcow2 $'folder/not\xffutf8'

# exports: the names that are listed, and their descriptions.
exports ()
{
    timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
h.opt_list(lambda name, description: print(name, description, sep=": ") or 0)
h.opt_abort()' "$sock"
}

# opened NAME: "SIZE FIRST-BYTE ro|rw", or the end of the log.
opened ()
{
    timeout 60 "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])
print(h.get_size(), h.pread(1, 0)[0], "ro" if h.is_read_only() else "rw")
h.shutdown()' "$sock" "$1" 2> python.log || {
        test $? -ne 124 || die "$1: it hangs"
        tail -n 1 "$log"
    }
}

# is NAME WANT: a regular expression.
is ()
{
    local got
    got="$(opened "$1")"
    grep -Eqx -- "$2" <<< "$got" || die "$1: '$got' is not '$2'"
}

start_nbdkit "$PLUGIN" dir=folder

# --- The list.
exports > got
cat > want <<'END'
a.qcow2: qcow2
damaged: qcow2
hard: qcow2
inner: qcow2
link: qcow2
with space: qed
END
diff -u want got

# --- What can be opened.
is a.qcow2 '16777216 2 rw'
is a.qcow2/snapshot/monday '16777216 1 ro'
is a.qcow2/bitmap/changes '16777216 2 ro'
is hard '16777216 2 rw'
is link '16777216 2 rw'
is 'with space' '8388608 0 rw'
is inner '4194304 0 rw'
is $'line\nerror: forged' '16777216 2 rw'

# --- And what not.
is a.qcow2/snapshot/tuesday '.*error: a.qcow2: .*snapshot/tuesday.*'
is a.qcow2/snapshot '.*error: a.qcow2: .*'
is a.qcow2/ '.*error: there is no export .*'
is /a.qcow2 '.*error: there is no export .*'
is sub/c.qcow2 '.*error: sub: not a regular file'
is "$tmp/folder/a.qcow2" '.*error: there is no export .*'
is outer '.*error: outer: it leads out of the folder'
is absolute '.*error: absolute: it leads out of the folder'
is absolute-inner '.*error: absolute-inner: it leads out of the folder'
is out-and-in '.*error: out-and-in: it leads out of the folder'
is .. '.*error: \.\.: it leads out of the folder'
is ../other/out.qcow2 '.*error: \.\.: it leads out of the folder'
is . '.*error: \.: not a regular file'
is sub '.*error: sub: not a regular file'
is fifo '.*error: fifo: not a regular file'
is to-fifo '.*error: to-fifo: not a regular file'
is socket '.*error: socket: not a regular file'
test ! -c folder/device || is device '.*error: device: not a regular file'
is loop '.*error: loop: Too many levels of symbolic links'
is to-nothing '.*error: to-nothing: No such file or directory'
is $'no\nerror: such' '.*error: no\\x0aerror: such: No such file or directory'
is "$(printf 'n%.0s' {1..256})" '.*error: there is no export .*'
is "$(printf 'n%.0s' {1..255})" '.*error: n*: No such file or directory'
for name in text empty short raw damaged; do
    is "$name" ".*error: $name: it can't be opened: .*"
done
grep -q "error: $tmp/folder/text: not a qcow2 image" "$log" ||
    die "the log does not say what is wrong with text"
is '' '.*error: default export.*'
grep -q 'error: there is no default export' "$log" || die "no reason for ''"
if grep -q '^error: forged' "$log"; then die "a name forges a line"; fi
stop_nbdkit "$pid"

# --- -r: nothing is written, nor locked against other readers.
fingerprint folder/a.qcow2 > before
start_nbdkit -r "$PLUGIN" dir=folder
is a.qcow2 '16777216 2 ro'
connect_client a.qcow2
qemu-img info folder/a.qcow2 > /dev/null
disconnect_client
stop_nbdkit "$pid"
fingerprint folder/a.qcow2 | cmp - before || die "-r has written"

# --- Without openat2, and where it is forbidden.
if strace -f --seccomp-bpf -e trace=openat2 -e inject=openat2:error=ENOSYS \
    -o probe true 2> /dev/null; then
    cat > old <<'SH'
#!/bin/sh
exec strace -D -f --seccomp-bpf -o "$TRACE" -e trace=openat2 \
    -e inject=openat2:error=ENOSYS -e signal=none -- "$REAL_NBDKIT" "$@"
SH
    chmod +x old
    export REAL_NBDKIT="$NBDKIT" TRACE="$tmp/trace"
    NBDKIT="$tmp/old" start_nbdkit "$PLUGIN" dir=folder
    exports | diff -u want -
    is inner '4194304 0 rw'
    is outer '.*error: outer: it leads out of the folder'
    is .. '.*error: \.\.: it leads out of the folder'
    is to-fifo '.*error: to-fifo: not a regular file'
    stop_nbdkit "$pid"
    wait_until -t 10 grep -q 'openat2(.*INJECTED' trace || die "not called"
fi

# --- Parameters that apply to each image, and others.
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 folder/over
qemu-img create -q -f qcow2 -b "$tmp/folder/a.qcow2" -F qcow2 folder/over-abs
qemu-img create -q -f qcow2 -b ../other/out.qcow2 -F qcow2 folder/over-out
start_nbdkit "$PLUGIN" dir=folder
is over '.*error: over: it can.t be opened: .*'
grep -q 'over: its backing file is "a.qcow2", which was not allowed' "$log" ||
    die "follow=none follows"
stop_nbdkit "$pid"
start_nbdkit "$PLUGIN" dir=folder follow=beneath
is over '16777216 2 rw'
is over-abs '16777216 2 rw'
is over-out '.*error: over-out: it can.t be opened: .*'
stop_nbdkit "$pid"
start_nbdkit "$PLUGIN" dir="$tmp/folder" follow=any
is over-out '4194304 0 rw'
is over-abs '16777216 2 rw'
# A backing file that is being read is not written by the same server, either.
connect_client over
is a.qcow2 '.*error: a.qcow2: another process is using it .*'
disconnect_client
is a.qcow2 '16777216 2 rw'
stop_nbdkit "$pid"
start_nbdkit "$PLUGIN" dir=folder compress=zstd
is a.qcow2 '.*error: a.qcow2: it can.t be opened: .*'
grep -q 'compress=zstd: this image.s compression type is zlib' "$log"
stop_nbdkit "$pid"

expect_refusal 'dir=.*: No such file or directory' "$PLUGIN" dir=nowhere
expect_refusal 'dir=.*: Not a directory' "$PLUGIN" dir=folder/a.qcow2
both='exclude each other'
expect_refusal "file= and dir= $both" "$PLUGIN" folder/a.qcow2 dir=folder
expect_refusal "dir= and file= $both" "$PLUGIN" dir=folder file=folder/a.qcow2
expect_refusal "dir= and command= $both" "$PLUGIN" dir=folder command=true
expect_refusal "dir= and create= $both" "$PLUGIN" dir=folder create=true size=1M
expect_refusal "dir= and size= $both" "$PLUGIN" dir=folder size=1M
expect_refusal "dir= and backing= $both" "$PLUGIN" dir=folder backing=b
expect_refusal "dir= and data-file= $both" "$PLUGIN" dir=folder data-file=d
expect_refusal "dir= and only= .* $both" "$PLUGIN" dir=folder only=a.qcow2
expect_refusal "dir= and .*export-name= $both" "$PLUGIN" dir=folder \
    export-name=a
expect_refusal 'two folders' "$PLUGIN" dir=folder dir=other

check_clean folder/a.qcow2 folder/sub/c.qcow2 other/out.qcow2
