#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What is no qcow2 image is named, if it is known, and so is what to do.

. ./functions.sh

requires_qemu
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

cd "$tmp"
convert='convert it with qemu-img convert -O qcow2$'
raw='nbdkit file serves it'

# foreign REGEX FILE
foreign ()
{
    expect_refusal "error: $tmp/$2: not a qcow2 image, but $1" "$PLUGIN" "$2"
    test "$(wc -l < refusal.out)" -eq 1 || die "$2: $(cat refusal.out)"
    for command in check info map; do
        if "$tool" $command "$2" > out 2>&1; then die "$2: no error"; fi
        grep -q "^nbdkit-qcow2-tool: $2: not a qcow2 image, but " out ||
            die "$2: $(cat out)"
        # The tool serves nothing.
        if grep -q nbdkit\ file out; then die "$2: $(cat out)"; fi
    done
}

# --- Images of other formats, by those who know them.
qemu-img create -q -f raw disk 1M
while read -r format name; do
    qemu-img create -q -f $format image 1M > created 2>&1 || {
        echo "qemu-img has no $format"
        continue
    }
    foreign "$name: $convert" image
    rm image
done <<'FORMATS'
vmdk a VMDK image
vdi a VDI image
vpc a VHD image
vhdx a VHDX image
qcow a qcow image of version 1
parallels a Parallels image
FORMATS
qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 1M
foreign "the description of a VMDK image: $convert" flat.vmdk

# --- Packed ones.
head -c 100000 /dev/urandom > disk
gzip -k disk
foreign 'a gzip file: decompress it first$' disk.gz
bzip2 -k disk 2> /dev/null && foreign 'a bzip2 file: decompress' disk.bz2
xz -k disk 2> /dev/null && foreign 'an xz file: decompress' disk.xz
zstd -q -k disk 2> /dev/null && foreign 'a zstd file: decompress' disk.zst
tar -c -f disk.tar disk
foreign 'a tar archive: unpack it first$' disk.tar
"$PYTHON" -c 'import zipfile
zipfile.ZipFile("disk.zip", "w").write("disk")'
foreign 'a zip archive: unpack it first$' disk.zip

# --- Raw disks.  put OFFSET BYTES: where something shows what it is.
put ()
{
    rm -f disk
    truncate -s 1M disk
    printf "$2" | dd of=disk bs=1 seek="$1" conv=notrunc status=none
}
put 510 '\x55\xaa'
foreign "a raw disk with an MBR: $raw" disk
put 512 'EFI PART'
printf '\x55\xaa' | dd of=disk bs=1 seek=510 conv=notrunc status=none
foreign "a raw disk with a GPT: $raw" disk
put 4096 'EFI PART'
foreign "a raw disk with a GPT: $raw" disk
put 32769 'CD001'
foreign "an ISO 9660 image: $raw" disk
put 1080 '\x53\xef'
foreign "a raw disk with an ext2, ext3 or ext4 file system: $raw" disk
put 0 'XFSB'
foreign "a raw disk with an XFS file system: $raw" disk
put 512 'LABELONE'
foreign "a raw disk with LVM: $raw" disk
put 0 'LUKS\xba\xbe'
foreign "a raw disk encrypted with LUKS: $raw" disk

# Nothing tells what these are.
put 512 x
foreign "a file that begins with zeros (.*): $raw" disk
head -c 511 disk > short
expect_refusal 'short: not a qcow2 image: magic' "$PLUGIN" short

# --- What is not known is told by its magic number, and so is what is short.
put 0 'whatever'
expect_refusal 'not a qcow2 image: magic 0x77686174 at offset 0' \
    "$PLUGIN" disk
for n in 0 1 7 8 71; do
    head -c $n disk > short
    expect_refusal 'short: not a qcow2 image: (magic|it has [0-7] bytes)' \
        "$PLUGIN" short
done

# --- A backing file is named as well.
put 510 '\x55\xaa'
qemu-img create -q -u -f qcow2 -b disk -F qcow2 overlay 1M
expect_refusal \
    'disk: not a qcow2 image, but a raw disk.*backing-format=raw.*backing file of' \
    "$PLUGIN" overlay follow=beneath
# And what it says helps.
"$NBDKIT" -U - "$PLUGIN" overlay follow=beneath backing-format=raw \
    --run 'nbdinfo --size "$uri"' > size
test "$(cat size)" = 1048576

# --- Encryption: who can serve that.
for method in LUKS AES; do
    case $method in
        LUKS) options=encrypt.format=luks,encrypt.iter-time=10 ;;
        AES) options=encrypt.format=aes ;;
    esac
    rm -f secret.qcow2
    quickly qemu-img create -q --object secret,id=s,data=abc123456 -f qcow2 \
        -o $options,encrypt.key-secret=s secret.qcow2 1M \
        2> created || { echo "qemu-img can't encrypt by $method"; continue; }
    # Without the library it says who can serve it.
    expect_refusal "$method.*(passphrase is missing: say passphrase=|encryption is not supported here; qemu-nbd serves it, and qemu-img convert makes)" \
        "$PLUGIN" secret.qcow2
done
