#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The driver itself: a test that hangs, ignores SIGTERM, or leaves processes
# behind is ended within its limit with all that it started, and has failed.

set -eu

unset TEST_TIMES
limited=$PWD/limited
driver=$(cd "$(dirname "$TEST_DRIVER")" && pwd)/test-driver
tmp=$(mktemp -d "${TMPDIR:-/tmp}/limited.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"

die ()
{
    echo "FAIL: $*" >&2
    cat said >&2
    exit 1
}

# ends STATUS COMMAND...: run with limits of seconds, it ends so.  What it says
# is in the file said, the processes that it wrote to pids are gone, and it did
# not take as long as the processes would.
ends ()
{
    local want=$1 status=0 pid begin=$SECONDS
    shift
    : > pids
    TEST_LIMIT=${limit-2} TEST_GRACE=${grace-1} "$limited" "$@" > said 2>&1 ||
        status=$?
    [ $status -eq "$want" ] || die "status $status instead of $want: $*"
    [ $((SECONDS - begin)) -lt 500 ] || die "it was not ended: $*"
    while read -r pid; do
        ! kill -0 "$pid" 2> /dev/null || die "process $pid goes on: $*"
    done < pids
}
says () { grep -q "$1" said || die "does not say '$1'"; }
silent () { [ ! -s said ] || die 'it says something'; }

# Its own status, and its output.
limit=300 grace=300
ends 0 true
silent
ends 1 false
ends 77 sh -c 'exit 77'
ends 99 sh -c 'exit 99'
silent
ends 143 sh -c 'kill -TERM $$'
says 'ended by signal 15'
ends 0 echo word
[ "$(cat said)" = word ]
ends 126 ./there-is-none
says 'there-is-none: No such file'
echo word > in
ends 0 cat < in
[ "$(cat said)" = word ]
# How long it took, if that is asked for.
TEST_TIMES=1 ends 1 false
says '^limited: took [0-9]*\.[0-9] s, [0-9]*\.[0-9] s of the processors$'
# What it leaves may be about to end.
ends 0 bash -c 'sleep 0.2 & echo $! > pids'
silent
unset limit grace

# It hangs.
ends 124 sh -c 'echo $$ > pids; exec sleep 1000'
says 'timed out after 2 s'
says 'was running: '

# It ignores SIGTERM, and so do its children.
limit=5
ends 124 bash -c 'trap "" TERM; echo $$ > pids
    (echo $BASHPID >> pids; exec sleep 1000) & wait'
says 'timed out after 5 s'
says 'SIGTERM was not enough'
unset limit

# It is stopped.
ends 124 bash -c 'echo $$ > pids; kill -STOP $$'
says 'timed out after 2 s'

# It ends well, but leaves such processes behind.
cat > deaf <<'DEAF'
trap '' TERM
echo $$ >> pids
exec sleep 1000
DEAF
limit=300
ends 124 bash -c 'sleep 1000 & echo $! > pids'
says 'left behind by the test: '
ends 124 bash -c '(setsid sh deaf &)
    until [ -s pids ]; do sleep 0.01; done'
says 'left behind by the test: '
says 'SIGTERM was not enough'
unset limit

# terminated LINES COMMAND...: the driver gets SIGTERM once there are so many
# lines in pids, and ends all that there is.
terminated ()
{
    local lines=$1 status=0 pid
    shift
    : > pids
    TEST_LIMIT=1000 TEST_GRACE=${grace-1} "$limited" "$@" > said 2>&1 &
    until [ "$(wc -l < pids)" -eq "$lines" ]; do
        kill -0 $! || die "it does not start: $*"
        sleep 0.01
    done
    kill -TERM $!
    wait $! || status=$?
    [ $status -eq 143 ] || die "status $status after SIGTERM: $*"
    while read -r pid; do
        ! kill -0 "$pid" 2> /dev/null || die "process $pid goes on: $*"
    done < pids
}

# A script can clean up, when what it waits for has been ended.
grace=300
terminated 1 bash -c 'trap "echo cleaned; exit 1" TERM; echo $$ > pids
    sleep 1000'
says '^cleaned'
unset grace

# A child has a group, one a session, and one is in the background; they
# ignore SIGTERM too.
terminated 3 bash -c 'timeout 1000 sh deaf & setsid sh deaf &
    (setsid sh deaf &) & wait'
says 'SIGTERM was not enough'

# Limits that are none.
for limit in 0 -1 x; do
    ends 126 true
    says 'seconds is expected'
done

# What automake makes of it.
cat > hangs <<'HANGS'
trap '' TERM
sleep 1000
HANGS
TEST_LIMIT=5 TEST_GRACE=1 sh "$driver" --test-name hangs --log-file hangs.log \
    --trs-file hangs.trs --color-tests no --enable-hard-errors yes \
    --expect-failure no -- "$limited" bash hangs > said
says '^FAIL: hangs'
grep -qx ':test-result: FAIL' hangs.trs
grep -q 'timed out after 5 s' hangs.log
