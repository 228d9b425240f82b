#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit is stopped while it makes an image: what was at the path is still
# there, unlocked and whole, or nothing; and the image can be made anew.

. ./functions.sh

requires_qemu

mkdir "$tmp/in"
cd "$tmp/in"
qemu-img create -q -f qcow2 "$tmp/old" 1M

# stopped SIGNAL MODE: while zeros are written, under a temporary name.
stopped ()
{
    local temporary
    "$NBDKIT" -f -U "$tmp/sock" "$PLUGIN" new.qcow2 create=$2 \
        size=8G preallocation=full >"$tmp/stopped.log" 2>&1 </dev/null &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" _being_made || die 'nothing is being made'
    kill -"$1" "$pid"
    ! wait "$pid" 2>/dev/null || die 'it has ended well'
    forget "$pid"
    rm -f "$temporary"
}

_being_made ()
{
    temporary="$(find . -name 'new.qcow2.????????' -size +2M)"
    test -n "$temporary"
}

# starting MODE: nbdkit is stopped before it has started, when the image has its
# name: by a filter that waits for somebody who reads its log.
mkfifo "$tmp/log"
starting ()
{
    "$NBDKIT" -f -U "$tmp/sock2" --filter=log "$PLUGIN" new.qcow2 create=$1 \
        size=3M logfile="$tmp/log" >"$tmp/stopped.log" 2>&1 </dev/null &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" _has_its_name || die 'it does not get its name'
    kill -KILL "$pid"
    ! wait "$pid" 2>/dev/null || die 'it has ended well'
    forget "$pid"
}

_has_its_name ()
{
    qemu-img info -U new.qcow2 2>/dev/null | grep -q 'virtual size: 3 MiB'
}

starting true
check_clean new.qcow2
test "$(ls -A)" = new.qcow2 || die "while it starts: files: $(ls -A)"
cp "$tmp/old" new.qcow2
starting overwrite
check_clean new.qcow2
cmp new.qcow2.???????? "$tmp/old" || die 'the old one is gone'
rm new.qcow2*

for signal in TERM HUP KILL; do
    stopped $signal true
    test -z "$(ls -A)" || die "$signal: there are files: $(ls -A)"
    "$NBDKIT" -U - "$PLUGIN" new.qcow2 create=true size=1M --run true
    check_clean new.qcow2

    cp "$tmp/old" new.qcow2
    stopped $signal overwrite
    cmp new.qcow2 "$tmp/old" || die "$signal: the old one was touched"
    test "$(ls -A)" = new.qcow2 || die "$signal: files: $(ls -A)"
    "$NBDKIT" -U - "$PLUGIN" new.qcow2 create=overwrite size=2M --run true
    check_clean new.qcow2
    rm new.qcow2
done
