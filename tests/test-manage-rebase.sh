#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool rebase keeps the disk as it is, as qemu-img rebase does, and
# refuses what it must not touch without changing it.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/manage-rebase.py" "$tool"

mkdir "$tmp/d"
cd "$tmp/d"

# refuses REGEX ARG...: fails so, and the image i.qcow2 stays as it is.
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" rebase "${@:2}" i.qcow2 > out 2> err; then
        die "not refused: ${*:2}"
    fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    cmp i.qcow2 before.qcow2 || die "changed: ${*:2}"
}

truncate -s 4M a.raw b.raw
qemu-io -f raw -c 'write -P 1 0 4M' a.raw > out
qemu-io -f raw -c 'write -P 2 0 4M' b.raw > out
qemu-img create -q -f qcow2 -b a.raw -F raw i.qcow2

refuses '-b must say which' -F raw
refuses '-F must say of what format' -b b.raw
refuses 'refused by --follow=none' -b b.raw -F raw
refuses 'No such file' --follow=any -b none.raw -F raw
refuses 'own backing file' --follow=any -b i.qcow2 -F qcow2
qemu-img create -q -f qcow2 -b i.qcow2 -F qcow2 loop.qcow2
refuses 'own backing file' --follow=any -b loop.qcow2 -F qcow2
refuses 'vmdk.*not supported' --follow=any -b b.raw -F vmdk
refuses '\.\./b\.raw' --follow=beneath -b ../b.raw -F raw
refuses 'at most 1023 bytes' -u -b "$(printf '%01024d' 0)" -F raw
refuses 'at most 15 bytes' -u -b x -F a-name-too-long-
refuses 'does not take --force-share' -U -b b.raw -F raw
refuses 'takes none of -u, -b and -F|does not take' --shrink -b b.raw -F raw

# With -u nothing is looked at.
"$tool" rebase -q -u -b /none/at-all -F vmdk i.qcow2
qemu-img info -U --output=json i.qcow2 > out
grep -q '"/none/at-all"' out || die "not recorded"
"$tool" rebase -q -u -b a.raw -F raw i.qcow2
qemu-io -f qcow2 -r -c 'read -P 1 0 4M' i.qcow2 > out
if grep -q failed out; then die "wrong data: $(cat out)"; fi

# A snapshot would change.
qemu-img snapshot -c one i.qcow2
refuses 'internal snapshots, and one of them would change' --follow=any \
    -b b.raw -F raw
cp a.raw same.raw
"$tool" rebase -q --follow=any -b same.raw -F raw i.qcow2
check_clean i.qcow2
qemu-img snapshot -d one i.qcow2

# Marked as dirty; another format; in use.
printf '\1' | dd of=i.qcow2 bs=1 seek=79 conv=notrunc status=none
refuses 'marked as dirty' -u -b b.raw -F raw
refuses 'marked as dirty' --follow=any -b b.raw -F raw
qemu-img create -q -f qed i.qcow2 1M
refuses 'qed image' -u -b b.raw -F raw
refuses 'qed image' -b b.raw -F raw
qemu-img create -q -f qcow2 i.qcow2 1M
refuses 'it is a qcow2 image, and -f says qed' -f qed -b b.raw -F raw
qemu-img create -q -f qcow2 -b a.raw -F raw i.qcow2
start_nbdkit "$PLUGIN" i.qcow2 follow=any
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"1" * 512, 0)' "$sock" 2> err || die "not written: $(cat err)"
# The server itself may write it at any moment.
for how in -u --follow=any; do
    if "$tool" rebase $how -b b.raw -F raw i.qcow2 > out 2> err; then
        die "rebased while it is served"
    fi
    grep -q 'another process' err || die "$(cat err)"
done

