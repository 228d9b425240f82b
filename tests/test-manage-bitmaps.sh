#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool bitmap does what qemu-img bitmap does, lists and dumps them,
# and refuses what it must not touch without changing it.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json, nbd'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/manage-bitmaps.py" "$tool"

cd "$tmp"

# refuses REGEX ARG...: fails so, and the image i.qcow2 stays as it is.
served= # then its server may write it at any moment
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" bitmap "${@:2}" > out 2> err; then die "not refused: ${*:2}"; fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    test -n "$served" || cmp i.qcow2 before.qcow2 || die "changed: ${*:2}"
}

# patch OFFSET BYTES
patch_image ()
{
    printf "$2" | dd of=i.qcow2 bs=1 seek=$(( $1 )) conv=notrunc status=none
}

# What is told.
qemu-img create -q -f qcow2 i.qcow2 10M
"$tool" bitmap --add i.qcow2 one > out
test ! -s out || die "it says: $(cat out)"
"$tool" bitmap --add -g 1M --disable i.qcow2 'two ü' > out
qemu-io -f qcow2 -c 'write 1M 70k' -c 'write 10485248 512' i.qcow2 > out
"$tool" bitmap --list i.qcow2 > out
printf '"one", granularity 65536, auto\n"two ü", granularity 1048576\n' > want
diff want out || die "the list"
"$tool" bitmap --dump i.qcow2 one > out
printf '      0x100000        0x20000\n      0x9f0000        0x10000\n' > want
diff want out || die "the dump"
"$tool" bitmap --dump --output=json i.qcow2 one > out
"$PYTHON" -c 'import json
assert json.load(open("out")) == [{"start": 1 << 20, "length": 128 << 10},
    {"start": 0x9f0000, "length": 65536}]' || die "JSON: $(cat out)"

# JSON of what is not there, or not all of it, is none.
refuses 'there is no bitmap "three"' --dump --output=json i.qcow2 three
test ! -s out || die "it says: $(cat out)"
cp i.qcow2 kept.qcow2
qemu-img create -q -f qcow2 -o cluster_size=512 i.qcow2 4M
"$tool" bitmap --add -g 512 i.qcow2 two-parts
"$tool" bitmap --dump --output=json i.qcow2 two-parts > out
"$PYTHON" -c 'import json; assert json.load(open("out")) == []' ||
    die "JSON of a clean bitmap: $(cat out)"
qemu-io -f qcow2 -c 'write 0 512' -c 'write 1k 512' i.qcow2 > out
"$PYTHON" - << 'EOF'
import struct
with open("i.qcow2", "r+b") as f:
    b = f.read()
    directory, = struct.unpack_from(">Q", b, 112 + 8 + 16)
    table, = struct.unpack_from(">Q", b, directory)
    f.seek(table + 8)
    f.write(b"\xff" * 8)
EOF
refuses 'table entry at offset .* is not valid' --dump --output=json i.qcow2 \
    two-parts
if "$PYTHON" -c 'import json; json.load(open("out"))' 2> err; then
    die "JSON of a damaged bitmap: $(cat out)"
fi
mv kept.qcow2 i.qcow2

# All actions, or none.
refuses 'there is no bitmap "three"' --clear --merge three i.qcow2 one
refuses 'there is a bitmap "one" already' --clear --add i.qcow2 one
refuses 'there is no bitmap "three"' --remove i.qcow2 three
refuses 'power of 2 from 512 to 2147483648' --add -g 3k i.qcow2 three
refuses 'power of 2 from 512' --add -g 256 i.qcow2 three
refuses "'x' is no size" --add -g x i.qcow2 three
refuses "'0' is no size" --add -g 0 i.qcow2 three
refuses 'from 1 to 1023 bytes' --add i.qcow2 "$(printf '%01024d' 0)"
refuses 'from 1 to 1023 bytes' --add i.qcow2 ''
refuses 'name of a bitmap is wanted' --add i.qcow2
refuses 'an action or --dump is wanted' i.qcow2 one
refuses 'exclude each other' --add --dump i.qcow2 one
refuses 'only for --add' --clear -g 512 i.qcow2 one
refuses 'only for --merge' --clear -b o.qcow2 i.qcow2 one
refuses 'only for --source-file' --merge one -F qcow2 i.qcow2 one
refuses 'other formats have no bitmaps' --merge one -b o -F raw i.qcow2 one
refuses 'only for --dump' --clear -U i.qcow2 one
refuses 'does not take --create' -c one i.qcow2
refuses 'there is no bitmap "three"' --dump i.qcow2 three

# Another image: its size, and that it can be read.
qemu-img create -q -f qcow2 o.qcow2 11M
"$tool" bitmap --add o.qcow2 one
refuses 'disks of different sizes' --merge one -b o.qcow2 i.qcow2 one
refuses 'qed image' --merge one -b "$(qemu-img create -q -f qed q.qed 10M
    echo q.qed)" i.qcow2 one
