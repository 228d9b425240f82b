#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit-qcow2-tool compact, commit, rebase and resize of encrypted images, given their
# passphrases: what QEMU deciphers afterwards is what it deciphered before.  A wrong
# passphrase, and none, is refused before anything changes, and no message has it
# (I15).

. ./functions.sh

requires_qemu
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
"$NBDKIT" --dump-plugin "$PLUGIN" | grep -q '^qcow2_encryption=luks' ||
    skip "built without GnuTLS"

cd "$tmp"
words=the-passphrase-itself
printf $words > secret
printf 'another-passphrase\nand a second line' > other
printf another-passphrase > other-line
objects="--object secret,id=s,file=secret --object secret,id=o,file=other-line"
comparisons=0

# top IMAGE [KEY]: how QEMU opens it, encrypted or not; over IMAGE [KEY]: what is
# below that.
top ()
{
    echo "driver=qcow2,file.filename=$1${2:+,encrypt.key-secret=$2}"
}
over ()
{
    echo ",backing.driver=qcow2,backing.file.filename=$1${2:+,backing.encrypt.key-secret=$2}"
}

# make IMAGE KEY OPTIONS [QEMU-IMG-ARG...]: no KEY: not encrypted.
make ()
{
    quickly qemu-img create -q $objects -f qcow2 \
        -o "${2:+encrypt.key-secret=$2,}$3" "${@:4}" "$1" \
        "${size:-6000128}" || die "qemu-img can't make $1: $3"
}

# does OPTS COMMAND...: qemu-io does all of that.
does ()
{
    local command commands=()
    for command in "${@:2}"; do commands+=( -c "$command" ); done
    qemu-io -d unmap $objects --image-opts "${commands[@]}" "$1" > out 2>&1 ||
        die "qemu-io: $(cat out)"
    ! grep -q 'failed\|rror' out || die "qemu-io: $(cat out)"
}

# reads_as OPTS RAW: the disk is that.
reads_as ()
{
    qemu-img compare -q $objects --image-opts "$1" \
        driver=raw,file.filename="$2" || die "$1 is not $2 any more"
    comparisons=$(( comparisons + 1 ))
}

# raw OPTS FILE [QEMU-IMG-ARG...]
raw ()
{
    qemu-img convert $objects "${@:3}" --image-opts "$1" -O raw "$2" ||
        die "qemu-img can't read $1"
}

# snapshot -c|-d NAME OPTS
snapshot ()
{
    qemu-img snapshot $objects "$1" "$2" --image-opts "$3"
}

# is_clean IMAGE [KEY [BACKING-OPTS]]
is_clean ()
{
    qemu-img check -q $objects --image-opts "$(top "$1" "${2-}")${3-}" ||
        die "$1: qemu-img check: $?"
    "$tool" check -q "$1" || die "$1: check: $?"
}

# refuses REGEX FILES COMMAND ARG...: it fails so, and FILES stay as they are.
refuses ()
{
    local file
    for file in $2; do cp "$file" "$file.before"; done
    if "$tool" "${@:3}" > out 2> err; then die "not refused: ${*:3}"; fi
    grep -Eq -- "$1" err || die "${*:3}: $(cat err)"
    ! grep -q "$words\|another-pass\|mistaken" err || die "a secret: $(cat err)"
    for file in $2; do
        cmp "$file" "$file.before" || die "$file has changed: ${*:3}"
    done
}

# ------------------------------------------------------------------- compact

# compacts OPTIONS: of an image with free clusters before others, compressed ones, and
# a snapshot; by the first passphrase.
compacts ()
{
    local was is
    make i.qcow2 s "$1"
    does "$(top i.qcow2 s)" 'write -P 1 0 3M' 'write -P 2 3M 1000000' \
        'write -c -P 9 4M 128k' 'write -z 4300k 64k'
    snapshot -c one "$(top i.qcow2 s)"
    does "$(top i.qcow2 s)" 'discard 0 2M' 'write -P 3 3M 200000' \
        'write -P 4 5M 70000'
    snapshot -c two "$(top i.qcow2 s)"
    snapshot -d one "$(top i.qcow2 s)"
    does "$(top i.qcow2 s)" 'write -P 5 3M 100000' 'write -P 6 5500000 512'
    raw "$(top i.qcow2 s)" live.raw
    raw "$(top i.qcow2 s)" two.raw -l snapshot.name=two
    was="$(stat -c %s i.qcow2)"
    case $1 in encrypt.format=luks*)
        refuses 'passphrase is missing.*--passphrase' i.qcow2 compact i.qcow2
        refuses 'passphrase is wrong' i.qcow2 compact --passphrase=mistaken i.qcow2
        ;;
    esac
    "$tool" compact -q --passphrase=+secret i.qcow2
    is="$(stat -c %s i.qcow2)"
    test "$is" -lt "$was" || die "$1: $is bytes, of $was"
    is_clean i.qcow2 s
    reads_as "$(top i.qcow2 s)" live.raw
    raw "$(top i.qcow2 s)" now.raw -l snapshot.name=two
    cmp now.raw two.raw || die "$1: the snapshot has changed"
    # Once more it changes nothing; and QEMU goes on.
    cp i.qcow2 again.qcow2
    "$tool" compact -q --passphrase=+secret i.qcow2
    cmp i.qcow2 again.qcow2 || die "$1: it changes again"
    does "$(top i.qcow2 s)" 'write -P 7 1M 1M' 'read -P 7 1M 1M' \
        'read -P 9 4M 128k'
    is_clean i.qcow2 s
}

