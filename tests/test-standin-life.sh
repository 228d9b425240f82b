#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# How servers begin and end, qemu-nbd and nbdkit-qcow2-nbd side by side: in the
# background, with the last client, by a signal, or not at all; old sockets and
# pid files; locks; a socket of systemd's; TLS; secrets; compression.

. ./functions.sh

requires_python_nbd
requires_qemu
requires qemu-nbd --version
requires nbdcopy --version

standin="$abs_top_builddir/standin/nbdkit-qcow2-nbd"
export NBDKIT_QCOW2_PLUGIN="$PLUGIN"
unset LISTEN_FDS LISTEN_PID
cd "$tmp"
s="nbd+unix:///?socket=$tmp/s"
head -c 3000000 /dev/urandom > disk.raw
truncate -s 4M disk.raw
qemu-img create -q -f qcow2 disk.qcow2 4M

# in_background SERVER OPTION...: by --fork; $pid is the server's.
in_background ()
{
    "$@" --fork --pid-file="$tmp/pid" > out 2>&1 < /dev/null ||
        die "$*: $(cat out)"
    test -S s || die "the socket is not there: $*"
    pid="$(cat pid)"
    _pids+=("$pid")
    kill -0 "$pid" || die "the pid file is wrong: $*"
}
foreground ()
{
    rm -f pid
    "$@" --pid-file="$tmp/pid" > server.log 2>&1 < /dev/null &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" test -s pid || die "$*: $(cat server.log)"
    test "$(cat pid)" = "$pid" || die "another process serves: $*"
}

for server in qemu-nbd "$standin"; do
    rm -f s pid
    # --- It can be used at once, and ends with its last client; a pid file of
    # an earlier server, one that runs, does not deceive.
    echo $$ > pid
    in_background "$server" -k "$tmp/s" -f qcow2 disk.qcow2
    timeout 60 nbdcopy --flush disk.raw "$s"
    _gone "$pid" || die "it does not end with its last client: $server"
    forget "$pid"
    same_disk disk.qcow2 disk.raw
    check_clean disk.qcow2

    # --- Again and again with -t; a socket that is left over does no harm.
    "$PYTHON" -c 'import socket, sys
socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$tmp/s.new"
    mv s.new s
    foreground "$server" -t -k "$tmp/s" -f qcow2 disk.qcow2
    for i in 1 2 3 4 5; do
        timeout 60 nbdcopy "$s" copy.raw ||
            die "the next client is not served: $server"
    done
    cmp copy.raw disk.raw
    # Others can't have the image now.
    for other in qemu-nbd "$standin"; do
        status=0
        timeout 60 "$other" -k "$tmp/s2" -f qcow2 disk.qcow2 > out 2>&1 || status=$?
        test $status -eq 1 || die "$other beside $server ends with $status"
    done
    end_process "$pid" || die "SIGTERM: $server"

    # --- What fails does so at once, and in the foreground.
    for options in "-f qcow2 none.qcow2" "-f raw none.raw" "-l none disk.qcow2" \
        "-f qcow2 disk.raw"
    do
        for fork in "" --fork; do
            status=0
            # shellcheck disable=SC2086
            timeout 60 "$server" $fork -t -k "$tmp/s" $options > out 2>&1 \
                < /dev/null || status=$?
            test $status -eq 1 || die "$server $options ends with $status"
            test -s out || die "$server $options says nothing"
        done
    done

    # --- A raw disk, of which no more is written than is meant to be.
    cp disk.raw raw.img
    foreground "$server" -t -k "$tmp/s" -x raw -f raw raw.img
    for i in 1 2 3 4 5; do
        timeout 60 "$PYTHON" - "$tmp/s" <<'PY'
import sys
import nbd

h = nbd.NBD()
h.set_export_name("raw")
h.connect_unix(sys.argv[1])
assert h.get_size() == 4 << 20 and not h.can_multi_conn()
h.pwrite(b"x" * 512, 512)
h.flush()
h.shutdown()
for name in ("", "other"):
    h = nbd.NBD()
    h.set_export_name(name)
    try:
        h.connect_unix(sys.argv[1])
    except nbd.Error:
        continue
    assert False, name
