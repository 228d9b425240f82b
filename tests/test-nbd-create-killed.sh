#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A server is formatted, and nbdkit or the server is killed at each request that
# changes it: what is there is what was there before, all of the new image, or
# none; and it can be formatted again.

. ./functions.sh

requires_qemu
requires nbdinfo --version
requires_libnbd

cd "$tmp"
qemu-img create -q -f qcow2 old.img 3M
qemu-io -f qcow2 -c 'write -P 7 1M 64k' old.img > /dev/null
truncate -s 4M old.img

# far FILTERS [PARAMETER...]: the server of the device.
far ()
{
    # shellcheck disable=SC2086
    start_nbdkit $1 file device.img "${@:2}"
    far="$uri" far_pid="$pid"
}

changes () { grep -cE ' (Write|Zero|Trim|Flush) id=' far.log || true; }
_has_changed () { test "$(changes)" -ge "$1"; }

format () { "$NBDKIT" -U - "$PLUGIN" "uri=$far" create=overwrite size=2M --run true; }

# How many requests there are.
cp old.img device.img
far --filter=log logfile=far.log
format
stop_nbdkit "$far_pid"
requests="$(changes)"
test "$requests" -ge 6 || die "only $requests requests change the device"
check_clean device.img

# killed WHOM N: when the N-th of them has begun, but is not answered.
killed ()
{
    cp old.img device.img
    rm -f far.log
    far "--filter=log --filter=delay" logfile=far.log wdelay=100ms
    "$NBDKIT" -f -U formatted.sock "$PLUGIN" "uri=$far" create=overwrite \
        size=2M > format.log 2>&1 < /dev/null &
    nbdkit_pid=$!
    _pids+=("$nbdkit_pid")
    wait_until -p "$far_pid" _has_changed "$2" || die "no request $2"
    if test "$1" = server; then
        kill -KILL "$far_pid"
        _gone "$far_pid"
        forget "$far_pid"
    fi
    kill -KILL "$nbdkit_pid" 2> /dev/null || true
    wait "$nbdkit_pid" 2> /dev/null || true
    forget "$nbdkit_pid"
    test "$1" = server || stop_nbdkit "$far_pid"
    rm -f formatted.sock
}

looked_at=0 none=0
for whom in nbdkit server; do
    for ((n = 1; n <= requests; ++n)); do
        killed $whom $n
        if cmp -s device.img old.img; then
            :
        elif test "$(head -c 3 device.img | tr -d '\0')" = QFI; then
            check_clean device.img
            qemu-img info device.img | grep -q 'virtual size: 2 MiB' ||
                die "$whom killed at request $n: neither the old nor the new image"
        else
            none=$(( none + 1 ))
        fi
        looked_at=$(( looked_at + 1 ))
        far ''
        format
        stop_nbdkit "$far_pid"
        check_clean device.img
    done
done
echo "$looked_at states, in $none of which there is no image"
test "$none" -gt 0

# --- It is formatted, and the server ends before the first client comes: the log
# tells why that one is not let in, and not of damage.
truncate -s 0 device.img
truncate -s 4M device.img
far ''
start_nbdkit "$PLUGIN" "uri=$far" create=true size=2M
kill -KILL "$far_pid"
_gone "$far_pid"
forget "$far_pid"
if nbdinfo "$uri" > info 2>&1; then die "what is lost is served"; fi
grep -q 'connection to its server is lost, until it is opened again' "$log"
if grep -q 'repair' "$log"; then die "it is to be repaired"; fi
end_process "$pid" || true
check_clean device.img