luks=encrypt.format=luks
compacts $luks
compacts $luks,cluster_size=4096
compacts $luks,cluster_size=16384,extended_l2=on
compacts $luks,compat=0.10
compacts $luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256
compacts $luks,cluster_size=1024,refcount_bits=64
compacts encrypt.format=aes,cluster_size=4096

# Holes in the file, which read as garbage, as they were.
make i.qcow2 s $luks,preallocation=metadata
does "$(top i.qcow2 s)" 'write -P 1 0 1M' 'discard 0 1M'
raw "$(top i.qcow2 s)" live.raw
"$tool" compact -q --passphrase=+secret i.qcow2
is_clean i.qcow2 s
reads_as "$(top i.qcow2 s)" live.raw

# The other ways to give one.
for how in -3 - $words; do
    make i.qcow2 s $luks
    does "$(top i.qcow2 s)" 'write -P 1 0 2M' 'write -P 2 2M 1M' 'discard 0 1M'
    raw "$(top i.qcow2 s)" live.raw
    "$tool" compact -q --passphrase=$how i.qcow2 3< secret < secret
    reads_as "$(top i.qcow2 s)" live.raw
done
refuses 'a descriptor above 2' i.qcow2 compact --passphrase=-1 i.qcow2
refuses 'No such file' i.qcow2 compact --passphrase=+nowhere i.qcow2
refuses 'given twice' i.qcow2 compact --passphrase=a --passphrase=b i.qcow2
head -c 5000 /dev/zero | tr '\0' x > long
refuses 'longer than 4095 bytes' i.qcow2 compact --passphrase=+long i.qcow2
refuses 'has a zero byte' i.qcow2 compact --passphrase=+/dev/zero i.qcow2
qemu-img create -q -f qcow2 plain.qcow2 1M
refuses 'not encrypted' plain.qcow2 compact --passphrase=+secret plain.qcow2
refuses 'does not take --passphrase' plain.qcow2 check --passphrase=+secret \
    plain.qcow2

# -------------------------------------------------------------------- commit

# chain TOP-KEY TOP-OPTIONS BASE-KEY BASE-OPTIONS
chain ()
{
    make base.qcow2 "$3" "$4"
    does "$(top base.qcow2 "$3")" 'write -P 1 0 4M' 'write -P 2 5M 5000'
    make over.qcow2 "$1" "$2" -u -b base.qcow2 -F qcow2
    does "$(top over.qcow2 "$1")$(over base.qcow2 "$3")" 'write -P 3 100000 7000' \
        'write -P 4 2M 1M' 'write -z 3M 128k' 'write -P 5 5900000 512'
    raw "$(top over.qcow2 "$1")$(over base.qcow2 "$3")" live.raw
}

# commits TOP-KEY TOP-OPTIONS BASE-KEY BASE-OPTIONS ARG...
commits ()
{
    chain "$1" "$2" "$3" "$4"
    refuses 'passphrase is missing.*--passphrase' 'base.qcow2 over.qcow2' \
        commit --follow=beneath over.qcow2
    "$tool" commit -q --follow=beneath "${@:5}" over.qcow2
    is_clean over.qcow2 "$1" "$(over base.qcow2 "$3")"
    is_clean base.qcow2 "$3"
    reads_as "$(top over.qcow2 "$1")$(over base.qcow2 "$3")" live.raw
    reads_as "$(top base.qcow2 "$3")" live.raw
}

commits s $luks o $luks --passphrase=+secret --backing-passphrase=+other
commits s $luks s $luks,cluster_size=4096 --passphrase=+secret
commits '' cluster_size=65536 o $luks --backing-passphrase=+other
chain s $luks '' cluster_size=65536
refuses 'in the clear' 'base.qcow2 over.qcow2' commit --follow=any \
    --passphrase=+secret over.qcow2
chain s $luks o $luks
refuses 'passphrase is wrong' 'base.qcow2 over.qcow2' commit --follow=any \
    --passphrase=+secret over.qcow2
refuses 'passphrase is wrong' 'base.qcow2 over.qcow2' commit --follow=any \
    --passphrase=+other over.qcow2
