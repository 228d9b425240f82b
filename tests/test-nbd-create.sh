#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# New images on NBD servers: of all that fits and no more, over what is there only
# if that was asked for, and nothing is written before all that speaks against it
# is known.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires_libnbd

cd "$tmp"

# far [OPTION...] FILE [PARAMETER...]: a server of that file; its URI is $far.
far ()
{
    start_nbdkit "$@"
    far="$uri" far_pid="$pid"
}
garbage ()
{
    head -c "$1" /dev/urandom > far.raw
}

cat > fill.py <<'PY'
"""fill.py SOCKET MODEL: writes all of the disk, in no order."""
import random
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
size, step = h.get_size(), 65536
r = random.Random(1)
places = list(range(0, size, step))
r.shuffle(places)
with open(sys.argv[2], "wb") as f:
    f.truncate(size)
    for at in places:
        data = r.randbytes(min(step, size - at))
        h.pwrite(data, at)
        f.seek(at)
        f.write(data)
h.flush()
h.shutdown()
PY

# --- As large as fits: all of it can be written.  One sector more is refused.
for options in cluster-size=64K cluster-size=512 \
               'cluster-size=4K refcount-bits=64' \
               'cluster-size=64K extended-l2=true' \
               'cluster-size=2K compat=0.10' \
               'cluster-size=64K encrypt=luks iter-time=10 passphrase=pw'; do
    for filter in '' '--filter=blocksize-policy'; do
        block=
        case $filter:$options in
            --*:*64K | --*:*512 | :*) ;;
            *) continue ;;
        esac
        test -z "$filter" || block='blocksize-minimum=4096
            blocksize-preferred=4096 blocksize-error-policy=error'
        rm -f far.raw
        truncate -s 12M far.raw
        # shellcheck disable=SC2086
        {
            far $filter file far.raw $block
            expect_refusal 'no room for a disk of 1073741824 bytes: size=[0-9]+ would fit' \
                "$PLUGIN" "uri=$far" create=true size=1G $options
        }
        size="$(sed -n 's/.*size=\([0-9]*\) would fit.*/\1/p' refusal.out)"
        test "$size" -gt $(( 9 << 20 )) || die "only $size"
        # shellcheck disable=SC2086
        {
            expect_refusal "size=$size would fit" "$PLUGIN" "uri=$far" \
                create=true size=$(( size + 512 )) $options
            cmp -n $(( 12 << 20 )) far.raw /dev/zero
            start_nbdkit "$PLUGIN" "uri=$far" create=true "size=$size" $options
        }
        "$PYTHON" fill.py "$sock" model
        nbdcopy "$uri" copy
        cmp copy model
        stop_nbdkit "$pid"
        stop_nbdkit "$far_pid"
        case $options in
            *luks*) "$abs_top_builddir/tool/nbdkit-qcow2-tool" check far.raw ;;
            *) check_clean far.raw
               same_disk far.raw model ;;
        esac
    done
done

# --- What was formatted is what is served, whatever the server's name leads to by
# then: each connection leads to another file.
cat > turns.sh <<'SH'
case $1 in
    open) echo >> DIR/turns; echo "DIR/turn$(wc -l < DIR/turns).raw" ;;
    get_size) echo 8M ;;
    pread) dd if="$2" bs=64K iflag=skip_bytes,count_bytes skip="$4" count="$3" ;;
    pwrite) dd of="$2" bs=64K oflag=seek_bytes conv=notrunc seek="$4" ;;
    can_write | can_flush | flush) exit 0 ;;
    *) exit 2 ;;
esac 2> /dev/null
SH
sed -i "s,DIR,$tmp,g" turns.sh
chmod +x turns.sh
qemu-img create -q -f qcow2 turn2.raw 3M
truncate -s 8M turn1.raw turn2.raw
cp turn2.raw before.raw
far sh turns.sh
start_nbdkit "$PLUGIN" "uri=$far" create=true size=1M
"$PYTHON" fill.py "$sock" model
stop_nbdkit "$pid"
stop_nbdkit "$far_pid"
cmp turn2.raw before.raw
check_clean turn1.raw
same_disk turn1.raw model
# What is below it was compared with that, too.
rm turns
far sh turns.sh
start_nbdkit "$PLUGIN" "uri=$far" create=overwrite backing="$tmp/turn2.raw" \
    backing-format=raw
stop_nbdkit "$pid"
stop_nbdkit "$far_pid"
cmp turn2.raw before.raw
check_clean turn1.raw

# --- nbdkit can't start after that: the image stays, and so does its data file.
rm -f far.raw data.raw
truncate -s 8M far.raw
far file far.raw
if "$NBDKIT" -U /nowhere/socket "$PLUGIN" "uri=$far" create=true size=4M \
    "data-file=$tmp/data.raw" 2> out.log; then
    die "nbdkit starts without a socket"
