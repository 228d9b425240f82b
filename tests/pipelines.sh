#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# "make check-pipelines": programs that use NBD servers, with qemu-nbd and with
# nbdkit-qcow2-nbd in its place.  Each prints what differs, and must print the
# same with both.  What is not installed is left out, and named at the end.
#
#   PIPELINES="NAME..."     only these of them

. ./functions.sh
. "$testsrc/pipelines-guests.sh"
. "$testsrc/pipelines-v2v.sh"

requires_python_nbd
requires_qemu
requires qemu-nbd --version

standin="$abs_top_builddir/standin/nbdkit-qcow2-nbd"
export NBDKIT_QCOW2_PLUGIN="$PLUGIN"
unset LISTEN_FDS LISTEN_PID
cd "$tmp"
s="nbd+unix:///?socket=$tmp/s"
PATH="$PATH:/usr/sbin:/sbin"

# serve OPTION...: disk.qcow2, until end_process "$pid".
serve ()
{
    rm -f s pid
    "$server" -t -k "$tmp/s" --pid-file="$tmp/pid" --discard=unmap \
        "$@" -f qcow2 disk.qcow2 > server.log 2>&1 < /dev/null &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" test -s pid || die "$server: $(cat server.log)"
}

# Random writes, which fio reads back and verifies.
has_fio () { fio --enghelp=nbd; }
run_fio ()
{
    serve --shared=0
    timeout 300 fio --name=verify --ioengine=nbd --uri="$s" --rw=randwrite \
        --bsrange=512-256k --size=64m --iodepth=16 --verify=crc32c \
        --verify_fatal=1 --randseed=7 --output=fio.log || die "$(cat fio.log)"
    sed -n 's/.*\(err= *[0-9]*\).*/\1/p' fio.log
}

# A file system on a file of nbdfuse; what is removed is trimmed.
has_nbdfuse ()
{
    nbdfuse --version && fusermount3 --version && test -w /dev/fuse &&
        command -v mke2fs
}
run_nbdfuse ()
{
    serve --shared=0
    mkdir -p fuse files
    printf 'some content %d\n' {1..20000} > files/text
    nbdfuse fuse "$s" > fuse.log 2>&1 &
    local fuse=$!
    _pids+=("$fuse")
    wait_until -p "$fuse" test -f fuse/nbd || die "$(cat fuse.log)"
    mke2fs -q -F -t ext4 -U clear -E hash_seed=00000000-0000-0000-0000-000000000001 \
        -d files fuse/nbd 64M 2> mke2fs.log || die "$(cat mke2fs.log)"
    sync -f fuse/nbd
    e2fsck -fn fuse/nbd > e2fsck.log 2>&1 || die "$(cat e2fsck.log)"
    debugfs -R 'cat text' fuse/nbd 2> /dev/null | sha256sum
    fusermount3 -u fuse
    wait "$fuse" || true
    forget "$fuse"
}

# systemd's own program hands over a socket when the first client comes.
has_activation () { systemd-socket-activate --version; }
run_activation ()
{
    rm -f s
    systemd-socket-activate -l "$tmp/s" --setenv=NBDKIT_QCOW2_PLUGIN \
        --setenv=PATH "$server" -f qcow2 disk.qcow2 > server.log 2>&1 &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" listens "$tmp/s" || die "$(cat server.log)"
    timeout 60 qemu-io -f raw -c 'write -P 5 1M 1M' -c 'read -P 5 1M 1M' "$s" |
        grep -c bytes
    # It ends by itself.
    _gone "$pid" || die "the server does not end: $server"
}

# A guest's disk of QEMU's own tools: copy in, compare, trim.
has_qemu () { qemu-img --version; }
run_qemu ()
{
    serve --shared=0
    timeout 120 qemu-img convert -n -f raw -O raw data.raw "$s"
    timeout 120 qemu-img compare -f raw -F raw data.raw "$s"
    timeout 60 qemu-io -f raw -d unmap -c 'discard 0 4M' -c 'read -P 0 0 4M' \
        "$s" | grep -c bytes
}

head -c 20000000 /dev/urandom > data.raw
truncate -s 64M data.raw
left_out=
for pipeline in ${PIPELINES-fio nbdfuse activation qemu v2v guestfish boot}; do
    if ! "has_$pipeline" > /dev/null 2>&1; then
        left_out+=" $pipeline"
        continue
    fi
    begin=$SECONDS
    for server in qemu-nbd "$standin"; do
        qemu-img create -q -f qcow2 disk.qcow2 64M
        "run_$pipeline" > "${server##*/}.result"
        if test -z "$pid"; then
            : # it has ended
        elif kill -0 "$pid" 2> /dev/null; then
            end_process "$pid" || die "$server: SIGTERM"
        else
            wait "$pid" || die "$server: $(cat server.log)"
            forget "$pid"
        fi
        check_clean disk.qcow2
        qemu-img convert -O raw disk.qcow2 "${server##*/}.raw"
    done
    diff -u qemu-nbd.result nbdkit-qcow2-nbd.result || die "$pipeline: it differs"
    # The others write the time.
    case "$pipeline" in
        activation | qemu)
            cmp qemu-nbd.raw nbdkit-qcow2-nbd.raw || die "$pipeline: the disks differ" ;;
    esac
    echo "$pipeline: the same, in $(( SECONDS - begin )) s"
done
echo "left out:${left_out:- nothing}"
