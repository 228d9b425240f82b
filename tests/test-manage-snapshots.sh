#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool snapshot does what qemu-img snapshot does, and refuses what
# it must not touch without changing it.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/manage-snapshots.py" "$tool"

cd "$tmp"

# refuses REGEX ARG...: fails so, and the image i.qcow2 stays as it is.
served= # then its server may write it at any moment
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" snapshot "${@:2}" i.qcow2 > out 2> err; then
        die "not refused: ${*:2}"
    fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    test -n "$served" || cmp i.qcow2 before.qcow2 || die "changed: ${*:2}"
}

# With 1 bit no cluster can have two users; with 2 bits three.
qemu-img create -q -f qcow2 -o refcount_bits=1 i.qcow2 1M
qemu-io -f qcow2 -c 'write 0 64k' i.qcow2 > out
refuses 'refcounts of 1 bits can count' -c one
qemu-img create -q -f qcow2 -o refcount_bits=2 i.qcow2 1M
qemu-io -f qcow2 -c 'write 0 64k' i.qcow2 > out
"$tool" snapshot -c one i.qcow2
"$tool" snapshot -c two i.qcow2
refuses 'refcounts of 2 bits can count' -c three
refuses 'refcounts of 2 bits can count' -a two
refuses "there is no snapshot 'three'" -d three
refuses "there is no snapshot '3'" -a 3
refuses "there is no snapshot '1'" -d 1
refuses 'at most 255 bytes' -c "$(printf '%0256d' 0)"
qemu-img check -q i.qcow2

# Damage: an entry beyond the end, a refcount of 0, marked as corrupt or dirty.
# patch OFFSET BYTES
patch_image ()
{
    printf "$2" | dd of=i.qcow2 bs=1 seek=$(( $1 )) conv=notrunc status=none
}
fresh ()
{
    qemu-img create -q -f qcow2 i.qcow2 1M
    qemu-io -f qcow2 -c 'write 0 128k' i.qcow2 > out
}
fresh; patch_image 0x40004 '\x7f'
refuses 'damaged: L2 entry .*beyond the end' -c one
fresh; patch_image 0x30004 '\x7f'
refuses 'damaged' -c one
fresh; patch_image 0x2000b '\0'
refuses 'damaged: the refcount of the cluster at offset 0x50000: it is 0' -c one
fresh; patch_image 79 '\2'
refuses 'marked as corrupt' -c one
fresh; patch_image 79 '\1'
refuses 'marked as dirty.*check --repair=all' -c one
fresh; patch_image 75 '\1'
refuses 'incompatible features' -c one

# A cluster that two snapshots have, and a refcount that tells of one: deleting or
# applying one of them must not free what the other has.
qemu-img create -q -f qcow2 i.qcow2 1M
qemu-io -f qcow2 -c 'write -P 17 0 64k' i.qcow2 > out
qemu-img snapshot -c A i.qcow2
qemu-img snapshot -c B i.qcow2
qemu-io -f qcow2 -c 'write -P 34 0 64k' i.qcow2 > out
patch_image 0x2000b '\1'
for how in '-c C' '-a A' '-d A'; do
    refuses 'damaged: cluster at 0x50000: refcount 1, and 2 references: .*--repair=all' \
        $how
done
"$tool" check -q --repair=all i.qcow2 > out || die "not repaired: $(cat out)"
"$tool" snapshot -d A i.qcow2
check_clean i.qcow2
qemu-img convert -l snapshot.name=B -O raw i.qcow2 b.raw
qemu-io -f raw -r -c 'read -P 17 0 64k' b.raw > out
if grep -q failed out; then die "B has changed"; fi

