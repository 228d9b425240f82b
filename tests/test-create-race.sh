#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# In a directory that somebody else may write, he can put links in place of
# the new image at any moment.  Nothing happens to the file that they lead to,
# and it is not served.  (unit/test-create-file decides on the moments; here
# they are left to chance.)

. ./functions.sh

requires_python_nbd
requires_qemu

mkdir "$tmp/theirs"
cd "$tmp/theirs"
qemu-img create -q -f qcow2 "$tmp/victim" 1M
qemu-io -f qcow2 -c 'write -P 7 0 64k' "$tmp/victim" >/dev/null
sum="$(sha256sum "$tmp/victim")"
unharmed ()
{
    test "$sum" = "$(sha256sum "$tmp/victim")" || die "$1: a file of others"
}

# attack WHEN: start the attacker, until attack_ends.
attack ()
{
    rm -f ../attack.out
    "$PYTHON" "$testsrc/create-race.py" "$1" new.qcow2 "$tmp/victim" \
        > ../attack.out &
    attacker=$!
    _pids+=("$attacker")
    wait_until -p "$attacker" test -s ../attack.out || die 'no attacker'
}
attack_ends ()
{
    kill "$attacker"
    wait "$attacker" || true
    forget "$attacker"
    rm -f link
}

for when in temporary named; do
    attack $when
    for (( i = 0; i < 20; i++ )); do
        status=0
        "$NBDKIT" -U - "$PLUGIN" new.qcow2 create=true size=2M \
            --run "'$PYTHON' -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert h.get_size() == 2 << 20
h.pwrite(b\"x\" * 65536, 0)
h.shutdown()' \"\$unixsocket\"" >../run.log 2>&1 || status=$?
        unharmed "$when, round $i"
        test $status -eq 0 ||
            grep -q -e 'was replaced by another file' -e 'no export' \
                 -e 'naming the new image' ../run.log ||
            die "$when: other errors: $(cat ../run.log)"
        rm -f new.qcow2 new.qcow2.*
    done
    attack_ends
done

# --- The same for one that is there, until it is opened for writing.
qemu-img create -q -f qcow2 old.qcow2 2M
start_nbdkit "$PLUGIN" old.qcow2
ln -s "$tmp/victim" link
mv link old.qcow2
nbdinfo "$uri" >/dev/null 2>&1 && die 'another file is served'
grep -q 'old.qcow2: it was replaced by another file since it was opened' \
    "$log"
stop_nbdkit "$pid"
unharmed 'opened for writing'
