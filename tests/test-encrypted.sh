#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images that QEMU has encrypted are read, in every cipher that it makes and we
# have; others are refused by name, as are wrong passphrases and damaged
# headers.

. ./functions.sh

requires_qemu
requires nbdcopy --version
"$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_encryption=luks' ||
    skip "built without GnuTLS"

cd "$tmp"
printf 'the-passphrase-itself' > secret
printf 'another' > other
"$PYTHON" - <<'EOF'
import random
r = random.Random(1)
with open("disk", "wb") as f:
    f.write(r.randbytes(300000) + bytes(500000) + r.randbytes(200000))
    f.truncate(1200128)
EOF
size=1200128

# make OPTIONS [IMAGE]: an empty one.
secret="--object secret,id=s,file=secret"
make ()
{
    local image="${2-image.qcow2}"
    rm -f "$image"
    quickly qemu-img create -q $secret -f qcow2 \
        -o "encrypt.key-secret=s,$1" "$image" $size ||
        die "qemu-img can't make $image: $1"
}

# fill [IMAGE]: with what is in disk.
fill ()
{
    qemu-img convert -n $secret -f raw disk --target-image-opts \
        "driver=qcow2,file.filename=${1-image.qcow2},encrypt.key-secret=s"
}

# same IMAGE [PARAMETER...]
same ()
{
    rm -f copy
    "$NBDKIT" -r -U - "$PLUGIN" "$@" --run 'nbdcopy "$uri" copy' 2> errors ||
        die "$*: $(cat errors)"
    cmp disk copy || die "$*: differs"
}

# refused REGEX IMAGE [PARAMETER...]
refused ()
{
    local regex="$1"
    shift
    if "$NBDKIT" -r -U - "$PLUGIN" "$@" --run true 2> errors; then
        die "$* was served"
    fi
    grep -Eq "$regex" errors || die "$*: $(cat errors)"
    test "$(grep -c 'error:' errors)" = 1 || die "$*: $(cat errors)"
    ! grep -q 'the-passphrase-itself' errors || die "it is in the message"
}

luks=encrypt.format=luks,encrypt.iter-time=10
nr=0
# What else an image can be is tried along with these ciphers.
for kind in \
    cluster_size=64k:cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256 \
    cluster_size=512:cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256 \
    extended_l2=on:cipher-alg=aes-128,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha1 \
    compat=0.10:cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain,hash-alg=sha512 \
    cluster_size=4k:cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain,hash-alg=sha224 \
    cluster_size=2M:cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256 \
    cluster_size=8k:cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5 \
    cluster_size=1k:cipher-alg=aes-128,cipher-mode=xts,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=md5
do
    cipher="${kind#*:}"
    make "${kind%%:*},$luks,encrypt.${cipher//,/,encrypt.}"
    test $nr -gt 0 || cp image.qcow2 empty.qcow2
    fill
    same image.qcow2 passphrase=+secret
    nr=$(( nr + 1 ))
done
make encrypt.format=aes
fill
same image.qcow2 passphrase=+secret
make encrypt.format=aes,compat=0.10
fill
same image.qcow2 passphrase=+secret
echo "$nr ciphers of LUKS, and AES"

# Compressed clusters are not encrypted, and snapshots are as the disk is.
opts=driver=qcow2,file.filename=image.qcow2,encrypt.key-secret=s
cp empty.qcow2 image.qcow2
qemu-img convert -c $secret -f raw -n disk --target-image-opts $opts
"$abs_top_builddir/tool/nbdkit-qcow2-tool" map image.qcow2 | grep -q compressed
same image.qcow2 passphrase=+secret
cp empty.qcow2 image.qcow2
fill
cp image.qcow2 base.qcow2
qemu-img snapshot $secret --image-opts -c one $opts 2> /dev/null ||
    qemu-io $secret --image-opts $opts -c 'read 0 512' > /dev/null
qemu-io $secret --image-opts $opts -c 'write -P 7 1000 70000' > /dev/null
if "$NBDKIT" -r -U - "$PLUGIN" image.qcow2 passphrase=+secret \
    --run 'nbdinfo --list "$uri"' | grep -q snapshot/one; then
    "$NBDKIT" -r -U - "$PLUGIN" image.qcow2 passphrase=+secret --run \
        'nbdcopy "nbd+unix:///snapshot/one?socket=$unixsocket" copy'
    cmp disk copy
fi

# Wrong or missing passphrases; and those without a use.
refused 'it is encrypted \(LUKS\), and its passphrase is missing: say pass' \
    image.qcow2
refused 'the passphrase is wrong: it fits none' image.qcow2 passphrase=+other
refused 'the passphrase is wrong' image.qcow2 passphrase=the-passphrase-itsel
: > empty
refused 'the passphrase is wrong' image.qcow2 passphrase=+empty
refused 'given twice' image.qcow2 passphrase=+secret passphrase=+secret
refused 'No such file' image.qcow2 passphrase=+nothing
"$PYTHON" -c 'print("x" * 5000)' > long
refused 'longer than' image.qcow2 passphrase=+long
printf 'a\0b' > zero
refused 'zero byte' image.qcow2 passphrase=+zero
qemu-img create -q -f qcow2 plain.qcow2 1M
refused 'passphrase= was given, but the image is not encrypted' \
    plain.qcow2 passphrase=+secret
refused 'no backing file is encrypted' \
    image.qcow2 passphrase=+secret backing-passphrase=+secret

