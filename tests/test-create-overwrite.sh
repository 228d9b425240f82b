#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What is there already stays, unless it may be overwritten; then it is
# replaced as a whole, unless somebody uses it, or the new image needs it.

. ./functions.sh

requires_python_nbd
requires_qemu

mkdir "$tmp/in"
cd "$tmp/in"

# keep NAME; same NAME WHAT: it is as it was then, and no file is new.
keep () { fingerprint "$1" > "$tmp/kept"; }
same ()
{
    fingerprint "$1" | cmp -s - "$tmp/kept" || die "$2: $1 was touched"
    only_files "$2"
}
create () { "$NBDKIT" -U - "$PLUGIN" "$@" --run true; }
only_files ()
{
    local found
    found="$(ls -A | tr '\n' ' ')"
    test "$found" = "$files" || die "$1: files: $found, not $files"
}
# has_size NAME MIB
has_size ()
{
    local info
    info="$(qemu-img info "$1")"
    [[ "$info" == *"virtual size: $2 MiB"* ]] || die "$1: not $2 MiB: $info"
}
# has_pattern NAME BYTE: at its start.
has_pattern ()
{
    local said
    said="$(qemu-io -f qcow2 -r -c "read -P $2 0 64k" "$1")"
    [[ "$said" == 'read 65536'* ]] || die "$1: not $2: $said"
}

# --- Not without being told.
qemu-img create -q -f qcow2 image.qcow2 1M
qemu-io -f qcow2 -c 'write -P 7 0 64k' image.qcow2 >/dev/null
echo something > other
: > empty
files='empty image.qcow2 other '
for name in image.qcow2 other empty; do
    keep $name
    expect_refusal "$name: it exists already: create=overwrite" \
        "$PLUGIN" $name create=true size=1M
    same $name exists
    # Nor because something else is wrong.
    expect_refusal 'cluster size 3' \
        "$PLUGIN" $name create=overwrite size=1M cluster-size=3
    same $name 'wrong option'
    expect_refusal '/missing: No such file' "$PLUGIN" $name \
        create=overwrite size=1M backing=missing backing-format=qcow2
    same $name 'missing backing file'
    expect_refusal 'in/other: .*(not a qcow2|magic|short|small)|its own' \
        "$PLUGIN" $name create=overwrite size=1M backing=other \
        backing-format=qcow2
    same $name 'broken backing file'
    expect_refusal 'passphrase=.* a new image is not encrypted' \
        "$PLUGIN" $name create=overwrite size=1M passphrase=x
    expect_refusal 'backing-passphrase= without backing=' \
        "$PLUGIN" $name create=overwrite size=1M backing-passphrase=x
    expect_refusal 'compress= is not for format=qed' \
        "$PLUGIN" $name create=overwrite size=1M format=qed compress=zlib
    same $name 'parameters for other images'
done

# --- Whoever uses it keeps it.
keep image.qcow2
qemu_holds image.qcow2
expect_refusal 'another process is using it' \
    "$PLUGIN" image.qcow2 create=overwrite size=2M
qemu_lets_go
same image.qcow2 'qemu-nbd writes it'
qemu_holds image.qcow2 -r
expect_refusal 'another process is using it' \
    "$PLUGIN" image.qcow2 create=overwrite size=2M
qemu_lets_go
same image.qcow2 'qemu-nbd reads it'
# A server without a client, a reader, and one that is written.
for mode in '' -r; do
    start_nbdkit $mode "$PLUGIN" image.qcow2
    for client in no yes; do
        test $client = no || connect_client
        expect_refusal 'another process is using it' \
            "$PLUGIN" image.qcow2 create=overwrite size=2M
        test $client = no || disconnect_client
    done
    stop_nbdkit "$pid"
done
keep image.qcow2
qemu-img create -q -f qcow2 -b in/image.qcow2 -F qcow2 ../overlay.qcow2
start_nbdkit "$PLUGIN" ../overlay.qcow2 follow=beneath
expect_refusal 'another process is using it' \
    "$PLUGIN" image.qcow2 create=overwrite size=2M
stop_nbdkit "$pid"
same image.qcow2 'it is a backing file'

# --- It is not its own backing file.
for name in image.qcow2 ./image.qcow2 "$PWD/image.qcow2"; do
    for size in '' size=1M; do
        expect_refusal "can't be its own backing file" "$PLUGIN" image.qcow2 \
            create=overwrite $size backing="$name" backing-format=qcow2
    done
done
expect_refusal "can't be its own backing file" "$PLUGIN" other \
    create=overwrite backing=other backing-format=raw
same image.qcow2 'its own backing file'

# --- It is replaced: an old one that is open elsewhere stays as it was.
ln image.qcow2 ../old
exec 5< image.qcow2
create image.qcow2 create=overwrite size=3M
check_clean image.qcow2
has_size image.qcow2 3
test "$(stat -c %i image.qcow2)" != "$(stat -c %i ../old)" || die 'the same file'
cmp - ../old <&5
exec 5<&-
has_pattern ../old 7
has_pattern image.qcow2 0
for name in other empty; do
    create $name create=overwrite size=1M cluster-size=512
    check_clean $name
