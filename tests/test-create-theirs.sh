#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit makes the image, and then fails to start.  What another program has
# put in the image's place meanwhile is not removed.

. ./functions.sh

requires mkfifo "$tmp/fifo"
mkdir "$tmp/in"
cd "$tmp/in"

# fails_late COMMAND...: which is done while nbdkit waits for somebody to read
# its log, with the image in place; after that its socket can't be made.
fails_late ()
{
    local n status=0
    timeout 20 "$NBDKIT" -f -U /nowhere/at/all --filter=log "$PLUGIN" \
        new.qcow2 create=overwrite size=1M logfile="$tmp/fifo" \
        >"$tmp/late.log" 2>&1 </dev/null &
    pid=$!
    _pids+=("$pid")
    for (( n = 0; n < 500; n++ )); do
        test -s new.qcow2 && break
        sleep 0.02
    done
    test -s new.qcow2 || die 'no image was made'
    "$@"
    cat "$tmp/fifo" >/dev/null
    wait "$pid" || status=$?
    forget "$pid"
    test $status = 1 || die "status $status"
}

fails_late true
test -z "$(ls -A)" || die "there are files: $(ls -A)"

# It was moved away, and there is another file.
theirs () { mv new.qcow2 moved; echo theirs > new.qcow2; }
fails_late theirs
test "$(cat new.qcow2)" = theirs || die 'another file was removed'
test -s moved
rm new.qcow2 moved

# Another file took its name.
replaced () { echo theirs > other; mv other new.qcow2; }
fails_late replaced
test "$(cat new.qcow2)" = theirs || die 'a file that replaced it was removed'
rm new.qcow2

# It was removed, or only moved.
fails_late rm new.qcow2
test -z "$(ls -A)" || die "there are files: $(ls -A)"
fails_late mv new.qcow2 moved
test "$(ls -A)" = moved
