#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool as who knows qemu-img expects it: its options and words, and
# JSON with the fields that qemu-img has.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

# says STATUS OUT ERR ARG...: exits so, and prints that; - is nothing.
says ()
{
    local status=0 file regex
    "$tool" "${@:4}" > out 2> err || status=$?
    test $status -eq "$1" || die "exits with $status, not $1: ${*:4}: $(cat err)"
    for file in out err; do
        regex="$2"
        test $file = out || regex="$3"
        if test "$regex" = -; then
            test ! -s $file || die "${*:4}: std$file: $(cat $file)"
        else
            grep -Eq -- "$regex" $file ||
                die "${*:4}: '$regex' is not in std$file: $(cat $file)"
        fi
    done
}

cd "$tmp"
qemu-img create -q -f qcow2 base.qcow2 8M
qemu-io -f qcow2 -c 'write 0 128k' -c 'write -z 1M 192k' base.qcow2 > /dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 image.qcow2 16M
qemu-io -f qcow2 -c 'write -z 2M 64k' -c 'write 3M 64k' image.qcow2 > /dev/null
qemu-img create -q -f qcow2 big.qcow2 1G
cp big.qcow2 bad.qcow2
printf '\0' | dd of=bad.qcow2 bs=1 seek=$(( 0x20001 )) conv=notrunc status=none

# --- Help.
says 0 '^Usage: nbdkit-qcow2-tool COMMAND' - help
says 0 '^Usage: nbdkit-qcow2-tool COMMAND' - --help
says 0 '^Usage: nbdkit-qcow2-tool check ' - help check
says 0 '^Usage: nbdkit-qcow2-tool info ' - help info
says 0 '^Usage: nbdkit-qcow2-tool map ' - help map
says 0 '^Usage: nbdkit-qcow2-tool measure ' - help measure
says 0 '^Usage: nbdkit-qcow2-tool measure ' - measure -l one --help
says 0 '^Usage: nbdkit-qcow2-tool snapshot ' - help snapshot
says 0 '^Usage: nbdkit-qcow2-tool compact ' - help compact
says 0 '^Usage: nbdkit-qcow2-tool commit ' - help commit
says 0 '^Usage: nbdkit-qcow2-tool commit ' - commit -d --help
says 1 - "no such command 'convert'" help convert
says 1 - 'help takes one command' help check map

says 0 '^Usage: nbdkit-qcow2-tool snapshot ' - snapshot --help
says 0 '^Usage: nbdkit-qcow2-tool resize ' - resize --shrink --help
says 0 '^  -d, --delete=NAME  ' - snapshot --help
says 0 'bitmap/NAME or ' - increment --help

# --- A size may look like an option, and stand before or after others.
qemu-img create -q -f qcow2 sized.qcow2 8M
for args in '7 sized.qcow2 -1M --shrink' '9 sized.qcow2 +2M' \
        '10 +1M sized.qcow2' '6 --shrink sized.qcow2 6M' \
        '5 sized.qcow2 5M --shrink'; do
    read -r now args <<<"$args"
    # shellcheck disable=SC2086
    says 0 '^Image resized' - -f qcow2 resize $args
    test "$(qemu-img info --output=json sized.qcow2 |
        jq '."virtual-size"')" -eq $((now << 20)) ||
        die "resize $args: another size"
done
says 1 - 'a size is wanted' resize --shrink sized.qcow2
says 1 - 'an image is wanted' resize -1M
says 1 - 'only with -l' snapshot -c one --output=json sized.qcow2

# --- What is wrong with the command line.
says 1 - 'a command and an image are wanted'
says 1 - "no such command 'create': nbdkit qcow2 IMAGE create=true" \
    create big.qcow2 1G