refuses 'No such file' --merge one -b none.qcow2 i.qcow2 one
refuses 'another process|itself|in use' --merge one -b i.qcow2 i.qcow2 one

# A bitmap of 512 MiB at most.
qemu-img create -q -f qcow2 i.qcow2 4T
refuses 'limit of 536870912' --add -g 512 i.qcow2 one
"$tool" bitmap --add -g 1k i.qcow2 one
qemu-img check -q i.qcow2
qemu-img create -q -f qcow2 i.qcow2 0
refuses 'a disk of 0 bytes' --add i.qcow2 one

# A dirty range of 4 TiB takes no cluster but the table's.
qemu-img create -q -f qcow2 i.qcow2 4T
"$tool" bitmap --add -g 2G i.qcow2 coarse
"$PYTHON" - << 'EOF'
import struct
with open("i.qcow2", "r+b") as f: # all ones
    f.seek(112 + 16)
    f.seek(struct.unpack(">Q", f.read(24)[8:16])[0])
    f.seek(struct.unpack(">Q", f.read(8))[0])
    f.write(struct.pack(">Q", 1))
EOF
"$tool" bitmap --add -g 1k --merge coarse i.qcow2 fine
qemu-img check -q i.qcow2
test "$(stat -c %s i.qcow2)" -lt 2000000 || die "too large"
"$tool" bitmap --dump i.qcow2 fine > out
printf '%14s %14s\n' 0 0x40000000000 > want
diff want out || die "not all is dirty"

# Version 2, the format, other kinds.
qemu-img create -q -f qcow2 -o compat=0.10 i.qcow2 1M
refuses 'version 2 images' --add i.qcow2 one
qemu-img create -q -f qed i.qcow2 1M
refuses 'it is a qed image' --add i.qcow2 one
qemu-img create -q -f qcow2 -o data_file=d.raw i.qcow2 1M
refuses 'external data file' --add i.qcow2 one

# What the header has no room for: here QEMU could not write it any more.
qemu-img create -q -f qcow2 -o cluster_size=512 -b "$(printf '%0340d' 0)" \
    -F raw -u i.qcow2 1M
"$tool" bitmap --add i.qcow2 one
qemu-img info i.qcow2 > out
grep -q '^backing file: 0*0' out || die "no backing file: $(cat out)"
qemu-img create -q -f qcow2 -o cluster_size=512 -b "$(printf '%0350d' 0)" \
    -F raw -u i.qcow2 1M
refuses 'more than the first cluster has' --add i.qcow2 one

# A name in the first sector makes room for the extension.
truncate -s 1M base.raw
qemu-img create -q -f qcow2 -o cluster_size=4k \
    -b "$PWD/$(printf './%.0s' {1..150})base.raw" -F raw i.qcow2 1M
cp i.qcow2 plain.qcow2
"$tool" bitmap --add i.qcow2 one
test "$(qemu-img info --output=json i.qcow2 | grep '"backing-filename"')" = \
    "$(qemu-img info --output=json plain.qcow2 | grep '"backing-filename"')" ||
    die "the name has changed"
qemu-io -f qcow2 -c 'write 0 4k' i.qcow2 > out
check_clean i.qcow2

# Damage: in the directory, the table, or the header.
fresh ()
{
    qemu-img create -q -f qcow2 i.qcow2 1M
    "$tool" bitmap --add i.qcow2 b
    qemu-io -f qcow2 -c 'write 0 128k' i.qcow2 > out
    "$tool" bitmap --add i.qcow2 c
}
fresh; patch_image 79 '\2'
refuses 'marked as corrupt' --clear i.qcow2 b
fresh; patch_image 79 '\1'
refuses 'marked as dirty' --clear i.qcow2 b
fresh; cp i.qcow2 good.qcow2
at=$("$PYTHON" -c 'import struct
b = open("i.qcow2", "rb").read()
d = struct.unpack_from(">Q", b, 112 + 8 + 16)[0]
print(d, struct.unpack_from(">Q", b, d)[0])')
directory=${at% *} table=${at#* }
# An offset, a type, a granularity, an entry with reserved bits, and one that is
# beyond the end.
for where in "$directory \\x01" "$(( directory + 16 )) \\x02" \
    "$(( directory + 17 )) \\x08" "$table \\xff" "$(( table + 4 )) \\x7f"; do
    for action in --clear --remove --disable '--merge c'; do
        cp good.qcow2 i.qcow2; patch_image ${where% *} "${where#* }"
        refuses 'i.qcow2' $action i.qcow2 b
    done
done

# Locks: nobody else may have it open to write.
cp good.qcow2 i.qcow2
start_nbdkit "$PLUGIN" i.qcow2
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"1" * 512, 0)' "$sock" 2> err || die "not written: $(cat err)"
served=yes
refuses 'another process' --clear i.qcow2 b
