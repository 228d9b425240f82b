#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool commit does what qemu-img commit does, and refuses what it must
# not touch without changing it.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/manage-commit.py" "$tool"

cd "$tmp"

# fresh [OPTION...]: an overlay t.qcow2, created with these, of b.qcow2.
fresh ()
{
    qemu-img create -q -f qcow2 b.qcow2 4M
    qemu-io -f qcow2 -c 'write -P 1 0 4M' b.qcow2 > out
    qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 "$@" t.qcow2 4M
    qemu-io -f qcow2 -c 'write -P 2 1M 1M' t.qcow2 > out
}

# refuses REGEX ARG...: fails so, and both stay as they are.
refuses ()
{
    cp t.qcow2 t.before; cp b.qcow2 b.before
    if "$tool" commit "${@:2}" > out 2> err; then die "not refused: ${*:2}"; fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    cmp t.qcow2 t.before || die "the overlay has changed: ${*:2}"
    cmp b.qcow2 b.before || die "the base has changed: ${*:2}"
}

# patch_image FILE OFFSET BYTES
patch_image ()
{
    printf "$3" | dd of="$1" bs=1 seek=$(( $2 )) conv=notrunc status=none
}

# reads FILE COMMAND...: of qemu-io, all of which go well.
reads ()
{
    local command commands=()
    for command in "${@:2}"; do commands+=( -c "read $command" ); done
    qemu-io -f qcow2 -r "${commands[@]}" "$1" > out
    if grep -q failed out; then die "$1: $(cat out)"; fi
}

fresh
"$tool" commit -p --follow=beneath t.qcow2 > out 2> err
grep -q '^Image committed.$' out || die "it says: $(cat out)"
grep -q '100%' err || die "no progress: $(cat err)"
check_clean t.qcow2 b.qcow2
reads b.qcow2 '-P 1 0 1M' '-P 2 1M 1M' '-P 1 2M 2M'
reads t.qcow2 '-P 1 0 1M' '-P 2 1M 1M' '-P 1 2M 2M'
test "$(stat -c %s t.qcow2)" -lt 500000 || die "it is not smaller"
# Once more there is nothing to do.
cp t.qcow2 t.before; cp b.qcow2 b.before
"$tool" commit -q --follow=beneath t.qcow2 > out
test ! -s out || die "not quiet: $(cat out)"
cmp t.qcow2 t.before; cmp b.qcow2 b.before

# What is refused.
fresh
refuses 'which was not allowed.*--follow' t.qcow2
refuses 'no backing file' --follow=any b.qcow2
refuses 'is not below' --follow=any -b t.before t.qcow2
refuses 'does not take --shrink' --follow=any --shrink t.qcow2
refuses 'does not take --force-share' --follow=any -U t.qcow2
refuses 'it is a qcow2 image, and -f says qed' --follow=any -f qed t.qcow2
patch_image t.qcow2 79 '\1'
refuses 'marked as dirty' --follow=any t.qcow2
patch_image t.qcow2 79 '\0'
patch_image b.qcow2 79 '\2'
refuses 'marked as corrupt' --follow=any t.qcow2
fresh
patch_image t.qcow2 0x20007 '\0'
refuses 'damaged' --follow=any t.qcow2
refuses 'damaged' --follow=any -d t.qcow2
fresh
qemu-img snapshot -c one t.qcow2
refuses 'internal snapshots' --follow=any t.qcow2
refuses 'internal snapshots' --follow=any -d t.qcow2
fresh -o data_file=t.raw
refuses 'external data file' --follow=any t.qcow2
"$tool" commit -d --follow=any t.qcow2
reads b.qcow2 '-P 1 0 1M' '-P 2 1M 1M' '-P 1 2M 2M'
check_clean b.qcow2

# Encrypted, whichever it is.
if quickly qemu-img create -q -f qcow2 --object secret,id=s,data=x \
        -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 \
        e.qcow2 4M 2> err; then
    fresh
    cp e.qcow2 b.qcow2
    refuses 'passphrase|encrypted' --follow=any t.qcow2
fi

# A base with snapshots keeps them, and its bitmap gets bits.
fresh
qemu-img snapshot -c one b.qcow2
qemu-img bitmap --add b.qcow2 bits
"$tool" commit -q --follow=any t.qcow2
check_clean b.qcow2 t.qcow2
qemu-img convert -l snapshot.name=one -O raw b.qcow2 one.raw
qemu-io -f raw -r -c 'read -P 1 0 4M' one.raw > out
if grep -q failed out; then die "the snapshot has changed"; fi
qemu-img info --output=json b.qcow2 > info
if grep -q in-use info; then die "the bitmap is in use"; fi
start_nbdkit -r "$PLUGIN" b.qcow2
"$PYTHON" - "$sock" << 'EOF'
import sys, nbd
h = nbd.NBD()
h.set_export_name("bitmap/bits")
h.add_meta_context("base:allocation")
h.connect_unix(sys.argv[1])
extents = []
h.block_status(4 << 20, 0, lambda c, o, e, err: extents.extend(e) or 0)
assert extents == [1 << 20, 1, 1 << 20, 0, 2 << 20, 1], extents
EOF
stop_nbdkit "$pid"

