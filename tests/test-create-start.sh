#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The new image stays once nbdkit has started, in each of the ways in which it
# does, and no file is left where it fails to.

. ./functions.sh

requires_python_nbd
requires_qemu

mkdir "$tmp/in"
cd "$tmp/in"

# fails WHAT NBDKIT-ARG...: it does not start, and there is no file.
fails ()
{
    local what="$1" status=0
    shift
    timeout -k 10 60 "$NBDKIT" "$@" >"$tmp/fails.out" 2>&1 </dev/null || status=$?
    if test $status = 0 || test $status -ge 124; then
        cat "$tmp/fails.out"
        die "$what: status $status"
    fi
    test -z "$(ls -A)" || die "$what: there are files: $(ls -A)"
}

new="new.qcow2 create=true size=1M"
fails 'bad socket' -f -U /nowhere/at/all "$PLUGIN" $new
fails 'bad socket, as a daemon' -U /nowhere/at/all "$PLUGIN" $new
fails 'bad socket, overwrite' -U /nowhere/at/all "$PLUGIN" \
    new.qcow2 create=overwrite size=1M
fails 'bad socket, absolute' -U /nowhere/at/all "$PLUGIN" \
    "$PWD/new.qcow2" create=true size=1M
fails 'address' -f -i 203.0.113.77 -p 1 "$PLUGIN" $new
fails 'user' -f -U "$tmp/user.sock" -u no-such-user "$PLUGIN" $new
fails 'filter without what it wants' -f -U "$tmp/f.sock" \
    --filter=partition "$PLUGIN" $new
# A filter that fails after the plugin has made the image.
fails 'filter that fails late' -f -U "$tmp/l.sock" --filter=log "$PLUGIN" \
    $new logfile=/nowhere/at/all
fails 'certificates' -f -U "$tmp/t.sock" --tls=require \
    --tls-certificates=/nowhere "$PLUGIN" $new

# --- In the foreground, with a command, as a daemon, over standard input.
made ()
{
    test "$(ls -A)" = new.qcow2 || die "$1: files: $(ls -A)"
    check_clean new.qcow2
    rm new.qcow2
}
start_nbdkit "$PLUGIN" $new
test -e new.qcow2
stop_nbdkit "$pid"
made foreground
"$NBDKIT" -U - "$PLUGIN" $new --run true
made command
! "$NBDKIT" -U - "$PLUGIN" $new --run false
made 'command that fails'
"$NBDKIT" -s "$PLUGIN" $new </dev/null >/dev/null 2>&1 || true
made 'standard input'
"$NBDKIT" -P "$tmp/daemon.pid" -U "$tmp/daemon.sock" "$PLUGIN" $new
wait_until test -s "$tmp/daemon.pid"
daemon="$(cat "$tmp/daemon.pid")"
_pids+=("$daemon")
test -e new.qcow2
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"7" * 65536, 65536)
h.flush()
h.shutdown()' "$tmp/daemon.sock"
kill "$daemon"
_gone "$daemon" || die 'the daemon goes on'
qemu-io -f qcow2 -r -c 'read -P 55 64k 64k' new.qcow2 | grep -q 'read 65536'
made daemon
# Killed at once.
start_nbdkit "$PLUGIN" $new
kill -9 "$pid"
{ wait "$pid"; } 2>/dev/null || true
forget "$pid"
made killed
for filter in cow cache log; do
    more=
    test $filter != log || more=logfile=/dev/null
    "$NBDKIT" -U - --filter=$filter "$PLUGIN" $new $more \
        --run 'nbdinfo --size "$uri"' >/dev/null
    made "filter $filter"
done

# --- Who may use it: nbdkit itself sets the umask to 022, so that who wants
# something else makes the file before.
for mask in 000 077; do
    ( umask $mask; "$NBDKIT" -U - "$PLUGIN" $new --run true )
    test "$(stat -c %a new.qcow2)" = 644 || die "umask $mask"
    made "umask $mask"
done
install -m 600 /dev/null new.qcow2
"$NBDKIT" -U - "$PLUGIN" new.qcow2 create=overwrite size=1M --run true
test "$(stat -c %a new.qcow2)" = 600
made 'made before'

# --- Names: with spaces, as long as they may be, of bytes that are no text.
for name in 'a b' "$(printf '%0255d' 0)" "$(printf '%0250d' 0)" \
            $'\xff\xfe' '%s%n' ./-x; do
    "$NBDKIT" -U - "$PLUGIN" file="$name" create=true size=1M --run true
    test "$(ls -A)" = "${name#./}"
    check_clean "./${name#./}"
    rm -- "$name"
done
fails 'too long a name' -U - "$PLUGIN" "$(printf '%0256d' 0)" create=true \
    size=1M --run true

# --- A folder that can't be written.
if test "$(id -u)" -ne 0; then
    chmod 555 .
    fails 'read-only folder' -U - "$PLUGIN" $new --run true
    grep -q 'making a file next to it: Permission denied' "$tmp/fails.out"
    chmod 755 .
elif mkdir "$tmp/ro" && mount -t tmpfs -o size=1m,ro none "$tmp/ro" 2>/dev/null
then
    at_exit umount "$tmp/ro"
    fails 'read-only file system' -U - "$PLUGIN" "$tmp/ro/new.qcow2" \
        create=true size=1M --run true
    grep -q 'making a file next to it: Read-only file system' "$tmp/fails.out"
    test -z "$(ls -A "$tmp/ro")"
fi
if test "$(id -u)" -eq 0 &&
   setpriv --reuid=12345 --clear-groups true 2>/dev/null; then
    chmod 755 "$tmp" .
    plugin="$tmp/plugin.so"
    cp "$PLUGIN" "$plugin"
    chmod 755 "$plugin"
    status=0
    setpriv --reuid=12345 --clear-groups "$NBDKIT" -U - "$plugin" $new \
        --run true >"$tmp/fails.out" 2>&1 || status=$?
    test $status -eq 1
    grep -q 'making a file next to it: Permission denied' "$tmp/fails.out"
    test -z "$(ls -A)"
fi
