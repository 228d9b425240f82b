#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# create=overwrite by users who may do less than root: who can't start another
# process, or rename the old file, loses nothing, and what can't be removed is
# told of.

. ./functions.sh

requires_qemu
test "$(id -u)" -eq 0 || skip "only root can be other users"
for uid in 65533 65532; do
    requires setpriv --reuid=$uid --regid=$uid --clear-groups true
done
requires prlimit --version

# A process that is to report leaks starts another one.
export ASAN_OPTIONS="${ASAN_OPTIONS-}:detect_leaks=0"

chmod 755 "$tmp"
mkdir "$tmp/in"
cd "$tmp/in"
cp "$PLUGIN" "$tmp/plugin.so"
chmod 755 "$tmp/plugin.so"
as=(setpriv --reuid=65533 --regid=65533 --clear-groups)
"${as[@]}" "$NBDKIT" --dump-plugin "$tmp/plugin.so" >/dev/null ||
    skip "other users can't run nbdkit here"

# old OWNER MODE: a new old.qcow2.
old ()
{
    rm -f old.qcow2*
    qemu-img create -q -f qcow2 old.qcow2 1M
    qemu-io -f qcow2 -c 'write -P 7 0 64k' old.qcow2 >/dev/null
    chown "$1" old.qcow2
    chmod "$2" old.qcow2
    fingerprint old.qcow2 > "$tmp/before"
}

# is_old: nothing has happened.
is_old ()
{
    sha256sum --quiet -c <(head -1 "$tmp/before") || die "$1: it is lost"
    test "$(ls -A)" = old.qcow2 || die "$1: files: $(ls -A)"
}

# --- There can't be another process: as a daemon, and with a command.
mkdir "$tmp/run"
chown 65533 . "$tmp/run"
old 65533 600
no_fork ()
{
    local status=0
    timeout -k 10 60 "${as[@]}" prlimit --nproc=0:0 "$NBDKIT" "$@" \
        "$tmp/plugin.so" old.qcow2 create=overwrite size=3M \
        >"$tmp/no-fork.out" 2>&1 </dev/null || status=$?
    test $status -eq 1 || { cat "$tmp/no-fork.out"; die "status $status"; }
    grep -q 'fork: Resource temporarily unavailable' "$tmp/no-fork.out"
    is_old "nbdkit $*"
}
no_fork -U "$tmp/run/sock" -P "$tmp/run/pid"
no_fork -U - --run true

# Where there can be, it is given up, and what tells of it is closed.
nr_pipes ()
{
    rm -f "$tmp/run"/*
    "${as[@]}" "$NBDKIT" -U "$tmp/run/sock" -P "$tmp/run/pid" \
        "$tmp/plugin.so" old.qcow2 "$@"
    wait_until test -s "$tmp/run/pid"
    daemon="$(cat "$tmp/run/pid")"
    _pids+=("$daemon")
    pipes="$(ls -l "/proc/$daemon/fd" | grep -c pipe:)"
    kill "$daemon"
    _gone "$daemon" || die 'the daemon goes on'
    forget "$daemon"
}
nr_pipes create=overwrite size=3M
check_clean old.qcow2
test "$(ls -A)" = old.qcow2 || die "files: $(ls -A)"
before="$pipes"
nr_pipes
test "$before" = "$pipes" || die "pipes: $before; without create=: $pipes"

# --- Another user's file in a sticky directory: it may be written, but neither
# renamed nor removed, and nor may a link to it.
chown 0 .
chmod 1777 .
old 65532 666
! "${as[@]}" "$NBDKIT" -U - "$tmp/plugin.so" old.qcow2 create=overwrite \
    size=3M --run true 2>"$tmp/sticky.out" || die 'it was replaced'
grep -q 'naming the new image: Operation not permitted' "$tmp/sticky.out"
is_old sticky

# --- With -u: the other user can't remove the old file, or change it back.
chmod 755 .
for ready in 'true' 'false'; do
    for dir in 755 700; do
        chmod $dir .
        old 65533 600
        status=0
        if $ready; then
            mode=(-P "$tmp/run/pid")
        else
            mode=(-f -P "$tmp/nowhere/at/all")
        fi
        rm -f "$tmp/run"/*
        timeout -k 10 60 "$NBDKIT" -u 65533 -g 65533 -U "$tmp/run/sock" \
            "${mode[@]}" "$tmp/plugin.so" old.qcow2 create=overwrite size=3M \
            >"$tmp/user.out" 2>&1 </dev/null || status=$?
        other="$(echo old.qcow2.????????)"
        test "$(sha256sum < "$other" | cut -d' ' -f1)" = \
            "$(head -1 "$tmp/before" | cut -d' ' -f1)" || die 'it is lost'
        check_clean old.qcow2
        if $ready; then
            test $status -eq 0 || { cat "$tmp/user.out"; die "status $status"; }
            grep -q "$other, in the same directory, can't be removed" \
                "$tmp/user.out" || die 'this is not told'
            wait_until test -s "$tmp/run/pid"
            daemon="$(cat "$tmp/run/pid")"
            _pids+=("$daemon")
            kill "$daemon"
            _gone "$daemon" || die 'the daemon goes on'
            forget "$daemon"
        else
            test $status -eq 1 || { cat "$tmp/user.out"; die "status $status"; }
            grep -q "what was there before is $other now" "$tmp/user.out" ||
                die 'this is not told'
        fi
    done
done
# With a command it is removed before nbdkit becomes the other user.
chmod 755 .
old 65533 600
"$NBDKIT" -u 65533 -g 65533 -U - "$tmp/plugin.so" old.qcow2 create=overwrite \
    size=3M --run true 2>"$tmp/user.out"
test "$(ls -A)" = old.qcow2 || die "files: $(ls -A)"
test ! -s "$tmp/user.out" || die "messages: $(cat "$tmp/user.out")"
