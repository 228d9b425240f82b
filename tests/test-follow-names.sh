#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Names of backing files in file: and json: that are nothing but a path are
# followed as a plain path is, through the same gate; QEMU reads the same.
# Anything more in them is refused by its name.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

cd "$tmp"
mkdir -p d out
seq 1 150000 > d/base.raw
truncate -s 1M d/base.raw
cp d/base.raw out/base.raw
qemu-img convert -f raw -O qcow2 d/base.raw d/base.qcow2

# overlay NAME FORMAT: an image with this backing file, not looked at.
overlay ()
{
    "$PYTHON" -c 'import sys
from qcow2make import Qcow2
Qcow2("d/o.qcow2", 1 << 20, backing_name=sys.argv[1],
      backing_format=sys.argv[2] or None).write()' "$1" "$2"
}

# followed NAME [FORMAT]: in no folder but that of the image, where QEMU takes
# relative paths for the same.
followed ()
{
    overlay "$1" "${2-}"
    expect_refusal 'o\.qcow2: its backing file is.*follow=none' \
        "$PLUGIN" d/o.qcow2
    for follow in beneath any; do
        rm -f copy
        "$NBDKIT" -U - "$PLUGIN" d/o.qcow2 follow=$follow \
            --run 'nbdcopy "$uri" copy' || die "not followed: $1"
        cmp copy d/base.raw || die "wrong data: $1"
    done
    (cd d && qemu-img convert -f qcow2 -O raw o.qcow2 ../theirs) ||
        die "QEMU does not follow: $1"
    cmp theirs d/base.raw || die "QEMU has other data: $1"
}

# refused REGEX NAME [FORMAT]
refused ()
{
    overlay "$2" "${3-}"
    for follow in none beneath any; do
        expect_refusal "o\\.qcow2: its backing file is.*$1" \
            "$PLUGIN" d/o.qcow2 follow=$follow
    done
}

followed file:base.raw raw
followed file:base.qcow2 qcow2
followed "file:$tmp/d/base.raw" raw
followed "file://$tmp/d/base.raw" raw
followed 'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}'
followed 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'
followed "json:{'driver':'qcow2','file.filename':'$tmp/d/base.qcow2'}"
followed 'json: {"file.driver": "file", "file.filename": "b\u0061se.qcow2"}' \
    qcow2
followed 'json:{"driver":"file","filename":"base.raw"}'
# What the image records counts more than what is in the name.
followed 'json:{"driver":"raw","file.filename":"base.qcow2"}' qcow2

# The border is that of plain paths.
for name in file:../out/base.raw "file:$tmp/out/base.raw" \
    'json:{"driver":"raw","file.filename":"../out/base.raw"}' \
    'json:{"driver":"file","filename":"'"$tmp"'/out/base.raw"}'
do
    overlay "$name" raw
    expect_refusal 'not beneath|refused by follow=beneath' \
        "$PLUGIN" d/o.qcow2 follow=beneath
    "$NBDKIT" -U - "$PLUGIN" d/o.qcow2 follow=any \
        --run 'nbdcopy "$uri" copy'
    cmp copy out/base.raw
done

# Relative to the image, wherever the server is started.
overlay file:base.raw raw
(cd out && echo wrong > base.raw &&
    "$NBDKIT" -U - "$PLUGIN" ../d/o.qcow2 follow=beneath \
        --run 'nbdcopy "$uri" ../copy')
cmp copy d/base.raw

# Without any format nothing is guessed.
overlay 'json:{"file.filename":"base.raw"}' ''
expect_refusal 'never guessed.*backing-format=raw' "$PLUGIN" d/o.qcow2 \
    follow=any

# More than a path.
refused '"file\.locking" is more' \
    'json:{"driver":"raw","file.filename":"base.raw","file.locking":"off"}'
refused '"file\.locking" is more' \
    'json:{"file":{"filename":"base.raw","locking":"off"}}' raw
refused '"offset" is more' \
    'json:{"driver":"raw","offset":512,"file.filename":"base.raw"}'
refused '"host" is more' 'json:{"driver":"nbd","host":"localhost"}'
refused 'driver "nbd"' 'json:{"driver":"nbd","file.filename":"base.raw"}'
refused 'driver "host_device"' \
    'json:{"driver":"raw","file.driver":"host_device","file.filename":"x"}'
refused 'a string is wanted' 'json:{"file.filename":["base.raw"]}' raw
refused 'an object is wanted' 'json:base.raw' raw
refused 'protocols' nbd:localhost:1 raw
refused 'protocols' fat:. raw
