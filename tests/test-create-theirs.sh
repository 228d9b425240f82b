#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit makes the image, and then fails to start.  What another program has
# put in the image's place meanwhile is not removed.

. ./functions.sh

requires mkfifo "$tmp/fifo"
mkdir "$tmp/in"
cd "$tmp/in"

# fails_late COMMAND...: which is done when nbdkit has all that it needs to
# know of the new image; after that its socket can't be made.
#
# The log filter writes its first line after the plugin has made the image and
# looked at it, and that into a full pipe: there nbdkit waits.  That the image
# is there would be too early for the command, since nbdkit would not find what
# it has just made, and never come to write to the pipe.
fails_late ()
{
    local status=0
    exec 3<>"$tmp/fifo"
    dd if=/dev/zero of="$tmp/fifo" bs=4096 oflag=nonblock 2>/dev/null &&
        die 'the pipe takes everything'
    "$NBDKIT" -f -U /nowhere/at/all --filter=log "$PLUGIN" \
        new.qcow2 create=overwrite size=1M logfile="$tmp/fifo" \
        >"$tmp/late.log" 2>&1 </dev/null 3<&- &
    pid=$!
    _pids+=("$pid")
    wait_until -p "$pid" _opened "$pid" "$tmp/fifo" ||
        die 'it does not come to write its log'
    test -s new.qcow2 || die 'no image was made'
    "$@"
    # Until nbdkit closes it.
    exec 4<"$tmp/fifo" 3<&-
    timeout -k 10 60 cat <&4 >/dev/null || die 'it does not end'
    exec 4<&-
    wait "$pid" || status=$?
    forget "$pid"
    test $status = 1 || die "status $status"
    grep -q '/nowhere/at/all: No such' "$tmp/late.log" ||
        die 'not for want of a socket'
}

# _opened PROCESS FILE: it has the file open.  So does this shell's child, until
# it closes the file and becomes nbdkit.
_opened ()
{
    ! test "/proc/$1/exe" -ef "/proc/$$/exe" &&
        test -n "$(find -L "/proc/$1/fd" -samefile "$2" 2>/dev/null)"
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