says 1 - "no such command 'convert': nbdcopy copies" convert
says 1 - "Try .nbdkit-qcow2-tool help resize'" resize disk.qcow2
says 1 - "Try .nbdkit-qcow2-tool help resize'" resize --grow disk.qcow2 1G
says 1 - "Try .nbdkit-qcow2-tool --help'" frobnicate --grow disk.qcow2
says 1 - 'check: an image is wanted' check
says 1 - 'check: one image at a time' check big.qcow2 image.qcow2
says 1 - 'info: one image at a time' info big.qcow2 image.qcow2
says 1 - '-f must be qcow2 or qed: raw files are for measure' \
    check -f raw big.qcow2
says 1 - '-f must be qcow2 or qed: other formats' check -f vdi big.qcow2

# --- Options of qemu-img.
for command in check info map; do
    says 0 . - $command -f qcow2 big.qcow2
done
says 0 - - check -q big.qcow2
says 0 - - check --quiet --output=json big.qcow2
says 2 - - check -q bad.qcow2
says 1 - 'No such file' check -q none.qcow2

# --- Its own options are recommended, not parameters of the plugin.
says 1 - 'refused by --follow=none, .*--follow=beneath .*--follow=any' \
    map image.qcow2
mkdir sub
qemu-img create -q -u -f qcow2 -b ../base.qcow2 -F qcow2 sub/out.qcow2 8M
says 1 - 'not beneath the directory sub: refused by --follow=beneath' \
    map --follow=beneath sub/out.qcow2
qemu-img create -q -u -f qcow2 -b base.qcow2 unsaid.qcow2 8M 2> /dev/null ||
    "$PYTHON" -c 'from qcow2make import Qcow2
Qcow2("unsaid.qcow2", 8 << 20, backing_name="base.qcow2").write()'
says 1 - 'never guessed: record it with rebase -u$' \
    map --follow=any unsaid.qcow2
qemu_holds big.qcow2
for command in check info map; do
    says 1 - 'another process is writing it .*: -U reads it all the same$' \
        $command big.qcow2
    says 0 . - $command -U big.qcow2
done
qemu_lets_go

# --- info: all or nothing, and sizes for people as qemu-img has them.
says 0 '^virtual-size +1 GiB \(1073741824 bytes\)$' - info big.qcow2
for field in 'virtual size' 'disk size'; do
    size="$(qemu-img info big.qcow2 | sed -n "s/^$field: //p")"
    "$tool" info big.qcow2 | grep -E '^(virtual|actual)-size ' |
        grep -qF " $size" || die "info does not have the $field $size"
done
for file in big.qcow2 image.qcow2; do
    qemu-img info --output=json $file > q
    "$tool" info --output=json $file > t
    "$PYTHON" -c 'import json
q, t = json.load(open("q")), json.load(open("t"))
for key in ("filename", "format", "virtual-size", "actual-size",
            "cluster-size"):
    assert q[key] == t[key], (key, q[key], t[key])'
done
mv base.qcow2 away
says 1 - 'base.qcow2: No such file' info --follow=any image.qcow2
says 1 - 'base.qcow2: No such file' info --follow=any --output=json image.qcow2
mv away base.qcow2
qemu-img snapshot -c one image.qcow2
"$PYTHON" -c 'from qcow2make import patch, be32
patch("image.qcow2", 60, be32(200))
import os
os.truncate("image.qcow2", os.path.getsize("image.qcow2") // 65536 * 65536)'
says 1 - 'snapshot' info image.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 image.qcow2 16M
qemu-io -f qcow2 -c 'write -z 2M 64k' -c 'write 3M 64k' image.qcow2 > /dev/null

# --- map has the fields that qemu-img has, and they say the same.
for file in image.qcow2 big.qcow2 base.qcow2; do
    qemu-img map -f qcow2 --output=json $file > q
    "$tool" map --follow=beneath --output=json $file > t
    "$PYTHON" - <<'PY'
import json

q, t = json.load(open("q")), json.load(open("t"))
for a, b in zip(q, t):
    for key in a:
        assert a[key] == b.get(key), (key, a, b)
    assert set(b) - set(a) <= {"compressed"}, (a, b)
assert len(q) == len(t), (len(q), len(t))
PY
done
