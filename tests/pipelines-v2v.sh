# SPDX-License-Identifier: BSD-3-Clause
#
# virt-v2v's servers, as its "-i disk" and "-o local -of qcow2" call them: part of
# pipelines.sh, which has the rest of them and says how they are called.  The
# conversion itself, for which it boots Linux, is a few writes here.

has_v2v () { nbdcopy --version && qemu-io --version; }

# v2v_server SOCKET OPTION...: as virt-v2v starts one; it waits so long for the
# pid file.
v2v_server ()
{
    local socket="$1"
    shift
    "$server" -t --shared=0 --discard=unmap --pid-file "$tmp/$socket.pid" \
        --socket "$tmp/$socket" "$@" > "$socket.log" 2>&1 < /dev/null &
    pid=$!
    _pids+=("$pid")
    wait_until -t 30 -p "$pid" test -s "$socket.pid" ||
        die "$server: $(cat "$socket.log")"
}

# What is written to the input goes to the output, and not to the source.
v2v ()
{
    local in out
    rm -f in* out*
    v2v_server in -s --format qcow2 guest.qcow2
    in=$pid
    timeout 60 qemu-io -f raw -c 'read -P 3 5M 1M' -c 'write -P 7 6M 1M' \
        -c 'write -z 1M 1M' "nbd+unix:///?socket=$tmp/in" > qemu-io.log ||
        die "$server: $(cat qemu-io.log)"
    v2v_server out "$@"
    out=$pid
    timeout 300 nbdcopy --flush "nbd+unix:///?socket=$tmp/in" \
        "nbd+unix:///?socket=$tmp/out"
    kill "$in" "$out"
    for pid in $in $out; do
        _gone "$pid" || die "$server: SIGTERM"
        wait "$pid" || die "$server: it ends with an error"
        forget "$pid"
    done
    pid=
    qemu-img convert -f qcow2 -O raw disk.qcow2 after.raw
    sha256sum < after.raw
}

run_v2v ()
{
    rm -f base.qcow2 guest.qcow2 converted.raw
    qemu-img convert -c -f raw -O qcow2 data.raw base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 guest.qcow2
    qemu-io -f qcow2 -c 'write -P 3 5M 1M' guest.qcow2 > qemu-io.log
    # The same by QEMU alone.
    qemu-img convert -f qcow2 -O raw guest.qcow2 converted.raw
    qemu-io -f raw -c 'write -P 7 6M 1M' -c 'write -z 1M 1M' converted.raw \
        > qemu-io.log
    fingerprint base.qcow2 guest.qcow2 > before
    v2v --format qcow2 disk.qcow2
    same_disk disk.qcow2 converted.raw
    check_clean disk.qcow2
    qemu-img create -q -f qcow2 disk.qcow2 64M
    v2v --image-opts \
        driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=disk.qcow2
    same_disk disk.qcow2 converted.raw
    qemu-img check disk.qcow2 | grep -q '[1-9][0-9.]*% compressed' ||
        die "$server: it is not compressed"
    fingerprint base.qcow2 guest.qcow2 | cmp - before ||
        die "$server: the source has changed"
}
