#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool compact makes a file as small as its clusters, and refuses what
# it must not touch without changing it.

. ./functions.sh

requires_qemu
requires "$PYTHON" -c 'import json'
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"

"$PYTHON" "$testsrc/manage-compact.py" "$tool"

cd "$tmp"

# fresh [OPTION...]: an image with free clusters before others.
fresh ()
{
    qemu-img create -q -f qcow2 "$@" i.qcow2 16M
    qemu-io -f qcow2 -c 'write -P 1 0 8M' -c 'write -P 2 8M 4M' \
        -c 'discard 0 7M' i.qcow2 > out
}

# refuses REGEX ARG...: fails so, and the image i.qcow2 stays as it is.
refuses ()
{
    cp i.qcow2 before.qcow2
    if "$tool" compact "${@:2}" i.qcow2 > out 2> err; then
        die "not refused: ${*:2}"
    fi
    grep -Eq -- "$1" err || die "${*:2}: $(cat err)"
    cmp i.qcow2 before.qcow2 || die "changed: ${*:2}"
}

# patch_image OFFSET BYTES
patch_image ()
{
    printf "$2" | dd of=i.qcow2 bs=1 seek=$(( $1 )) conv=notrunc status=none
}

# holds: what fresh made is there.
holds ()
{
    check_clean i.qcow2
    qemu-io -f qcow2 -r -c 'read -P 0 0 7M' -c 'read -P 1 7M 1M' \
        -c 'read -P 2 8M 4M' -c 'read -P 0 12M 4M' i.qcow2 > out
    if grep -q failed out; then die "it has changed: $(cat out)"; fi
}

fresh
was="$(stat -c %s i.qcow2)"
"$tool" compact -p i.qcow2 > out 2> err
is="$(stat -c %s i.qcow2)"
grep -q "^Image compacted: $is bytes, of $was\\.$" out ||
    die "it says: $(cat out)"
grep -q '100%' err || die "no progress: $(cat err)"
test "$is" -lt 6000000 || die "it has $is bytes"
holds

# What has no clusters any more takes no refcount blocks, either: some 64 of them,
# at the end.
qemu-img create -q -f qcow2 -o cluster_size=512 i.qcow2 16M
qemu-io -f qcow2 -c 'write -P 1 0 8M' -c 'discard 0 8M' -c 'write -P 2 0 1k' \
    i.qcow2 > out
"$tool" compact -q i.qcow2 > out
test ! -s out || die "not quiet: $(cat out)"
check_clean i.qcow2
test "$(stat -c %s i.qcow2)" -lt 200000 || die "$(stat -c %s i.qcow2) bytes"
qemu-io -f qcow2 -r -c 'read -P 2 0 1k' -c 'read -P 0 1k 8M' i.qcow2 > out
if grep -q failed out; then die "it has changed: $(cat out)"; fi

# A file that is only too long, and one that is cut short within its last cluster.
fresh
"$tool" compact -q i.qcow2
is="$(stat -c %s i.qcow2)"
truncate -s +3M i.qcow2
"$tool" compact -q i.qcow2
test "$(stat -c %s i.qcow2)" -eq "$is" || die "not cut off"
holds

# What is refused.
fresh
refuses 'does not take --follow' --follow=any
refuses 'does not take --output' --output=json
refuses 'does not take --force-share' -U
patch_image 79 '\1'
refuses 'marked as dirty'
patch_image 79 '\2'
refuses 'marked as corrupt'
fresh
patch_image 0x20015 '\1'
refuses 'leaked clusters, which can.t move.*--repair'
fresh
patch_image 0x20007 '\0'
refuses 'damaged'
fresh -o data_file=d.raw
refuses 'external data file'
if quickly qemu-img create -q -f qcow2 --object secret,id=s,data=x \
        -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 \
        i.qcow2 4M 2> err; then
    refuses 'passphrase is missing.*--passphrase='
fi
qemu-img create -q -f qed i.qcow2 1M
refuses 'it is a qed image'
fresh
"$PYTHON" - << 'EOF'
import struct
with open("i.qcow2", "r+b") as f: # an extension that nobody knows
    f.seek(112)
    f.write(struct.pack(">IIQQ", 0x12345678, 8, 1, 0))
EOF
refuses 'contents that are unknown'

# Interrupted, as soon as it says how far it is.
fresh
"$PYTHON" - "$tool" << 'EOF'
import os, signal, subprocess, sys
p = subprocess.Popen([sys.argv[1], "compact", "-p", "i.qcow2"],
                     stderr=subprocess.PIPE, bufsize=0, stdout=subprocess.PIPE)
p.stderr.read(3)
os.kill(p.pid, signal.SIGINT)
_, err = p.communicate()
if p.returncode == 1:
    assert b"interrupted" in err, err
else:
    assert p.returncode == 0 and b"100%" in err, (p.returncode, err)
print("status", p.returncode)
EOF
holds

# Locks: nobody else may have it open.
fresh
qemu_holds i.qcow2
refuses 'another process'
qemu_lets_go
