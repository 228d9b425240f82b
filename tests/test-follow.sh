#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Which files an image can make the server open: follow=, backing= and
# backing-format=, and where names are looked up.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

cd "$tmp"
mkdir -p d/sub/deeper out
seq 1 150000 > d/base.raw
truncate -s 1M d/base.raw
cp d/base.raw d/sub/base.raw
cp d/base.raw out/base.raw
seq 9 200000 | tail -c 500000 > d/other.raw
truncate -s 1M d/other.raw

# overlay FILE NAME [FORMAT]: an image with this backing file, not looked at.
overlay ()
{
    if test $# -gt 2; then
        qemu-img create -q -f qcow2 -u -b "$2" -F "$3" "$1" 1M
    else
        "$PYTHON" -c 'import sys
from qcow2make import Qcow2
Qcow2(sys.argv[1], 1 << 20, backing_name=sys.argv[2]).write()' "$1" "$2"
    fi
}

# served EXPECTED NBDKIT-ARG...: the disk is served and equals this file.
served ()
{
    local want="$1"
    shift
    rm -f "$tmp/copy"
    timeout -k 10 60 "$NBDKIT" -U - "$PLUGIN" "$@" \
        --run "nbdcopy \"\$uri\" '$tmp/copy'" || die "not served: $*"
    cmp "$tmp/copy" "$want" || die "wrong data: $*"
}

refused ()
{
    local regex="$1"
    shift
    expect_refusal "$regex" "$PLUGIN" "$@"
}

beneath='not beneath|refused by follow=beneath'

# --- The default follows nothing, and says what could be done.
overlay d/rel.qcow2 base.raw raw
for word in follow=none follow=beneath follow=any backing=; do
    refused "rel\.qcow2.*base\.raw.*$word" d/rel.qcow2
    refused "rel\.qcow2.*base\.raw.*$word" d/rel.qcow2 follow=none
done
refused 'follow=everything' d/rel.qcow2 follow=everything

# --- follow=beneath: under the image's folder, however it is said.
served d/base.raw d/rel.qcow2 follow=beneath
served d/base.raw "file=$tmp/d/rel.qcow2" follow=beneath
(cd d && served base.raw rel.qcow2 follow=beneath)
(cd d/sub && served ../base.raw ../rel.qcow2 follow=beneath)

overlay d/inside.qcow2 sub/../base.raw raw
served d/base.raw d/inside.qcow2 follow=beneath
overlay d/below.qcow2 ./sub//base.raw raw
served d/base.raw d/below.qcow2 follow=beneath

overlay d/outside.qcow2 ../out/base.raw raw
refused "out/base\.raw.*($beneath)" d/outside.qcow2 follow=beneath
# out of the folder and in again is refused as well
overlay d/around.qcow2 ../d/base.raw raw
refused "base\.raw.*($beneath)" d/around.qcow2 follow=beneath

ln -s ../out/base.raw d/link-out.raw
overlay d/by-link-out.qcow2 link-out.raw raw
refused "link-out\.raw.*($beneath)" d/by-link-out.qcow2 follow=beneath
ln -s "$tmp/out" d/folder-out
overlay d/by-folder-out.qcow2 folder-out/base.raw raw
refused "base\.raw.*($beneath)" d/by-folder-out.qcow2 follow=beneath
ln -s sub/base.raw d/link-in.raw
overlay d/by-link-in.qcow2 link-in.raw raw
served d/base.raw d/by-link-in.qcow2 follow=beneath

overlay d/absolute.qcow2 "$tmp/d/sub/base.raw" raw
served d/base.raw d/absolute.qcow2 follow=beneath
overlay d/absolute-out.qcow2 "$tmp/out/base.raw" raw
refused "out/base\.raw.*($beneath)" d/absolute-out.qcow2 follow=beneath
overlay d/absolute-dots.qcow2 "$tmp/d/../out/base.raw" raw
refused "out/base\.raw.*($beneath)" d/absolute-dots.qcow2 follow=beneath
# a folder whose name only begins alike
mkdir dd
cp d/base.raw dd/base.raw
overlay d/absolute-alike.qcow2 "$tmp/dd/base.raw" raw
refused "dd/base\.raw.*($beneath)" d/absolute-alike.qcow2 follow=beneath

overlay d/missing.qcow2 nowhere.raw raw
for follow in beneath any; do
    refused 'nowhere\.raw.*No such file.*missing\.qcow2' \
        d/missing.qcow2 follow=$follow
done