refuses 'no backing file is encrypted|not encrypted' plain.qcow2 commit \
    --follow=any --backing-passphrase=+other plain.qcow2

# A base that grows, whose end is within a cluster, over a longer file.
size=8000512 make below.qcow2 '' cluster_size=65536
does "$(top below.qcow2)" 'write -P 8 0 8000512'
size=5000192 make base.qcow2 s $luks -u -b below.qcow2 -F qcow2
make over.qcow2 s $luks -u -b base.qcow2 -F qcow2
chained="$(over base.qcow2 s),backing.backing.driver=qcow2"
chained+=",backing.backing.file.filename=below.qcow2"
does "$(top over.qcow2 s)$chained" 'write -P 3 4999680 9000'
raw "$(top over.qcow2 s)$chained" live.raw
"$tool" commit -q --follow=any --passphrase=+secret over.qcow2
is_clean base.qcow2 s
reads_as "$(top over.qcow2 s)$chained" live.raw

# With AES a wrong passphrase could not be told.
aes=encrypt.format=aes
for kinds in "s $aes o $luks" "s $luks o $aes"; do
    chain $kinds
    refuses 'with AES, where a wrong' 'base.qcow2 over.qcow2' commit \
        --follow=any --passphrase=+secret --backing-passphrase=+other over.qcow2
    refuses 'with AES, where a wrong' over.qcow2 rebase --follow=any \
        --passphrase=+secret --backing-passphrase=+other -b '' over.qcow2
done

# -------------------------------------------------------------------- rebase

# rebases TOP-KEY TOP-OPTIONS BASE-KEY BASE-OPTIONS ARG...: to a new file, which has
# the base's key, and to none.
rebases ()
{
    chain "$1" "$2" "$3" "$4"
    make new.qcow2 "$3" "$4"
    does "$(top new.qcow2 "$3")" 'write -P 1 1M 2M' 'write -P 9 4M 1M'
    refuses 'passphrase is missing.*--passphrase' over.qcow2 rebase \
        --follow=beneath -b new.qcow2 -F qcow2 over.qcow2
    "$tool" rebase -q --follow=beneath "${@:5}" -b new.qcow2 -F qcow2 over.qcow2
    is_clean over.qcow2 "$1" "$(over new.qcow2 "$3")"
    reads_as "$(top over.qcow2 "$1")$(over new.qcow2 "$3")" live.raw
    "$tool" rebase -q --follow=beneath "${@:5}" -b '' over.qcow2
    is_clean over.qcow2 "$1"
    reads_as "$(top over.qcow2 "$1")" live.raw
}

rebases s $luks o $luks --passphrase=+secret --backing-passphrase=+other
rebases s $luks,cluster_size=4096 '' cluster_size=65536 --passphrase=+secret
rebases s $luks s $luks --passphrase=+secret
chain '' cluster_size=65536 o $luks
refuses 'in the clear' over.qcow2 rebase --follow=any \
    --backing-passphrase=+other -b '' over.qcow2
chain s $luks o $luks
refuses '-u reads no data' over.qcow2 rebase -u --passphrase=+secret -b '' \
    over.qcow2
"$tool" rebase -q -u -b base.qcow2 -F qcow2 over.qcow2

# -------------------------------------------------------------------- resize

# grows OPTIONS: over a longer file, from within a cluster, where the overlay has
# nothing, and where it has some.
grows ()
{
    local write
    for write in 'read 0 512' 'write -P 3 4999680 512'; do
        size=8000512 make base.qcow2 '' cluster_size=65536
        does "$(top base.qcow2)" 'write -P 1 0 8000512'
        size=5000192 make over.qcow2 s "$1" -u -b base.qcow2 -F qcow2
        does "$(top over.qcow2 s)$(over base.qcow2)" 'write -P 2 1M 1M' "$write"
        raw "$(top over.qcow2 s)$(over base.qcow2)" live.raw
        refuses 'passphrase is missing' over.qcow2 resize --follow=beneath \
            over.qcow2 7M
        refuses 'passphrases are for images over backing files' over.qcow2 resize \
            --passphrase=+secret over.qcow2 7M
        refuses 'passphrase is wrong' over.qcow2 resize --follow=beneath \
            --passphrase=mistaken over.qcow2 7M
        "$tool" resize -q --follow=beneath --passphrase=+secret over.qcow2 7M
        is_clean over.qcow2 s
        truncate -s 7M live.raw
        reads_as "$(top over.qcow2 s)$(over base.qcow2)" live.raw
    done
}

grows $luks
grows $luks,cluster_size=16384,extended_l2=on
size=8000512 make base.qcow2 '' cluster_size=65536
size=5000192 make over.qcow2 s $aes -u -b base.qcow2 -F qcow2
refuses 'with AES, where a wrong' over.qcow2 resize --follow=beneath \
    --passphrase=+secret over.qcow2 7M
echo "$comparisons comparisons"
