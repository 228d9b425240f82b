#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What nbdkit-qcow2-nbd makes of qemu-nbd's options: nbdkit's command line, or a
# message that names what it can't do.

. ./functions.sh

requires_qemu

standin="$abs_top_builddir/standin/nbdkit-qcow2-nbd"
unset LISTEN_FDS LISTEN_PID NBDKIT_QCOW2_PLUGIN
cd "$tmp"
qemu-img create -q -f qcow2 a.qcow2 1M
qemu-img create -q -f qcow2 -o compression_type=zstd z.qcow2 1M
qemu-img create -q -f qed a.qed 1M
qemu-img create -q -f vmdk a.vmdk 1M
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
truncate -s 1M raw.img ,odd=,name
for name in A A B; do qemu-img snapshot -c $name z.qcow2; done

# In nbdkit's place: what it was told, and the secrets that it can read.
cat > nbdkit <<'SH'
#!/usr/bin/env bash
printf '[%s]' "${@//$QTEST_DIR/TMP}"
for arg; do
    case "$arg" in *passphrase=-*) eval "cat <&${arg#*=-}" ;; esac
done
echo
SH
chmod +x nbdkit
export NBDKIT="$tmp/nbdkit"

# Of all that is made of each call's options, what matters.
says ()
{
    local want="$1" got
    shift
    got="$("$standin" "$@" 2>&1)" || die "refused: $*: $got"
    case "$got" in
        *"$want"*) ;;
        *) die "$*: $got, not $want" ;;
    esac
}
whole ()
{
    local want="$1" got
    shift
    got="$("$standin" "$@" 2>&1)" || die "refused: $*: $got"
    test "$got" = "$want" || die "$*: $got, not $want"
}
refuses ()
{
    local want="$1" status=0
    shift
    "$standin" "$@" > out 2>&1 || status=$?
    test $status -eq 1 || die "ends with $status: $*"
    grep -q -- "$want" out || die "$*: $(cat out)"
}

whole '[-f][-P][TMP/p][-U][TMP/s][--filter=cow][qcow2][file=a.qcow2][follow=any][export-name=][clients=0][discard=unmap]' \
    -t --shared=0 --discard=unmap --pid-file "$tmp/p" --socket "$tmp/s" -s \
    --format qcow2 a.qcow2
whole '[-f][-i][0.0.0.0][-p][10809][--filter=exitlast][qcow2][file=a.qcow2][follow=any][export-name=][clients=1][discard=keep]' \
    a.qcow2
whole '[-v][-r][-i][::1][-p][1234][qcow2][file=a.qcow2][follow=any][export-name=x y][clients=3][discard=keep][detect-zeroes=on]' \
    --fork -v -r -t -b ::1 --port=1234 -x 'x y' -e 3 --detect-zeroes=on a.qcow2
says '[-U][TMP/s][--selinux-label=l]' -k "$tmp/s" --selinux-label=l a.qcow2
says '[compress=zlib]' -k "$tmp/s" --image-opts \
    driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=a.qcow2
says '[compress=zstd]' --image-opts \
    driver=compress,file.driver=qcow2,file.file.filename=z.qcow2
says '[file][file=,odd=,name]' --image-opts \
    driver=raw,file.driver=file,file.filename=,,odd=,,name
says '[file][file=,odd=,name]' \
    'json:{"file":{"driver":"file","filename":"\u002codd=,name"},"driver":"raw"}'
says '[--filter=exitlast][--filter=exportname][--filter=noparallel][--filter=multi-conn][file][file=raw.img][exportname-strict=true][exportname-list=explicit][exportname=][serialize=connections][multi-conn-mode=disable]' \
    -f raw raw.img
says '[offset=1536][range=2560]' -o 0x200 \
    --image-opts driver=raw,offset=1k,size=3k,file.filename=raw.img
says '[--filter=partition][--filter=offset]' -P 1 -o 512 -f raw raw.img
says '[--filter=fua][qcow2]' --cache=writethrough a.qcow2
says '[fuamode=force]' --cache=directsync a.qcow2
says '[exportdesc=fixed:a, b]' -D 'a, b' a.qcow2
says '[qcow2][file=a.qed]' -f qed a.qed
says '[uri=nbd://h/x]' -f raw nbd://h/x
says '[-r]' -l 1 z.qcow2
# Not unique, so called by its ID.
says '[only=snapshot/1]' -l A z.qcow2
says '[only=snapshot/2]' -l snapshot.id=2,snapshot.name=A z.qcow2
says '[only=snapshot/B]' -l 3 z.qcow2
says '[backing=x,y][backing-format=raw][data-file=d][locking=off]' --image-opts \
    driver=qcow2,backing.driver=file,backing.filename=x,,y,data-file.filename=d,file.locking=off,file.filename=a.qcow2