# --- A chain through folders: each name is relative to the file it is in,
# and the border stays that of the first.
overlay d/sub/deeper/low.qcow2 ../../base.raw raw
overlay d/sub/mid.qcow2 deeper/low.qcow2 qcow2
overlay d/top.qcow2 sub/mid.qcow2 qcow2
served d/base.raw d/top.qcow2 follow=beneath
refused "base\.raw.*($beneath)" d/sub/mid.qcow2 follow=beneath
overlay d/sub/deeper/leaves.qcow2 ../../../out/base.raw raw
overlay d/top-leaves.qcow2 sub/deeper/leaves.qcow2 qcow2
refused "out/base\.raw.*($beneath)" d/top-leaves.qcow2 follow=beneath

# --- follow=any: every plain path.
for i in rel inside outside around by-link-out by-folder-out by-link-in \
         absolute absolute-out absolute-dots absolute-alike top top-leaves
do
    served d/base.raw d/$i.qcow2 follow=any
done

# --- What is no plain path is never followed.
n=0
for name in 'json:{"driver":"nbd","host":"localhost"}' \
            nbd://localhost:1/ nbd:unix:/nonexistent https://localhost/x \
            fat:. a:b host_device:/dev/null
do
    n=$(( n + 1 ))
    overlay d/protocol$n.qcow2 "$name" raw 2>/dev/null ||
        "$PYTHON" -c 'import sys
from qcow2make import Qcow2
Qcow2(sys.argv[1], 1 << 20, backing_name=sys.argv[2],
      backing_format="raw").write()' d/protocol$n.qcow2 "$name"
    for follow in none beneath any; do
        refused "protocol$n\.qcow2.*only plain paths" \
            d/protocol$n.qcow2 follow=$follow
    done
done
# A colon behind a slash is a part of a file's name.
cp d/base.raw d/a:b
overlay d/colon.qcow2 ./a:b raw
served d/base.raw d/colon.qcow2 follow=beneath

mkfifo d/fifo
overlay d/by-fifo.qcow2 fifo raw
overlay d/by-folder.qcow2 sub raw
for follow in beneath any; do
    refused 'fifo: neither a regular file nor a block device' \
        d/by-fifo.qcow2 follow=$follow
    refused 'sub: neither a regular file nor a block device' \
        d/by-folder.qcow2 follow=$follow
done
overlay d/by-device.qcow2 /dev/zero raw
refused '/dev/zero: neither a regular file nor a block device' \
    d/by-device.qcow2 follow=any

# --- Loops.
overlay d/one.qcow2 two.qcow2 qcow2
overlay d/two.qcow2 one.qcow2 qcow2
overlay d/self.qcow2 self.qcow2 qcow2
overlay d/self-raw.qcow2 self-raw.qcow2 raw
for follow in beneath any; do
    refused 'one\.qcow2.*loop|loop.*one\.qcow2' d/one.qcow2 follow=$follow
    refused 'self\.qcow2.*loop' d/self.qcow2 follow=$follow
    refused 'self-raw\.qcow2.*loop' d/self-raw.qcow2 follow=$follow
done
refused 'rel\.qcow2.*loop' d/rel.qcow2 backing=d/rel.qcow2

# --- backing= takes the place of what the image says.  It needs no follow=.
served d/other.raw d/rel.qcow2 backing=d/other.raw
served d/other.raw d/rel.qcow2 backing=d/other.raw follow=none
served d/other.raw d/absolute-out.qcow2 "backing=$tmp/d/other.raw"
served d/other.raw d/missing.qcow2 backing=d/other.raw follow=beneath
served out/base.raw d/rel.qcow2 backing=out/base.raw follow=beneath
served d/other.raw d/protocol1.qcow2 backing=d/other.raw
served d/other.raw d/self.qcow2 backing=d/other.raw backing-format=raw
(cd d/sub && served ../other.raw ../rel.qcow2 backing=../other.raw)
# The name of a file of its own: what looks like a protocol is none here.
(cd d && served base.raw rel.qcow2 backing=a:b)
# What that file names in turn does need it.
refused 'mid\.qcow2.*follow=none' d/rel.qcow2 backing=d/sub/mid.qcow2 \
    backing-format=qcow2
served d/base.raw d/rel.qcow2 backing=d/top.qcow2 backing-format=qcow2 \
    follow=beneath
# An image without a backing file can be given one.
qemu-img create -q -f qcow2 d/alone.qcow2 1M
served d/other.raw d/alone.qcow2 backing=d/other.raw backing-format=raw
refused 'format' d/alone.qcow2 backing=d/other.raw
refused 'nowhere\.raw: No such file' d/rel.qcow2 backing=d/nowhere.raw
refused 'backing.*twice' d/rel.qcow2 backing=d/other.raw backing=d/base.raw

