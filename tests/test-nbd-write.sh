#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Writing to an image on an NBD server: a device of fixed size that becomes full,
# a server that can't flush, one that falls silent, and another writer.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdinfo --version
requires_libnbd

far ()
{
    start_nbdkit "$@"
    far="$uri" far_pid="$pid"
}

cat > "$tmp/client.py" <<'PY'
"""client.py PHASE SOCKET: see the names of the phases."""
import errno
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[2])
MiB = 1 << 20


def data(k, turn=0):
    return bytes((k + turn, 200)) * (MiB // 2)


def fails(what, err):
    try:
        what()
    except nbd.Error as e:
        assert e.errnum == err, (e, err)
    else:
        sys.exit("that goes well")


if sys.argv[1] == "full":
    k = 0
    try:
        while True:
            h.pwrite(data(k), k * MiB)
            k += 1
            assert k < 12, "there is room without end"
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
    assert k >= 5, k
    h.flush()
    for i in range(k):
        assert h.pread(MiB, i * MiB) == data(i)
    # All of it once more: what is trimmed can be had again, at once.
    for turn in range(1, 4):
        h.trim(k * MiB, 0)
        for i in range(k):
            h.pwrite(data(i, turn), i * MiB)
    fails(lambda: [h.pwrite(data(0), i * MiB) for i in range(20, 40)],
          errno.ENOSPC)
    h.flush()
    for i in range(k):
        assert h.pread(MiB, i * MiB) == data(i, 3)
    with open(sys.argv[3], "r+b") as f:
        for i in range(40):
            f.write(h.pread(MiB, i * MiB))
elif sys.argv[1] == "write":
    h.pwrite(b"x" * 4096, 8192)
    h.flush()
elif sys.argv[1] == "dead":
    fails(lambda: h.pwrite(b"y" * 70000, MiB), errno.EIO)
    fails(lambda: h.pwrite(b"y" * 70000, MiB), errno.EIO)
    sys.exit(0)
h.shutdown()
PY
client () { "$PYTHON" "$tmp/client.py" "$1" "$sock" "${@:2}"; }

cd "$tmp"
image ()
{
    rm -f image.qcow2
    qemu-img create -q -f qcow2 image.qcow2 40M
    truncate -s 8M image.qcow2
}

flushed_is_there ()
{
    qemu-io -f qcow2 -r -c 'read -P 120 8192 4096' image.qcow2 > out
    grep -q '^read 4096/4096' out
    if grep -q fail out; then die "what was flushed is not there"; fi
}

# --- Full.
for filters in "" "--filter=noextents" "--filter=nozero" \
               "--filter=noextents --filter=nozero"; do
    image
    # shellcheck disable=SC2086
    far $filters file image.qcow2
    start_nbdkit "$PLUGIN" "uri=$far"
    rm -f model
    truncate -s 40M model
    client full model
    stop_nbdkit "$pid"
    stop_nbdkit "$far_pid"
    check_clean image.qcow2
    same_disk image.qcow2 model
    test "$(stat -c %s image.qcow2)" -eq $(( 8 << 20 ))
done

# --- Silent, and lost.
for way in STOP KILL; do
    image
    far file image.qcow2
    start_nbdkit "$PLUGIN" "uri=$far" timeout=1
    client write
    kill -$way "$far_pid"
    test $way = STOP || forget "$far_pid"
    client dead
    case $way in
        STOP) kill -CONT "$far_pid" ;;
        KILL) rm -f "${far#*socket=}"
              nbdkit -f -U "${far#*socket=}" -P again.pid file image.qcow2 &
              far_pid=$!
              _pids+=("$!")
              wait_until -p $! test -s again.pid ;;
    esac
    client dead
    end_process "$pid" || true
    stop_nbdkit "$far_pid"
    qemu-img check -q -f qcow2 image.qcow2 || test $? -eq 3
    flushed_is_there
done

# --- One that can't flush.
image
cat > noflush.sh <<'SH'
case $1 in
    get_size) stat -L -c %s image.qcow2 ;;
    pread) dd if=image.qcow2 skip=$4 count=$3 iflag=count_bytes,skip_bytes \
              status=none ;;
    pwrite) dd of=image.qcow2 seek=$4 conv=notrunc oflag=seek_bytes \
               status=none ;;
    can_write) exit 0 ;;
    *) exit 2 ;;
esac
SH
sed -i "s,image.qcow2,$tmp/image.qcow2,g" noflush.sh
chmod +x noflush.sh
far sh noflush.sh
expect_no_connection "can't flush.*unsafe-no-flush=true" "$PLUGIN" "uri=$far"
"$NBDKIT" -r -U - "$PLUGIN" "uri=$far" --run 'nbdinfo "$uri"' > info
start_nbdkit "$PLUGIN" "uri=$far"
grep -q "warning: .*can't flush" "$log"
stop_nbdkit "$pid"
start_nbdkit "$PLUGIN" "uri=$far" unsafe-no-flush=true
client write
stop_nbdkit "$pid"
stop_nbdkit "$far_pid"
check_clean image.qcow2
flushed_is_there

# --- Somebody else writes it since it was opened, and its header says so.
rm image.qcow2
"$NBDKIT" -U - "$PLUGIN" image.qcow2 create=true size=40M --run true
truncate -s 8M image.qcow2
far file image.qcow2
start_nbdkit "$PLUGIN" "uri=$far"
sock1="$sock" log1="$log"
start_nbdkit "$PLUGIN" "uri=$far"
sock2="$sock"
connect_client
"$PYTHON" "$tmp/client.py" write "$sock2"
sock="$sock1"
if client write 2> /dev/null; then die "two writers of one image"; fi
grep -q 'somebody else writes it' "$log1"
