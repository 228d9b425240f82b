#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# create=overwrite: whatever it is that keeps the new image from being served,
# what was there before is there afterwards, and no file is new.

. ./functions.sh

requires_qemu

mkdir "$tmp/in"
cd "$tmp/in"

qemu-img create -q -f qcow2 old.qcow2 1M
qemu-io -f qcow2 -c 'write -P 7 0 64k' old.qcow2 >/dev/null
qemu-img create -q -f qcow2 plain.qcow2 1M
qemu-img create -q -f raw disk.raw 1M

# kept REGEX ARG...: it is refused with this message.
kept ()
{
    local regex="$1"
    shift
    fingerprint old.qcow2 > ../before
    ls -A > ../files
    expect_refusal "$regex" "$@" "$PLUGIN" old.qcow2 create=overwrite \
        $parameters
    sha256sum --quiet -c <(head -1 ../before) || die "$*, $parameters: lost"
    ls -A | cmp - ../files || die "$*, $parameters: files: $(ls -A)"
}

# --- What is wrong with the backing file.
on="backing-format=qcow2 backing"
parameters="$on=plain.qcow2 backing-passphrase=x"
kept 'no backing file is encrypted'
if "$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_encryption=luks'; then
    printf 'right' > ../secret
    quickly qemu-img create -q -f qcow2 --object secret,id=s,file=../secret \
        -o encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s \
        luks.qcow2 1M
    parameters="$on=luks.qcow2 backing-passphrase=wrong"
    kept 'the passphrase is wrong'
    parameters="$on=luks.qcow2"
    kept 'its passphrase is missing'
fi
parameters='backing=disk.raw backing-format=raw backing-format=qcow2'
kept 'no backing file for'

# A chain of 256, on which one more can't lie.
mkdir ../deep
"$PYTHON" - <<'PY'
import subprocess
subprocess.run("qemu-img create -q -f qcow2 ../deep/base.qcow2 1M && "
               "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "
               "../deep/n000.qcow2", shell=True, check=True)
image = open("../deep/n000.qcow2", "rb").read()
assert image.count(b"base.qcow2") == 1
for i in range(1, 255):
    with open("../deep/n%03d.qcow2" % i, "wb") as f:
        f.write(image.replace(b"base.qcow2", b"n%03d.qcow2" % (i - 1)))
PY
parameters="$on=../deep/n254.qcow2 follow=beneath"
kept 'deeper than 256'
parameters="$on=../deep/n253.qcow2 follow=beneath"
cp old.qcow2 ../saved
"$NBDKIT" -U - "$PLUGIN" old.qcow2 create=overwrite $parameters --run true
qemu-img info old.qcow2 | grep -q 'backing file: ../deep/n253.qcow2'
cp ../saved old.qcow2

# Another process writes it.
parameters='backing=disk.raw backing-format=raw'
qemu_holds disk.raw -f raw
kept 'disk.raw: another process is writing it'
qemu_lets_go
parameters="$on=plain.qcow2"
qemu_holds plain.qcow2
kept 'plain.qcow2: another process is writing it'
qemu_lets_go

# --- What comes after the new image is complete, be it of nbdkit or a filter.
parameters='size=3M'
kept '' -U /nowhere/at/all
kept '' --filter=log logfile=/nowhere/at/all
kept '' --tls=require --tls-certificates=/nowhere
mkdir ../links
ln -s ../in/old.qcow2 ../links/link
fingerprint old.qcow2 > ../before
! "$NBDKIT" -f -U /nowhere/at/all "$PLUGIN" ../links/link create=overwrite \
    size=3M 2>/dev/null || die 'it was served'
sha256sum --quiet -c <(head -1 ../before)
test -L ../links/link
test "$(ls -A ../links)" = link

# --- Once nbdkit has started nothing is left of it.
"$NBDKIT" -U - "$PLUGIN" old.qcow2 create=overwrite size=3M --run true
check_clean old.qcow2
qemu-img info old.qcow2 | grep -q 'virtual size: 3 MiB'
ls -A | cmp - ../files || die "files: $(ls -A)"