PY
    done
    # QEMU's programs know that it is in use.
    if qemu-img resize -q -f raw raw.img 8M 2> /dev/null; then
        die "its size can be changed: $server"
    fi
    end_process "$pid" || die "SIGTERM: $server"
    cmp -n 512 disk.raw raw.img
    cmp -i 1024 disk.raw raw.img
    test "$(stat -c %s raw.img)" = 4194304

    # --- Compressed, as virt-v2v writes; and killed after a flush.
    qemu-img create -q -f qcow2 -o cluster_size=32k small.qcow2 4M
    yes 'to be compressed' | head -c 4194304 > text.raw || true
    foreground "$server" -t --shared=0 --discard=unmap -k "$tmp/s" --image-opts \
        driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=small.qcow2
    timeout 60 nbdcopy --flush text.raw "$s"
    if test "$server" = "$standin"; then
        kill -9 "$pid"
        wait "$pid" || true
        forget "$pid"
    else
        end_process "$pid"
    fi
    same_disk small.qcow2 text.raw
    qemu-img check small.qcow2 > out 2>&1 || true # there may be leaks
    grep -q '100.00% compressed' out || die "not compressed: $server: $(cat out)"

    # --- Encrypted: the secret of a file has no newline.
    printf 'the secret' > secret
    quickly qemu-img create -q -f qcow2 --object secret,id=s,file=secret \
        -o encrypt.format=luks,encrypt.key-secret=s luks.qcow2 4M
    foreground "$server" -t -k "$tmp/s" --object secret,id=k,file=secret \
        --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=luks.qcow2
    timeout 60 nbdcopy --flush disk.raw "$s"
    timeout 60 nbdcopy "$s" copy.raw
    end_process "$pid" || die "SIGTERM: $server"
    cmp copy.raw disk.raw
    qemu-img convert --object secret,id=s,file=secret --image-opts -O raw \
        driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2 copy.raw
    cmp copy.raw disk.raw

    # The same without qcow2.
    quickly qemu-img create -q -f luks --object secret,id=s,file=secret \
        -o key-secret=s raw.luks 4M
    foreground "$server" -t -k "$tmp/s" --object secret,id=k,file=secret \
        --image-opts driver=luks,key-secret=k,file.filename=raw.luks
    timeout 60 nbdcopy --flush disk.raw "$s"
    end_process "$pid" || die "SIGTERM: $server"
    qemu-img convert --object secret,id=s,file=secret --image-opts -O raw \
        driver=luks,key-secret=s,file.filename=raw.luks copy.raw
    cmp copy.raw disk.raw

    # --- TLS with a shared key.
    rm -rf keys
    mkdir -m 0700 keys
    echo "alice:$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')" > keys/keys.psk
    foreground "$server" -t -k "$tmp/s" --tls-creds t -f qcow2 \
        --object "tls-creds-psk,id=t,endpoint=server,dir=$tmp/keys" disk.qcow2
    test "$(timeout 60 nbdinfo --size "nbds+unix://alice@/?socket=$tmp/s&tls-psk-file=$tmp/keys/keys.psk")" = 4194304
    if timeout 60 nbdinfo --size "$s" > /dev/null 2>&1; then
        die "a client without the key is let in: $server"
    fi
    end_process "$pid" || die "SIGTERM: $server"

    # --- A socket that is handed over.
    rm -f s
    "$PYTHON" -c 'import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1] + ".new")
s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])' "$tmp/s" "$server" -f qcow2 disk.qcow2 \
        > server.log 2>&1 &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" test -S s || die "$(cat server.log)"
    timeout 60 nbdcopy "$s" copy.raw
    cmp copy.raw disk.raw
    _gone "$pid" || die "it does not end with its last client: $server"
    wait "$pid" || die "$(cat server.log)"
    forget "$pid"
done
