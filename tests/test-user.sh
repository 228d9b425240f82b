#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit -u: it is the rights of the user that nbdkit changes to which decide
# whether an image can be written.

. ./functions.sh

requires_qemu
requires nbdcopy --version
test "$(id -u)" -eq 0 || skip "only root can change the user"

user=65533
chmod 0755 "$tmp"
cd "$tmp"
install -m 755 "$PLUGIN" plugin.so
mkdir images run
chown $user:$user run images
head -c 3000000 /dev/urandom > disk.raw
truncate -s 4M disk.raw

# image NAME OWNER MODE: a new one.
image ()
{
    qemu-img create -q -f qcow2 "images/$1" 4M
    chown "$2:$2" "images/$1"
    chmod "$3" "images/$1"
}
# serve NAME OPTION...: in the background, as usual with -u.
serve ()
{
    local name=$1
    shift
    rm -f run/*
    "$NBDKIT" -u $user -g $user -U "$tmp/run/s" -P "$tmp/run/pid" "$@" \
        "$tmp/plugin.so" "images/$name" > server.log 2>&1 || return 1
    has_gone_to_background run/pid
    pid="$(cat run/pid)"
}
ends ()
{
    kill "$pid"
    _gone "$pid" || die "it does not end"
    forget "$pid"
}
uri="nbd+unix:///?socket=$tmp/run/s"

# --- Its own, in a folder that nobody else can enter.
image own.qcow2 $user 600
chmod 700 images
serve own.qcow2
timeout 60 nbdcopy --flush disk.raw "$uri"
test "$(stat -c %u "/proc/$pid")" = $user || die "it is another user's process"
ends
same_disk images/own.qcow2 disk.raw
check_clean images/own.qcow2
test "$(stat -c '%u %g %a' images/own.qcow2)" = "$user $user 600"

# --- root's, who has started it: clients can read that, and no more.
for mode in 644 600; do
    image root$mode.qcow2 0 $mode
    before="$(fingerprint images/root$mode.qcow2)"
    for options in '' -r; do
        # shellcheck disable=SC2086
        serve root$mode.qcow2 $options
        timeout 60 nbdinfo "$uri" > info
        grep -q 'export-size: 4194304' info
        grep -q 'is_read_only: true' info ||
            die "$mode $options: it can be written: $(cat info)"
        ends
    done
    test "$(fingerprint images/root$mode.qcow2)" = "$before" || die "it has changed"
done