# --- Formats are never guessed.
overlay d/unsaid.qcow2 base.raw
for follow in beneath any; do
    refused 'unsaid\.qcow2.*backing-format=raw' d/unsaid.qcow2 follow=$follow
done
served d/base.raw d/unsaid.qcow2 follow=beneath backing-format=raw
refused 'base\.raw.*(not a qcow2|magic)' d/unsaid.qcow2 follow=beneath \
    backing-format=qcow2
# the user's word counts more than the image's
refused 'base\.raw.*(not a qcow2|magic)' d/rel.qcow2 follow=beneath \
    backing-format=qcow2
overlay d/said-raw.qcow2 alone.qcow2 raw
truncate -s 1M d/plain
cp d/alone.qcow2 d/as-raw
truncate -s 1M d/as-raw
served d/as-raw d/said-raw.qcow2 follow=beneath
served d/plain d/said-raw.qcow2 follow=beneath backing-format=qcow2
# it is about the first backing file only
served d/base.raw d/top.qcow2 follow=beneath backing-format=qcow2
for format in vmdk QCOW2 '"' qcow; do
    "$PYTHON" -c 'import sys
from qcow2make import Qcow2
Qcow2(sys.argv[1], 1 << 20, backing_name="base.raw",
      backing_format=sys.argv[2]).write()' d/strange.qcow2 "$format"
    refused "strange\.qcow2.*\"$format\".*only raw, qcow2 and qed" \
        d/strange.qcow2 follow=beneath
    served d/base.raw d/strange.qcow2 follow=beneath backing-format=raw
    refused "backing-format=$format" d/rel.qcow2 follow=beneath \
        backing-format="$format"
done
refused 'backing-format=' d/rel.qcow2 follow=beneath backing-format=
for format in raw qcow2; do
    refused 'alone\.qcow2.*no backing file' d/alone.qcow2 \
        backing-format=$format
done

# --- 256 files, not one more.
"$PYTHON" -c 'from filled import fill
from qcow2make import Qcow2
below = None
for n in range(257):
    img = Qcow2("d/t%d.qcow2" % n, 1 << 18, cluster_bits=9, seed=n,
                backing_name="t%d.qcow2" % (n - 1) if n else None,
                backing_format="qcow2" if n else None)
    if n in (0, 100):
        img.data(n)
    img.write()
want = bytearray(1 << 18)
for n in (0, 100):
    want[n << 9:(n + 1) << 9] = Qcow2("x", 0, cluster_bits=9,
                                      seed=n).pattern(n)
open("d/tower", "wb").write(want)'
served d/tower d/t255.qcow2 follow=beneath
served d/tower d/t255.qcow2 follow=any
refused 'deeper than 256' d/t256.qcow2 follow=beneath
refused 'deeper than 256' d/t256.qcow2 follow=any

# --- Names are relative to the folder by which the image was named, also
# where that names a link to it.
mkdir other
ln -s ../d/rel.qcow2 other/link.qcow2
cp d/other.raw other/base.raw
served d/other.raw other/link.qcow2 follow=beneath
served d/other.raw other/link.qcow2 follow=any
# A link to the folder is the folder.
ln -s d to-d
served d/base.raw to-d/rel.qcow2 follow=beneath
served d/base.raw to-d/absolute.qcow2 follow=beneath
served d/base.raw to-d/top.qcow2 follow=beneath

# --- In the background, where nbdkit leaves the folder it was started in.
(cd d && "$NBDKIT" -U "$tmp/daemon.sock" -P "$tmp/daemon.pid" \
    "$PLUGIN" ./top.qcow2 follow=beneath > "$tmp/daemon.log" 2>&1 </dev/null)
wait_until test -s daemon.pid
daemon="$(cat daemon.pid)"
_pids+=("$daemon")
test "$(readlink "/proc/$daemon/cwd")" != "$tmp/d" ||
    die "nbdkit is still in the folder of the image"
nbdcopy "nbd+unix:///?socket=$tmp/daemon.sock" copy
cmp copy d/base.raw
kill "$daemon"
_gone "$daemon" || die "nbdkit does not end"
# ... and a refusal is known before that.
status=0
(cd d && "$NBDKIT" -U "$tmp/refused.sock" -P "$tmp/refused.pid" \
    "$PLUGIN" top.qcow2 > "$tmp/refused.out" 2>&1 </dev/null) || status=$?
test $status -ne 0 || die "the refusal is not in the exit status"
grep -q 'follow=none' refused.out
test ! -s refused.pid
