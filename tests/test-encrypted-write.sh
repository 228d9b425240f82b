#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random requests to encrypted images of several kinds, by several connections:
# what QEMU deciphers afterwards must be what a model of the disk says, and the
# image clean.  Then QEMU writes, and it is served once more.  Nothing of what
# was written is in the file in the clear, nor in the log; and the passphrase is
# not in the memory of the server (I15).

. ./functions.sh

requires_qemu
requires_python_nbd
requires nbdcopy --version
"$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_encryption=luks' ||
    skip "built without GnuTLS"

cd "$tmp"
words=the-passphrase-itself
printf $words > secret
secret="--object secret,id=s,file=secret"
size=6000128
opts ()
{
    echo "driver=qcow2,file.filename=$1,encrypt.key-secret=s${2-}"
}

# make IMAGE OPTIONS [QEMU-IMG-ARG...]
make ()
{
    local image="$1" options="$2"
    shift 2
    quickly qemu-img create -q $secret -f qcow2 \
        -o "encrypt.key-secret=s,$options" "$@" "$image" $size ||
        die "qemu-img can't make $image: $options"
}

# judge IMAGE OPTS: by QEMU.
judge ()
{
    qemu-img check -q $secret --image-opts "$(opts "$1" "$2")" ||
        die "$1: qemu-img check: $?"
    qemu-img compare -q $secret --image-opts "$(opts "$1" "$2")" \
        driver=raw,file.filename=raw || die "$1 is not what was written"
    "$abs_top_builddir/tool/nbdkit-qcow2-tool" check "$1" > checked ||
        die "$1: $(cat checked)"
}

images=0
again=0
# kind NAME IMAGE CLUSTER GRANULE OPTS [PARAMETER...]: raw has its disk.
kind ()
{
    local name="$1" image="$2" cluster="$3" granule="$4" backing="$5"
    shift 5
    start_nbdkit -t 4 "$PLUGIN" "$image" passphrase=+secret "$@"
    "$PYTHON" "$testsrc/diskclient.py" "$sock" raw "$name" connections=3 \
        cluster=$cluster granule=$granule requests=$(volume 35) ||
        die "$name"
    end_process "$pid"
    ! grep -q "$words" "$log" || die "$name: the log has the passphrase"
    judge "$image" "$backing"
    images=$(( images + 1 ))
    # QEMU writes, and reads what it finds: with each cipher, or always.
    case $name in xts | v2-essiv | AES) ;; *)
        test "$(volume 1)" -gt 1 || return 0 ;;
    esac
    qemu-io $secret --image-opts "$(opts "$image" "$backing")" \
        -c 'write -P 5 70001 9000' -c 'write -z 200k 64k' > /dev/null
    qemu-io -f raw raw -c 'write -P 5 70001 9000' -c 'write -z 200k 64k' \
        > /dev/null
    start_nbdkit -t 4 "$PLUGIN" "$image" passphrase=+secret "$@"
    "$PYTHON" "$testsrc/diskclient.py" "$sock" raw "$name again" \
        connections=2 cluster=$cluster granule=$granule \
        requests=$(volume 15) || die "$name again"
    end_process "$pid"
    judge "$image" "$backing"
    again=$(( again + 1 ))
}

# grows IMAGE [DATA]: what the disk's end cuts off of the last cluster is zeros
# once QEMU has made the disk larger; of a copy, which has its last sector
# written here.
grown=0
grows ()
{
    local image="$1" data="${2-}" more= parameter=
    cp "$image" larger.qcow2
    if test -n "$data"; then
        cp "$data" larger.data
        more=,data-file.filename=larger.data parameter=data-file=larger.data
    fi
    start_nbdkit "$PLUGIN" larger.qcow2 passphrase=+secret $parameter
    "$PYTHON" - "$sock" $size <<'EOF'
import sys
import nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 512, int(sys.argv[2]) - 512)
h.flush()
EOF
    end_process "$pid"
    qemu-img resize -q $secret --image-opts "$(opts larger.qcow2 $more)" 6200320
    qemu-io $secret --image-opts "$(opts larger.qcow2 $more)" \
        -c "read -P 120 $(( size - 512 )) 512" \
        -c "read -P 0 $size $(( 6200320 - size ))" > read 2>&1 || true
    ! grep -Eq 'failed|rror' read || die "$image, larger: $(cat read)"
    "$NBDKIT" -r -U - "$PLUGIN" larger.qcow2 passphrase=+secret $parameter \
        --run 'nbdcopy "$uri" all'
    tail -c +$(( size + 1 )) all | cmp -n $(( 6200320 - size )) - /dev/zero ||
        die "$image, larger: not zeros here"
    grown=$(( grown + 1 ))
}

luks=encrypt.format=luks,encrypt.iter-time=10
new () { rm -f raw; truncate -s $size raw; }

make xts.qcow2 $luks
cp xts.qcow2 empty.qcow2
grows xts.qcow2
new
kind xts xts.qcow2 65536 65536 ""
# What QEMU has stored compressed is not encrypted, and is when it is written here
# (I15).
"$PYTHON" -c "print('packed' * $(( size / 6 + 1 )), end='')" | head -c $size > raw
cp empty.qcow2 packed.qcow2
qemu-img convert -c -n $secret -f raw --target-image-opts raw \
    "$(opts packed.qcow2)"