# The clusters for new tables want a larger refcount table: 64 refcounts are in a
# block, and 64 blocks in the table.
full_table ()
{
    local at=$(( 1792 << 10 )) commands
    qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 i.qcow2 4M
    qemu-io -f qcow2 -c "write 0 $at" i.qcow2 > out
    qemu-img snapshot -c A i.qcow2
    qemu-img snapshot -c B i.qcow2
    while [ "$(stat -c %s i.qcow2)" -lt $(( (2 << 20) - 512 )) ]; do
        commands=( -c "write $at 512" )
        at=$(( at + 512 ))
        if [ "$(stat -c %s i.qcow2)" -lt $(( (2 << 20) - 16384 )) ]; then
            commands=( -c "write $at 8k" )
            at=$(( at + 8192 ))
        fi
        qemu-io -f qcow2 "${commands[@]}" i.qcow2 > out
    done
    check_clean i.qcow2
}
refcount_table ()
{
    od -An -tx1 -j 48 -N 12 i.qcow2
}
full_table
cp i.qcow2 full.qcow2
was=$(refcount_table)
for how in 'snapshot -c C' 'snapshot -a A' 'resize -q'; do
    cp full.qcow2 i.qcow2
    case $how in
        resize*) "$tool" $how i.qcow2 1G ;;
        *) "$tool" $how i.qcow2 ;;
    esac
    check_clean i.qcow2
    test "$(refcount_table)" != "$was" || die "$how: the table has not moved"
done

# Formats and kinds that it is not for.
qemu-img create -q -f qed i.qcow2 1M
refuses 'it is a qed image' -c one
truncate -s 1M i.qcow2; dd if=/dev/zero of=i.qcow2 bs=1M count=1 status=none
refuses 'i.qcow2' -c one
qemu-img create -q -f qcow2 -o data_file=d.raw i.qcow2 1M
refuses 'external data file' -c one

# Bitmaps: a snapshot leaves them as they are; if it is applied what differs is
# dirty in those that are enabled.
fresh
"$tool" bitmap --add -g 64k i.qcow2 b
"$tool" bitmap --add -g 64k --disable i.qcow2 disabled
"$tool" snapshot -c one i.qcow2
qemu-io -f qcow2 -c 'write 64k 64k' -c 'write -z 256k 128k' i.qcow2 > out
"$tool" bitmap --clear i.qcow2 b
"$tool" snapshot -a one i.qcow2
check_clean i.qcow2
"$tool" bitmap --dump i.qcow2 b > out
printf '%14s %14s\n' 0x10000 0x10000 0x40000 0x20000 > want
diff want out || die "not what differs"
test -z "$("$tool" bitmap --dump i.qcow2 disabled)" || die "disabled is dirty"
"$tool" snapshot -d one i.qcow2
check_clean i.qcow2
qemu-img info --output=json i.qcow2 | grep -q '"name": "b"' || die "no bitmap"
if qemu-img info --output=json i.qcow2 | grep -q in-use; then
    die "the bitmap is in use"
fi

# Version 2: a snapshot of another size can't be applied.
qemu-img create -q -f qcow2 -o compat=0.10 i.qcow2 1M
"$tool" snapshot -c one i.qcow2
patch_image 29 '\x20'
refuses 'version 2' -a one

# What is in nobody's language is kept: extra data of an entry, a VM state.
fresh
"$tool" snapshot -c one i.qcow2
"$PYTHON" - << 'EOF'
import struct
with open("i.qcow2", "r+b") as f:
    f.seek(60)
    nr, at = struct.unpack(">IQ", f.read(12))
    f.seek(at)
    entry = f.read(40)
    extra = f.read(24)
    f.seek(at)
    f.write(entry[:36] + struct.pack(">I", 40) +
            struct.pack(">Q", 5 << 32) + extra[8:] + b"0123456789abcdef" +
            b"1one")
EOF
"$tool" snapshot -c two i.qcow2
"$tool" snapshot -d two i.qcow2
"$tool" snapshot -c three i.qcow2
grep -aq 0123456789abcdef1one i.qcow2 || die "extra data is lost"
"$tool" snapshot -l --output=json i.qcow2 > out
grep -q '"vm-state-size": 21474836480' out || die "VM state: $(cat out)"
columns ()
{
    sed -E 's/VM_/VM /g; s/ +/ /g; s/ 00([0-9]+:[0-9]+:[0-9]+\.)/ \1/; s/ (--)? *$//'
}
"$tool" snapshot -l i.qcow2 > out
qemu-img snapshot -l i.qcow2 > theirs
# QEMU 10 has other columns: VM_SIZE, four digits of hours, and "--" for nothing.
diff <(columns < out) <(columns < theirs) || die "the list is not as qemu-img's"

# Locks: nobody else may have it open.
qemu-img create -q -f qcow2 i.qcow2 1M
start_nbdkit "$PLUGIN" i.qcow2
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"1" * 512, 0)' "$sock" 2> err || die "not written: $(cat err)"
served=yes
refuses 'another process' -c one