# Zeros take no space, be it that no backing file was there, or that it has ended.
truncate -s 1M short.raw
qemu-img create -q -f raw big.raw 64M
qemu-io -f raw -c 'write -P 3 0 64M' big.raw > out
for old in '' '-b short.raw -F raw'; do
    for kind in compat=1.1 extended_l2=on; do
        # shellcheck disable=SC2086
        qemu-img create -q -f qcow2 -o $kind $old z.qcow2 64M
        "$tool" rebase -q --follow=any -b big.raw -F raw z.qcow2
        check_clean z.qcow2
        size=$(stat -c %s z.qcow2)
        test "$size" -lt 3000000 || die "$kind, '$old': $size bytes"
        qemu-io -f qcow2 -r -c 'read -P 0 0 64M' z.qcow2 > out
        if grep -q failed out; then die "$kind, '$old': $(cat out)"; fi
    done
done

# SIGINT in the midst of it: the disk is as it was, over the old backing file, and
# nothing is leaked; and the command can be given again.
rm -f big.raw
truncate -s 3G big.raw
"$PYTHON" -c 'import os
f = open("big.raw", "r+b")
for i in range(384):
    f.seek(i << 23)
    f.write(os.urandom(1 << 20))'
qemu-img create -q -f qcow2 -b big.raw -F raw j.qcow2
"$tool" rebase -p --follow=any -b '' j.qcow2 > out 2> err &
pid=$!
while ! grep -q '[1-9]%' err && kill -0 $pid; do sleep 0.01; done
kill -INT $pid 2> /dev/null || true
status=0
wait $pid || status=$?
case $status in
    0) ;; # it was too fast
    1) grep -q 'interrupted; it has its old backing file' err || die "$(cat err)"
       qemu-img info --output=json j.qcow2 > out
       grep -q '"big.raw"' out || die "no backing file" ;;
    *) die "status $status: $(cat err)" ;;
esac
check_clean j.qcow2
qemu-img compare -f qcow2 -F raw j.qcow2 big.raw > out || die "$(cat out)"
"$tool" rebase -q --follow=any -b '' j.qcow2
check_clean j.qcow2
qemu-img compare -f qcow2 -F raw j.qcow2 big.raw > out || die "$(cat out)"

# SIGINT while snapshots are compared; and a second one, which need not wait.
requires_libnbd
requires "$NBDKIT" --filter=log --filter=delay null --dump-plugin
head -c 32M /dev/urandom > old.raw
head -c 33554431 old.raw > new.raw
printf '\0' >> new.raw # so that the comparison of a snapshot can't succeed
printf '\1' | dd of=old.raw bs=1 seek=33554431 conv=notrunc status=none
qemu-img create -q -f qcow2 -b old.raw -F raw k.qcow2
qemu-img snapshot -c one k.qcow2
cp k.qcow2 before.qcow2

# begin DELAY: rebase it to a server that needs so long to read; $rebasing.
begin ()
{
    start_nbdkit --filter=log --filter=delay file new.raw logfile=far.log \
                 "rdelay=$1"
    : > err
    "$tool" rebase -p --follow=any -b "$uri" -F raw k.qcow2 > out 2> err &
    rebasing=$!
}

# ends STATUS
ends ()
{
    status=0
    wait "$rebasing" || status=$?
    test "$status" -eq "$1" || die "status $status: $(cat err)"
}

begin 200ms
while ! grep -q '[1-9]%' err && kill -0 $rebasing; do sleep 0.01; done
kill -INT $rebasing 2> /dev/null || true
ends 1
cmp k.qcow2 before.qcow2 || die "it was changed"
grep -q 'interrupted; it has its old backing file' err || die "$(cat err)"

# catches: whether it catches SIGINT, the second of the signals.
catches ()
{
    local mask
    mask=$(sed -n 's/^SigCgt:[[:space:]]*[0-9a-f]*\(.\)$/\1/p' \
           /proc/$rebasing/status)
    test $(( 0x$mask & 2 )) -ne 0
}
rm far.log
begin 6
# The first read is to open it.
wait_until -p $rebasing grep -qs 'Read id=2 ' far.log
catches || die "SIGINT is not caught"
kill -INT $rebasing
# Another one at once may be the same one that came twice; a second later it is not.
wait_until eval '! kill -INT $rebasing 2> /dev/null'
ends 130
check_clean k.qcow2