fi
start_nbdkit "$PLUGIN" "uri=$far" "data-file=$tmp/data.raw"
"$PYTHON" fill.py "$sock" model
stop_nbdkit "$pid"
stop_nbdkit "$far_pid"
check_clean far.raw
same_disk far.raw model

# --- What is there stays, unless it is to be overwritten.  Whatever is behind the
# first mebibyte does not matter.
for place in 0 1048575; do
    rm -f far.raw
    truncate -s 8M far.raw
    printf x | dd of=far.raw bs=1 seek=$place conv=notrunc status=none
    cp far.raw before.raw
    far file far.raw
    expect_refusal 'it holds data: create=overwrite' "$PLUGIN" "uri=$far" \
        create=true size=4M
    cmp far.raw before.raw
    stop_nbdkit "$far_pid"
done
for create in true overwrite; do
    garbage 8M
    test $create = overwrite ||
        dd if=/dev/zero of=far.raw bs=1M count=1 conv=notrunc status=none
    far file far.raw
    start_nbdkit "$PLUGIN" "uri=$far" create=$create size=4M
    nbdcopy "$uri" copy
    cmp -n $(( 4 << 20 )) copy /dev/zero
    "$PYTHON" fill.py "$sock" model
    stop_nbdkit "$pid"
    stop_nbdkit "$far_pid"
    check_clean far.raw
    same_disk far.raw model
done

# --- nbdkit goes to the background; the data file is here.
rm -f far.raw data.raw
truncate -s 8M far.raw
far file far.raw
"$NBDKIT" -U "$tmp/bg.sock" -P bg.pid "$PLUGIN" "uri=$far" create=true size=4M \
    "data-file=$tmp/data.raw" data-file-raw=true
has_gone_to_background bg.pid
"$PYTHON" fill.py "$tmp/bg.sock" model
kill "$(cat bg.pid)"
_gone "$(cat bg.pid)"
cmp data.raw model
check_clean far.raw
same_disk far.raw model
# If the image can't be made, there is no data file, either.
rm data.raw
expect_refusal 'holds data' "$PLUGIN" "uri=$far" create=true size=4M \
    "data-file=$tmp/data.raw"
test ! -e data.raw
stop_nbdkit "$far_pid"

# --- Overlays.  They may be larger than what has room.
garbage 3M
mv far.raw base.raw
truncate -s 64M base.raw
far file base.raw
base="$far" base_pid="$far_pid"
for backing in "$base" "$tmp/base.raw"; do
    rm -f far.raw
    truncate -s 8M far.raw
    far file far.raw
    start_nbdkit "$PLUGIN" "uri=$far" create=true "backing=$backing" \
        backing-format=raw
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"o" * 70000, 1000)
h.shutdown()' "$sock"
    stop_nbdkit "$pid"
    cp base.raw model
    "$PYTHON" -c 'f = open("model", "r+b")
f.seek(1000)
f.write(b"o" * 70000)'
    check_clean far.raw
    same_disk far.raw model
    stop_nbdkit "$far_pid"
done

# --- Nothing is written to what is to be below.
cp base.raw before.raw
far file base.raw
expect_refusal "can't be its own backing file" "$PLUGIN" "uri=$base" \
    create=overwrite "backing=$base" backing-format=raw
for backing in "$base" "$tmp/base.raw"; do
    expect_refusal 'may be the same' "$PLUGIN" "uri=$far" \
        create=overwrite "backing=$backing" backing-format=raw
done
expect_refusal 'may be the same' "$PLUGIN" base.raw create=overwrite \
    "backing=$far" backing-format=raw
cmp base.raw before.raw
stop_nbdkit "$far_pid"
stop_nbdkit "$base_pid"

# --- What can't be is known before anything is written.
garbage 4M
cp far.raw before.raw
far file far.raw
refused ()
{
    expect_refusal "$1" "$PLUGIN" "uri=$far" create=overwrite "${@:2}"
    cmp far.raw before.raw
}
refused 'has no directory' size=1M backing=base.raw backing-format=raw
refused 'has no directory' size=1M data-file=data.raw
refused 'must be a power of two' size=1M cluster-size=1000
refused 'No such file' size=1M backing=/nowhere backing-format=raw
refused 'NBD has no locks' size=1M locking=on
refused 'able to grow' size=1M format=qed
refused 'size= is missing'
refused 'are too few|would fit' size=1M cluster-size=2M
stop_nbdkit "$far_pid"
far -r file far.raw
refused 'the server has it read-only' size=1M
stop_nbdkit "$far_pid"
cat > noflush.sh <<'SH'
case $1 in
    get_size) echo 4M ;;
    pread) head -c "$3" /dev/zero ;;
    pwrite) cat > /dev/null; touch written ;;
    can_write) exit 0 ;;
    *) exit 2 ;;
esac
SH
sed -i "s,touch written,touch $tmp/written," noflush.sh
chmod +x noflush.sh
far sh noflush.sh
refused "can't flush" size=1M
refused 'exclude each other' size=1M unsafe-no-flush=true
test ! -e written || die "something was written"
stop_nbdkit "$far_pid"
