#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# create=overwrite by users who may do less than root: who can't start another
# process loses nothing.

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