# Other ways to say it: a line of a file, a descriptor.
cp base.qcow2 image.qcow2
printf 'the-passphrase-itself\nand more\n' > lines
same image.qcow2 passphrase=+lines
exec 9< secret
"$NBDKIT" -r -U - "$PLUGIN" image.qcow2 passphrase=-9 \
    --run 'nbdcopy "$uri" copy'
exec 9<&-
cmp disk copy

# A second slot.
if quickly qemu-img amend $secret --object secret,id=t,file=other --image-opts $opts \
    -o encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10 \
    > amended 2>&1
then
    same image.qcow2 passphrase=+other
    same image.qcow2 passphrase=+secret
fi

# Chains: any layer may be encrypted, each with its own.
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -u middle.qcow2 $size
quickly qemu-img create -q --object secret,id=s,file=other -f qcow2 -b middle.qcow2 \
    -F qcow2 -u \
    -o $luks,encrypt.cipher-mode=cbc,encrypt.hash-alg=sha384,encrypt.key-secret=s \
    top.qcow2 $size
same middle.qcow2 follow=beneath backing-passphrase=+secret
same top.qcow2 follow=beneath passphrase=+other backing-passphrase=+secret
same top.qcow2 follow=beneath passphrase=+other backing-passphrase=+other \
    backing-passphrase=+secret
refused 'base.qcow2: the passphrase is wrong.*backing file of' \
    top.qcow2 follow=beneath passphrase=+other
refused 'passphrase= was given, but the image is not' \
    middle.qcow2 follow=beneath passphrase=+secret

# A loop is one though what it comes back to is encrypted.
refused 'the backing chain is a loop' base.qcow2 backing=base.qcow2 \
    backing-format=qcow2 passphrase=+secret

# Damaged headers; where it is, the header extension says.
patched ()
{
    cp base.qcow2 damaged.qcow2
    "$PYTHON" - "$1" "$2" <<'EOF'
import struct, sys
at, hexes = int(sys.argv[1]), sys.argv[2]
with open("damaged.qcow2", "r+b") as f:
    d = f.read(65536)
    off, n = struct.unpack(">QQ", d[d.index(b"\x05\x37\xbe\x77") + 8:][:16])
    f.seek(off + at)
    f.write(bytes.fromhex(hexes))
EOF
}
# And ciphers that GnuTLS has not.
patched 108 00000030
refused 'key of 48 bytes.*not supported' damaged.qcow2 passphrase=+secret
patched 8 73657270656e7400
refused 'cipher "serpent".*not supported' damaged.qcow2 passphrase=+secret
patched 40 6374722d706c61696e363400
refused 'cipher mode "ctr.*not supported' damaged.qcow2 passphrase=+secret
patched 0 00
refused 'no LUKS header at offset 0x' damaged.qcow2 passphrase=+secret
patched 164 ffffffff
refused 'key slot 0 would take [0-9]* seconds.*the limit' damaged.qcow2 passphrase=+secret
patched 252 0000ffff
refused 'stripes' damaged.qcow2 passphrase=+secret
patched 248 ffffffff
refused 'its material' damaged.qcow2 passphrase=+secret
patched 112 00000000
refused 'the passphrase is wrong' damaged.qcow2 passphrase=+secret
patched 10000 00000000
refused 'the passphrase is wrong' damaged.qcow2 passphrase=+secret
truncate -s 270k damaged.qcow2
refused 'LUKS header at offset .* is outside the file|beyond|outside' \
    damaged.qcow2 passphrase=+secret

# The data in a file of its own; of AES, too.  QEMU says of one that is
# encrypted that it is a raw image of the disk, if it is told to.  The check,
# and info, need neither the file nor the passphrase.
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
for kind in aes luks,encrypt.iter-time=10,data_file_raw=on; do
    rm -f data
    make "encrypt.format=$kind,data_file=data" apart.qcow2
    fill apart.qcow2
    same apart.qcow2 passphrase=+secret follow=beneath
    same apart.qcow2 passphrase=+secret data-file=data
    refused 'which was not allowed' apart.qcow2 passphrase=+secret
    "$tool" check apart.qcow2 > /dev/null || die "check: $?"
    "$tool" info apart.qcow2 | grep -q 'encryption' || die "info"
done
refused 'apart.qcow2: .*its passphrase is missing' apart.qcow2 follow=beneath
refused 'the passphrase is wrong' apart.qcow2 passphrase=+other follow=beneath
refused 'data: it is the external data file of .*apart' apart.qcow2 \
    passphrase=+secret data-file=data backing=data backing-format=raw
truncate -s 300k data
"$NBDKIT" -r -U - "$PLUGIN" apart.qcow2 passphrase=+secret data-file=data --run \
    'nbdcopy "$uri" null:' 2> errors && die "what is missing was read"
grep -q 'beyond the end of the data file\|data file' errors || die "$(cat errors)"

# On a server it is read through that: see storage/crypt.h.
if "$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_libnbd=[0-9]'; then
    NBDKIT="$(command -v nbdkit)" start_nbdkit -r file base.qcow2
    same "uri=$uri" passphrase=+secret
    refused 'its passphrase is missing' "uri=$uri"
    stop_nbdkit "$pid"
fi

# The tool needs no passphrase, since it reads no data.
"$tool" check top.qcow2
"$tool" check base.qcow2
"$tool" info base.qcow2 | grep -q 'encryption.*LUKS'
"$tool" map --follow=beneath top.qcow2 | grep -q data
echo "all read"
