#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# However nbdkit is ended, if not by force: all that was written is there,
# flushed by the client or not, no cluster is leaked, and no dirty bit left.

. ./functions.sh

requires_python_nbd
requires_qemu

image="$tmp/image.qcow2"
number="$(volume 50)"   # of a client's requests
client="$testsrc/diskclient.py"

n=0
make ()
{
    n=$(( n + 1 ))
    rm -f "$image"
    case $(( n % 3 )) in
    0) make_image "$image" "$tmp/expected" seed=$n snapshots=1 ;;
    1) make_image "$image" "$tmp/expected" seed=$n extl2=1 ;;
    2) qemu-img create -q -f qcow2 -o lazy_refcounts=on "$image" 4M
       rm -f "$tmp/expected"
       truncate -s 4M "$tmp/expected" ;;
    esac
}
verify ()
{
    test $(( $(od -An -tu1 -j79 -N1 "$image") & 1 )) -eq 0 ||
        die "the dirty bit is left: $1"
    check_clean "$image"
    same_disk "$image" "$tmp/expected"
}

for signal in TERM INT; do
    for round in 1 2 3; do
        make
        start_nbdkit "$PLUGIN" "$image"
        "$PYTHON" "$client" "$sock" "$tmp/expected" $signal-$round \
            requests="$number"
        kill -$signal "$pid"
        status=0
        wait "$pid" || status=$?
        forget "$pid"
        test $status -eq 0 || die "status $status after SIG$signal"
        verify "SIG$signal"

        # A client is there and has requests under way.
        make
        start_nbdkit "$PLUGIN" "$image"
        rm -f "$tmp/busy"
        "$PYTHON" "$client" "$sock" "$tmp/expected" \
            $signal-$round-busy requests="$number" busy="$tmp/busy" &
        busy=$!
        _pids+=("$busy")
        wait_until -p "$busy" test -e "$tmp/busy" ||
            die "the client has failed"
        kill -$signal "$pid"
        status=0
        wait "$pid" || status=$?
        forget "$pid"
        test $status -eq 0 || die "status $status after SIG$signal, busy"
        wait "$busy" || die "the client has failed"
        forget "$busy"
        verify "SIG$signal, busy"
    done
done

# --run: ends with the command.
for round in 1 2 3; do
    make
    "$NBDKIT" -U - "$PLUGIN" "$image" --run \
        "'$PYTHON' '$client' \"\$unixsocket\" '$tmp/expected' run$n \
         requests=$number"
    verify "--run"
done

# exitlast: ends with the last client.
if "$NBDKIT" --filter=exitlast "$PLUGIN" --dump-plugin > /dev/null 2>&1; then
    for round in 1 2 3; do
        make
        start_nbdkit --filter=exitlast "$PLUGIN" "$image"
        "$PYTHON" "$client" "$sock" "$tmp/expected" last$n \
            requests="$number"
        status=0
        wait "$pid" || status=$?
        forget "$pid"
        test $status -eq 0 || die "status $status with exitlast"
        verify "exitlast"
    done
fi

# In the background: threads have to be started behind the fork.
make
"$NBDKIT" -U "$tmp/daemon.sock" -P "$tmp/daemon.pid" "$PLUGIN" "$image" \
    > "$tmp/daemon.log" 2>&1 </dev/null
daemon="$(cat "$tmp/daemon.pid")"
_pids+=("$daemon")
"$PYTHON" "$client" "$tmp/daemon.sock" "$tmp/expected" daemon
kill "$daemon"
_gone "$daemon" || die "nbdkit does not end"
forget "$daemon"
verify "in the background"

# Over a pipe: one connection, which ends it, with and without a flush.
for flush in 0 1; do
    make
    "$PYTHON" - "$NBDKIT" "$PLUGIN" "$image" "$tmp/expected" $flush <<'PY'
import sys
import nbd
from qcow2make import patch
from streams import noise

h = nbd.NBD()
h.connect_command([sys.argv[1], "-s", "--exit-with-parent"] + sys.argv[2:4])
data = noise("pipe", 500000)
h.pwrite(data, 1 << 20)
h.zero(100000, 1 << 19)
if sys.argv[5] == "1":
    h.flush()
h.shutdown()
del h           # waits for it
patch(sys.argv[4], 1 << 20, data)
patch(sys.argv[4], 1 << 19, bytes(100000))
PY
    verify "-s"
done

# Clients that are killed with requests under way, beside one that stays.
make
start_nbdkit "$PLUGIN" "$image"
connect_client
for round in 1 2 3 4 5; do
    rm -f "$tmp/busy"
    "$PYTHON" "$client" "$sock" "$tmp/expected" killed$round requests=20 \
        busy="$tmp/busy" &
    busy=$!
    _pids+=("$busy")
    wait_until -p "$busy" test -e "$tmp/busy" || die "the client has failed"
    kill -9 "$busy"
    wait "$busy" 2>/dev/null || true
    forget "$busy"
done
disconnect_client
stop_nbdkit "$pid"
verify "killed clients"

# Started and ended without a client: as before, byte for byte.
make
before="$(fingerprint "$image")"
start_nbdkit "$PLUGIN" "$image"
stop_nbdkit "$pid"
test "$before" = "$(fingerprint "$image")" || die "changed by nobody"