done
only_files replaced

# --- It is for the same users as before.
for mode in 600 640 666 4755; do
    for mask in 022 077; do
        chmod $mode image.qcow2
        ( umask $mask; create image.qcow2 create=overwrite size=1M )
        found="$(stat -c %a image.qcow2)"
        test "$found" = ${mode#4} || die "mode $found, after $mode"
    done
done
if test "$(id -u)" -eq 0; then
    chown 12:34 image.qcow2
    chmod 660 image.qcow2
    create image.qcow2 create=overwrite size=1M
    found="$(stat -c '%u %g %a' image.qcow2)"
    test "$found" = '12 34 660' || die "owner, group and mode: $found"
    chown 0:0 image.qcow2
fi
chmod 644 image.qcow2

# --- A symbolic link stays one, and its file gets replaced.
mkdir ../links
ln -s ../in/image.qcow2 ../links/link
ln -s link ../links/twice
for link in link twice; do
    keep image.qcow2
    expect_refusal 'it exists already' "$PLUGIN" ../links/$link \
        create=true size=1M
    same image.qcow2 'through a link'
    create ../links/$link create=overwrite size=5M
    test -L ../links/$link || die "$link is no link any more"
    has_size image.qcow2 5
    check_clean image.qcow2
    qemu-img create -q -f qcow2 image.qcow2 1M
done
found="$(ls -A ../links | tr '\n' ' ')"
test "$found" = 'link twice ' || die "beside the links: $found"
only_files 'through links'

# --- Served at once, with nothing of what was there.
qemu-io -f qcow2 -c 'write -P 7 0 1M' image.qcow2 >/dev/null
start_nbdkit "$PLUGIN" image.qcow2 create=overwrite size=2M
"$PYTHON" - "$sock" <<'PY'
import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert h.get_size() == 2 << 20
assert h.pread(2 << 20, 0) == bytes(2 << 20)
h.pwrite(b"x" * 1000, 100000)
h.flush()
h.shutdown()
PY
stop_nbdkit "$pid"
check_clean image.qcow2

# --- Two at once: one of them makes it, and no file is left of the other.
for i in 1 2 3 4 5; do
    for j in 1 2 3 4; do
        { create twice.qcow2 create=true size=${j}M 2>../log$j &&
            echo $j; } &
        _pids+=($!)
    done > ../made
    for p in "${_pids[@]}"; do wait "$p" || true; done
    _pids=()
    test "$(wc -l < ../made)" = 1 || die "made by: $(cat ../made)"
    has_size twice.qcow2 "$(cat ../made)"
    for j in 1 2 3 4; do
        test $j = "$(cat ../made)" || grep -q 'exists' ../log$j ||
            die "another error: $(cat ../log$j)"
    done
    rm twice.qcow2
    only_files 'two at once'
done

# And of those who overwrite it, who were told that they did.
echo something > twice.qcow2
for i in 1 2 3 4 5; do
    for j in 1 2 3 4; do
        { create twice.qcow2 create=overwrite size=${j}M 2>../log$j &&
            echo $j; } &
        _pids+=($!)
    done > ../made
    for p in "${_pids[@]}"; do wait "$p" || true; done
    _pids=()
    test -s ../made || die "not made: $(cat ../log?)"
    check_clean twice.qcow2
    size="$(qemu-img info twice.qcow2 |
            sed -n 's/^virtual size: \([1-4]\) MiB.*/\1/p')"
    grep -q "^$size$" ../made || die "of $size MiB, made by: $(cat ../made)"
    for j in 1 2 3 4; do
        grep -q "^$j$" ../made ||
            grep -q -e 'another process is using' -e 'is writing it' \
                 -e 'was replaced by another' -e 'naming the new image' \
                 ../log$j ||
            die "other errors: $(cat ../log$j)"
    done
    test "$(ls -A | tr '\n' ' ')" = "${files}twice.qcow2 " ||
        die "files: $(ls -A)"
done
rm twice.qcow2

# --- Not what the new image is to lie on, however far below.
qemu-img create -q -f qcow2 low.qcow2 1M
qemu-io -f qcow2 -c 'write -P 5 0 64k' low.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b low.qcow2 -F qcow2 mid.qcow2
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
cp low.qcow2 ../low.saved
head -c 1M /dev/urandom > low.raw
cp low.raw ../raw.saved
for backing in low mid top; do
    for size in '' size=1M; do
        expect_refusal "low.qcow2: can't be its own backing file" \
            "$PLUGIN" low.qcow2 create=overwrite backing=$backing.qcow2 \
            backing-format=qcow2 follow=beneath $size
    done
done
expect_refusal "low.raw: can't be its own backing file" \
    "$PLUGIN" low.raw create=overwrite backing=low.raw backing-format=raw
cmp low.qcow2 ../low.saved
cmp low.raw ../raw.saved