kind compressed packed.qcow2 65536 65536 ""
for image in empty.qcow2 packed.qcow2; do
    expect_refusal "$image: compress=zlib: the image is encrypted, .*the clear" \
        "$PLUGIN" $image passphrase=+secret compress=zlib
done
make sub.qcow2 "$luks,extended_l2=on"
new
kind subclusters sub.qcow2 65536 2048 ""
make old.qcow2 "$luks,cluster_size=512,compat=0.10,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"
new
kind v2-essiv old.qcow2 512 512 ""
make aes.qcow2 encrypt.format=aes
grows aes.qcow2
new
kind AES aes.qcow2 65536 65536 ""
if test "$(volume 1)" -gt 1; then
    make aes-sub.qcow2 encrypt.format=aes,extended_l2=on
    new
    kind AES-subclusters aes-sub.qcow2 65536 2048 ""
fi
cp aes.qcow2 base.qcow2
make aes-over.qcow2 encrypt.format=aes,cluster_size=8k -b base.qcow2 -F qcow2
qemu-img convert $secret --image-opts "$(opts base.qcow2)" -O raw raw
kind AES-over-AES aes-over.qcow2 8192 8192 ,backing.encrypt.key-secret=s \
    follow=beneath
# The data in a file of its own: sectors are numbered by their place in that.
# One that QEMU calls raw can't be so when it is written in part.
make apart.qcow2 "$luks,extended_l2=on,data_file=apart.data"
grows apart.qcow2 apart.data
new
kind data-file apart.qcow2 65536 2048 "" follow=beneath
make raw.qcow2 "$luks,cluster_size=4k,data_file=raw.data,data_file_raw=on"
qemu-img convert $secret --image-opts "$(opts raw.qcow2)" -O raw raw
kind raw-data-file raw.qcow2 4096 4096 "" data-file=raw.data
qemu-img info --output=json raw.qcow2 | grep -q '"data-file-raw": false' ||
    die "it is said to be raw still"
make aes-apart.qcow2 encrypt.format=aes,data_file=aes.data
grows aes-apart.qcow2 aes.data
new
kind AES-data-file aes-apart.qcow2 65536 65536 "" follow=beneath
# Over another encrypted file: what is copied up is enciphered anew.
cp xts.qcow2 base.qcow2
cp empty.qcow2 over.qcow2
qemu-img rebase -u $secret -b base.qcow2 -F qcow2 --image-opts \
    "$(opts over.qcow2)" 2> rebased || qemu-img rebase -u -b base.qcow2 \
    -F qcow2 over.qcow2
qemu-img convert $secret --image-opts "$(opts base.qcow2)" -O raw raw
kind over over.qcow2 65536 65536 ,backing.encrypt.key-secret=s follow=beneath

# --- I15.
known=PLAINTEXT-THAT-NOBODY-SHOULD-SEE
"$PYTHON" -c "print('$known' * 20000)" > text
cp empty.qcow2 image.qcow2
start_nbdkit -t 2 "$PLUGIN" image.qcow2 passphrase=+secret cache-size=1M
qemu-img convert -n -f raw -O raw text "nbd:unix:$sock" 2> /dev/null ||
    "$PYTHON" - "$sock" <<'EOF'
import sys
import nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
data = open("text", "rb").read()
h.pwrite(data, 0)
h.pwrite(data[:1000], 3000000 + 77)
h.zero(5000, 100)
h.flush()
EOF
"$PYTHON" - "$pid" "$words" <<'EOF'
import re
import sys
pid, words = sys.argv[1], sys.argv[2].encode()
assert words.decode() not in open("/proc/%s/cmdline" % pid).read()
found = 0
with open("/proc/%s/mem" % pid, "rb", 0) as mem:
    for line in open("/proc/%s/maps" % pid):
        m = re.match("([0-9a-f]+)-([0-9a-f]+) r", line)
        if not m or "[v" in line:
            continue
        start, end = (int(x, 16) for x in m.groups())
        try:
            mem.seek(start)
            found += mem.read(end - start).count(words)
        except (OSError, ValueError):
            pass
sys.exit("%d times in memory" % found if found else 0)
EOF
end_process "$pid"
grep -q PLAINTEXT text
for file in image.qcow2 "$log"; do
    ! grep -q PLAINTEXT "$file" || die "$file has plaintext"
done
"$NBDKIT" --dump-plugin "$PLUGIN" passphrase=$words > dump 2>&1 || true
! grep -q $words dump || die "it is dumped"

# --- What was flushed survives a kill.
cp empty.qcow2 image.qcow2
new
start_nbdkit -t 4 "$PLUGIN" image.qcow2 passphrase=+secret
"$PYTHON" "$testsrc/diskclient.py" "$sock" raw killed connections=2 \
    requests=$(volume 40) flush=1 || die "killed"
kill -9 "$pid"
_gone "$pid"
forget "$pid"
"$NBDKIT" -U - "$PLUGIN" image.qcow2 passphrase=+secret \
    --run 'nbdinfo --size "$uri"' > /dev/null
qemu-img compare -q $secret --image-opts "$(opts image.qcow2)" \
    driver=raw,file.filename=raw
echo "$images images, $again of them written by QEMU and again: 0 differences;" \
    "$grown made larger: zeros"
