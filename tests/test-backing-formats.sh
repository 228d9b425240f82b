#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Chains of old images, none of which records the format of what is below it:
# backing-format= for each layer, by its place; and what is said to who has
# not given enough, or too many.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

cd "$tmp"
seq 1 150000 > base.raw
truncate -s 1M base.raw
"$PYTHON" -c 'from qcow2make import Qcow2
for name, below, recorded in (
        ("low", "base.raw", None), ("mid", "low.qcow2", None),
        ("top", "mid.qcow2", None), ("said", "mid.qcow2", "qcow2")):
    Qcow2(name + ".qcow2", 1 << 20, backing_name=below,
          backing_format=recorded).write()'

# expected by QEMU, which is told as well
qemu-img convert --image-opts -O raw \
    'driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=mid.qcow2,backing.backing.driver=qcow2,backing.backing.file.filename=low.qcow2,backing.backing.backing.driver=raw,backing.backing.backing.file.filename=base.raw' \
    theirs
cmp theirs base.raw

served ()
{
    rm -f copy
    "$NBDKIT" -U - "$PLUGIN" "$@" follow=beneath \
        --run 'nbdcopy "$uri" copy' || die "not served: $*"
    cmp copy base.raw || die "wrong data: $*"
}
q=backing-format=qcow2
r=backing-format=raw

served low.qcow2 $r
served mid.qcow2 $q $r
served top.qcow2 $q $q $r
# A place counts whether its format is recorded or not ...
served said.qcow2 $q $q $r
# ... so that one which is recorded doesn't move those below.
expect_refusal 'base\.raw: not a qcow2' "$PLUGIN" said.qcow2 follow=beneath \
    $q $q $q
expect_refusal 'base\.raw: not a qcow2' "$PLUGIN" top.qcow2 follow=beneath \
    $q $q $q

# Each refusal names the file, and says what to give for that one.
expect_refusal '/top\.qcow2: .*never guessed: say backing-format=raw or' \
    "$PLUGIN" top.qcow2 follow=beneath
expect_refusal "/mid\\.qcow2: .*never guessed; .*1 for the backing file above it, .*its own: say $r or $q" \
    "$PLUGIN" top.qcow2 follow=beneath $q
expect_refusal '/mid\.qcow2: .*never guessed' "$PLUGIN" said.qcow2 \
    follow=beneath
expect_refusal "/low\\.qcow2: .*never guessed; .*2 for the backing files above it, .*its own: say $r or" \
    "$PLUGIN" top.qcow2 follow=beneath $q $q

# One too many is a mistake.
expect_refusal "/base\\.raw: it has no backing file for the $q that follows 1 " \
    "$PLUGIN" low.qcow2 follow=beneath $r $q
expect_refusal "/base\\.raw: it has no backing file for the $r that follows 3 " \
    "$PLUGIN" top.qcow2 follow=beneath $q $q $r $r
expect_refusal 'backing-format=vmdk: must be raw, qcow2 or qed' \
    "$PLUGIN" mid.qcow2 follow=beneath $q backing-format=vmdk
many="$("$PYTHON" -c 'print("backing-format=raw " * 256)')"
expect_refusal 'more than 255 times' "$PLUGIN" low.qcow2 $many

# With a backing file of the user's choice the first is for that one.
served mid.qcow2 backing=low.qcow2 $q $r
qemu-img create -q -f qcow2 alone.qcow2 1M
served alone.qcow2 backing=top.qcow2 $q $q $q $r
expect_refusal "/top\\.qcow2: .*1 for the backing file above it, .*its own: say" "$PLUGIN" alone.qcow2 \
    follow=beneath backing=top.qcow2 $q

# A new overlay records its own, and is told of those below.
"$NBDKIT" -U - "$PLUGIN" new.qcow2 create=true backing=mid.qcow2 $q $q $r \
    follow=beneath --run 'nbdcopy "$uri" copy'
cmp copy base.raw
qemu-img info new.qcow2 | grep -q 'backing file format: qcow2'
expect_refusal "/mid\\.qcow2: .*never guessed" "$PLUGIN" another.qcow2 \
    create=true backing=mid.qcow2 $q follow=beneath
test ! -e another.qcow2

# The tool has an option for it.
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
"$tool" map --follow=beneath --backing-format=qcow2 --backing-format=qcow2 \
    --backing-format=raw top.qcow2 | grep -q base.raw
"$tool" info --follow=beneath --backing-format=qcow2 --backing-format=raw \
    mid.qcow2 | grep -q 'base.raw (raw'
if "$tool" check --backing-format=raw top.qcow2 2> err; then
    die "check takes --backing-format"
fi
grep -q 'check does not take --backing-format' err