# The base grows: raw, and qcow2, but not over what would appear.
fresh
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 t.qcow2 9M
qemu-io -f qcow2 -c 'write -P 5 8M 70000' t.qcow2 > out
"$tool" commit -q --follow=any t.qcow2
check_clean b.qcow2 t.qcow2
reads b.qcow2 '-P 1 0 4M' '-P 0 4M 4M' '-P 5 8M 70000' '-P 0 8458608 978576'
fresh
qemu-img resize -q --shrink b.qcow2 4190208
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 t.qcow2 9M
refuses 'data beyond the end of its disk, at 4190208' --follow=any t.qcow2
qemu-img bitmap --add b.qcow2 bits
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 t.qcow2 9M
refuses 'persistent bitmaps|data beyond' --follow=any t.qcow2
# What its own backing file has beyond its end stays hidden.
qemu-img create -q -f raw long.raw 4M
qemu-io -f raw -c 'write -P 7 0 4M' long.raw > out
qemu-img create -q -f qcow2 -b long.raw -F raw b.qcow2 1050624
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 t.qcow2 9M
qemu-io -f qcow2 -c 'write -P 5 2M 70000' t.qcow2 > out
"$tool" commit -q --follow=any t.qcow2
check_clean b.qcow2 t.qcow2
reads b.qcow2 '-P 7 0 1050624' '-P 0 1050624 1046528' '-P 5 2M 70000' \
    '-P 0 3M 6M'
truncate -s 100000 r.raw
qemu-img create -q -f qcow2 -b r.raw -F raw t.qcow2 1M
qemu-io -f qcow2 -c 'write -P 6 512k 64k' t.qcow2 > out
"$tool" commit -q --follow=any t.qcow2
test "$(stat -c %s r.raw)" -eq 1048576 || die "r.raw is of another size"
test "$(du -k r.raw | cut -f 1)" -lt 200 || die "r.raw is not sparse"
reads t.qcow2 '-P 0 0 512k' '-P 6 512k 64k' '-P 0 576k 448k'

# Interrupted, as soon as it says how far it is: the overlay is as it was.
fresh
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 t.qcow2 4M
qemu-io -f qcow2 -c 'write -P 2 0 4M' t.qcow2 > out
cp t.qcow2 t.before
"$PYTHON" - "$tool" << 'EOF'
import os, signal, subprocess, sys
p = subprocess.Popen([sys.argv[1], "commit", "-p", "--follow=any", "t.qcow2"],
                     stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                     bufsize=0)
p.stderr.read(3)
os.kill(p.pid, signal.SIGINT)
_, err = p.communicate()
if p.returncode == 1:
    assert b"interrupted" in err, err
else:
    assert p.returncode == 0 and b"100%" in err, (p.returncode, err)
print("status", p.returncode)
EOF
check_clean b.qcow2 t.qcow2
reads t.qcow2 '-P 2 0 4M'

# Locks: nobody else may have either open for writing.
fresh
for f in t.qcow2 b.qcow2; do
    qemu_holds $f
    refuses 'another process' --follow=any t.qcow2
    qemu_lets_go
done

# Nor may anybody read a file between the two, which shows what the base gets.
fresh
qemu-img create -q -f qcow2 -b t.qcow2 -F qcow2 above.qcow2
qemu_holds t.qcow2 -r
refuses 'another process' --follow=any -b b.qcow2 above.qcow2
qemu_lets_go
"$tool" commit -q --follow=any -b b.qcow2 above.qcow2

# A full file system under the base: the overlay still has it all.
if test "$(id -u)" -eq 0 && mkdir full &&
        mount -t tmpfs -o size=4m none full 2> out; then
    at_exit umount "$tmp/full"
    fresh
    qemu-img create -q -f qcow2 full/b.qcow2 4M
    dd if=/dev/zero of=full/filler bs=4k 2> out || true
    qemu-img create -q -f qcow2 -b full/b.qcow2 -F qcow2 t.qcow2 4M
    qemu-io -f qcow2 -c 'write -P 2 0 4M' t.qcow2 > out
    if "$tool" commit -q --follow=any t.qcow2 2> out; then
        die "there was space"
    fi
    grep -q 'No space left on device (./full/b.qcow2 may have a part' out ||
        die "$(cat out)"
    check_clean full/b.qcow2 t.qcow2
    reads t.qcow2 '-P 2 0 4M'
fi