says '[file=a.qcow2]' 'json:{"driver":"qcow2","backing":null,"file.filename":"a.qcow2"}'
says '[backing=/proc/self/fd/' \
    'json:{"driver":"qcow2","backing":null,"file.filename":"over.qcow2"}'
# QEMU takes all bytes of a file.
printf 'se cret' > secret
says 'se cret' --object secret,id=s,file=secret --image-opts \
    driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2
says 'a,b' --object secret,id=s,data=a,,b --image-opts \
    driver=luks,key-secret=s,file.filename=raw.img
says 'secret=' --object secret,id=s,format=base64,data=c2VjcmV0PQ== --image-opts \
    driver=luks,key-secret=s,file.filename=raw.img
says '[--tls=require][--tls-certificates=/d][--tls-verify-peer]' \
    --object tls-creds-x509,id=t,endpoint=server,dir=/d --tls-creds t a.qcow2
says '[--tls-certificates=/d][--filter' --object \
    tls-creds-x509,id=t,endpoint=server,dir=/d,verify-peer=no --tls-creds t a.qcow2
says '[--tls-psk=/d/keys.psk]' --object tls-creds-psk,id=t,endpoint=server,dir=/d \
    --tls-creds=t a.qcow2
LISTEN_FDS=1 says '[-f][--filter' a.qcow2
"$standin" --help | grep -q -- --selinux-label
"$standin" --version | grep -q nbdkit-qcow2-nbd

refuses '-B (--bitmap).*bitmap/NAME' -B b a.qcow2
refuses '--bitmap' --bitmap=b a.qcow2
refuses '--allocation-depth' -A a.qcow2
refuses 'nbd-client -unix' -c /dev/nbd0 a.qcow2
refuses 'nbd-client -d' -d /dev/nbd0
refuses 'nbdinfo' -L
refuses '--trace' -T x a.qcow2
refuses '--tls-authz' --tls-authz=x a.qcow2
refuses 'driver .vmdk. is not supported' -f vmdk a.vmdk
refuses 'VMDK' a.vmdk
refuses 'say -f raw' raw.img
refuses 'is not in qcow2 format' -f qcow2 a.qed
refuses 'is not in qed format' -f qed a.qcow2
refuses "protocol 'ssh' is not supported" -f qcow2 ssh://h/x
refuses 'not permitted without' --selinux-label=l a.qcow2
refuses 'No such file' none.qcow2
refuses 'No such file' -f raw none.raw
refuses 'must be absolute' -k s a.qcow2
refuses 'is no socket' -k "$tmp/a.qed" a.qcow2
refuses "Can't find snapshot 'C'" -l C z.qcow2
refuses "Invalid value of --cache: 'x'" --cache=x a.qcow2
refuses 'Invalid value of --aio' --aio=x a.qcow2
refuses 'Invalid value of --discard' --discard=x a.qcow2
refuses 'not allowed without setting discard' --detect-zeroes=unmap a.qcow2
refuses 'Invalid shared' -e -1 a.qcow2
refuses 'Invalid offset' -o 1x -f raw raw.img
refuses 'Invalid number of arguments' a.qcow2 z.qcow2
refuses 'unrecognized option' --none a.qcow2
refuses 'mutually exclusive' -f raw --image-opts file.filename=a.qcow2
refuses "'l2-cash=1' is not supported" --image-opts driver=qcow2,l2-cash=1,file.filename=a.qcow2
refuses "'driver' was given twice" --image-opts driver=qcow2,driver=raw,file.filename=a.qcow2
refuses 'only qcow2 has that' --image-opts driver=compress,file.driver=raw,file.file.filename=raw.img
for bad in '{' '{"a" 1}' '{"a":1' '{"a":"\q"}' '{"a":"\ud800x"}' '{"a":x}' \
    '{"a":"b"}x' '["a"]' "{\"a\":$(printf '{"a":%.0s' {1..40})1"; do
    refuses 'is wanted' "json:$bad"
done
refuses 'is a list' 'json:{"driver":"quorum","children":[1]}'
refuses 'newline' --object secret,id=s,data=$'a\n' --image-opts \
    driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2
refuses 'no base64' --object secret,id=s,format=base64,data=a --image-opts \
    driver=luks,key-secret=s,file.filename=raw.img
refuses "no --object with the id 's'" --image-opts \
    driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2
refuses "type 'iothread' is not supported" --object iothread,id=i a.qcow2
LISTEN_FDS=1 refuses 'socket activation' -p 1 a.qcow2
LISTEN_FDS=1 refuses 'socket activation' --fork a.qcow2
# One that can't be had: it has to be called by its ID, which is another's name.
qemu-img snapshot -c 1 z.qcow2
refuses 'another one is called by its ID' -l 1 z.qcow2
