#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# create=true encrypt=luks: QEMU opens what is made, with its passphrase and no
# other, finds it clean, reads what was written here, and writes; and what is
# refused leaves no file.

. ./functions.sh

requires_qemu
requires_python_nbd
requires nbdcopy --version
"$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_encryption=luks' ||
    skip "built without GnuTLS"

cd "$tmp"
words=the-passphrase-itself
printf $words > secret
printf not-the-passphrase > other
size=3000320
made=0
opts ()
{
    echo "driver=qcow2,file.filename=$1,encrypt.key-secret=s${2-}"
}

# new IMAGE OPTS REGEX [PARAMETER...]: make it, and write to it; raw has its
# disk, and REGEX is of what QEMU says of it.
new ()
{
    local image="$1" more="$2" regex="$3" key="--object secret,id=s,file=secret"
    shift 3
    rm -f "$image"
    start_nbdkit -t 4 "$PLUGIN" "$image" create=true encrypt=luks iter-time=20 \
        passphrase=+secret "$@"
    "$PYTHON" "$testsrc/diskclient.py" "$sock" raw "$image" connections=2 \
        requests=$(volume 20) || die "$image"
    end_process "$pid"
    ! grep -q "$words" "$log" || die "$image: the log has the passphrase"
    qemu-img info -f qcow2 "$image" > said
    grep -Eq "$regex" said && grep -q 'format: luks' said ||
        die "$image: $(cat said)"
    qemu-img check -q $key --image-opts "$(opts "$image" "$more")" ||
        die "$image: qemu-img check: $?"
    qemu-img compare -q $key --image-opts "$(opts "$image" "$more")" \
        driver=raw,file.filename=raw || die "$image is not what was written"
    made=$(( made + 1 ))
    # QEMU writes: to each of them, or to two.
    case $image in v3.* | over.*) ;; *)
        test "$(volume 1)" -gt 1 || return 0 ;;
    esac
    qemu-io $key --image-opts "$(opts "$image" "$more")" \
        -c 'write -P 9 1234567 70000' > /dev/null
    qemu-io -f raw raw -c 'write -P 9 1234567 70000' > /dev/null
    "$NBDKIT" -r -U - "$PLUGIN" "$image" passphrase=+secret follow=beneath \
        --run 'nbdcopy "$uri" copy'
    cmp copy raw || die "$image: what QEMU wrote is not read"
    if qemu-io --object secret,id=s,file=other \
        --image-opts "$(opts "$image" "$more")" -c 'read 0 512' > said 2>&1 &&
       ! grep -Eq 'nvalid password|rror' said; then
        die "$image: another passphrase opens it"
    fi
}
zeros () { rm -f raw; truncate -s $size raw; }

zeros
new v3.qcow2 '' 'compat: 1.1' size=$size
zeros
new v2.qcow2 '' 'compat: 0.10' size=$size compat=0.10 cluster-size=512
zeros
new large.qcow2 '' 'cluster_size: 2097152' size=$size cluster-size=2M \
    extended-l2=true refcount-bits=1 lazy-refcounts=true
zeros
new apart.qcow2 '' 'data file: apart.data' size=$size data-file=apart.data
cp v3.qcow2 base.qcow2
qemu-img convert --object secret,id=s,file=secret \
    --image-opts "$(opts base.qcow2)" -O raw raw
new over.qcow2 ,backing.encrypt.key-secret=s 'backing file: base.qcow2' \
    backing=base.qcow2 backing-format=qcow2 backing-passphrase=+secret

# No two have the same key: nothing of what is the same in them is.
cmp -s <(tail -c 100000 v3.qcow2) <(tail -c 100000 apart.qcow2) &&
    die "two images are alike"

# It takes the time that is asked for to open it, not none.
iterations ()
{
    qemu-img info -f qcow2 --output=json "$1" | "$PYTHON" -c 'import json, sys
i = json.load(sys.stdin)["format-specific"]["data"]["encrypt"]
assert i["cipher-alg"] == "aes-256" and i["cipher-mode"] == "xts", i
assert i["ivgen-alg"] == "plain64" and i["hash-alg"] == "sha256", i
assert [s["active"] for s in i["slots"]] == [True] + 7 * [False], i
print(i["slots"][0]["iters"])'
}
"$NBDKIT" -U - "$PLUGIN" slow.qcow2 create=true size=1M encrypt=luks \
    iter-time=300 passphrase=+secret --run true
test "$(iterations slow.qcow2)" -gt $(( 3 * $(iterations v3.qcow2) )) ||
    die "iter-time= is not heeded"

# --- Refused, and nothing is left.
new="$PLUGIN new.qcow2 create=true size=1M"
expect_refusal 'encrypt=aes: must be luks' $new encrypt=aes passphrase=+secret
expect_refusal 'encrypt=luks without passphrase=' $new encrypt=luks
: > empty
expect_refusal 'passphrase is empty' $new encrypt=luks passphrase=+empty
expect_refusal 'without encrypt=luks' $new passphrase=+secret
expect_refusal 'iter-time= without encrypt=luks' $new iter-time=10
for ms in 0 20001; do
    expect_refusal "$ms milliseconds for the passphrase: must be from 1" \
        $new encrypt=luks passphrase=+secret iter-time=$ms
done
for more in compress=zlib preallocation=metadata format=qed \
            "data-file=new.data data-file-raw=true"; do
    expect_refusal 'exclude each other|not for format=qed' \
        $new encrypt=luks passphrase=+secret $more
done
expect_refusal 'encrypt= is only for a new image' \
    "$PLUGIN" v3.qcow2 encrypt=luks passphrase=+secret
for file in new.*; do
    test ! -e "$file" || die "$file is left"
done
echo "$made images"
