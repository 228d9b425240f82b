#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Writing through nbdkit's filters: what clients wrote is what is in the
# image, which is clean.  Filters that are not installed are left out.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version

image="$tmp/image.qcow2"
client="$testsrc/diskclient.py"
nr=0
done_with=
filterdir="$("$NBDKIT" --dump-config | sed -n 's/^filterdir=//p')"
number="$(volume 30)"
# have FILTER...: whether all of them are installed.
have ()
{
    local f
    for f in "$@"; do
        if ! test -e "$filterdir/nbdkit-$f-filter.so"; then
            echo "not installed: $f"
            return 1
        fi
    done
    nr=$(( nr + 1 ))
    done_with="$done_with $*"
}
# requests NBDKIT-ARG... -- CLIENT-ARG...: random requests to what this
# serves; $tmp/disk is the model.
requests ()
{
    local args=()
    while test "$1" != --; do
        args+=("$1")
        shift
    done
    shift
    start_nbdkit "${args[@]}"
    "$PYTHON" "$client" "$sock" "$tmp/disk" "filters-$nr" \
        requests="$number" "$@" ||
        die "wrong through: ${args[*]}"
    stop_nbdkit "$pid"
}
verify ()
{
    check_clean "$image"
    same_disk "$image" "$tmp/disk"
}
# Made once, with subclusters and without.
for kind in 0 1; do
    make_image "$tmp/made$kind" "$tmp/disk$kind" seed="f$kind" extl2=$kind
done
make ()
{
    cp "$tmp/made$(( nr % 2 ))" "$image"
    cp "$tmp/disk$(( nr % 2 ))" "$tmp/disk"
}

# --- Those that change nothing for the client, alone and together.  Some
# drop trims, or parts of them.
while read -r filters parameters; do
    if have ${filters//,/ }; then
        options=()
        for f in ${filters//,/ }; do
            options+=(--filter="$f")
        done
        make
        # The cache filter writes back when it is told to flush, and passes
        # on maps and trims that don't know of what it holds.
        status=1 trims=0
        case $filters in *cache*) status=0 trims=no ;; esac
        requests "${options[@]}" "$PLUGIN" "$image" $parameters -- \
            trims=$trims flush=1 align=65536 status=$status
        verify
    fi
done <<TABLE
log logfile=$tmp/requests
blocksize minblock=4096 maxdata=64k
blocksize minblock=64k
multi-conn multi-conn-mode=emulate
multi-conn multi-conn-mode=disable
fua fuamode=emulate
fua fuamode=native
fua fuamode=force
cache cache=writeback
cache cache=writethrough
cache cache=writeback cache-on-read=true
cacheextents
noextents
nocache
nozero zeromode=emulate
nozero zeromode=notrim
nozero zeromode=none
noparallel serialize=all-requests
noparallel serialize=connections
retry-request
readahead
stats statsfile=$tmp/stats
exportname
log,blocksize,fua logfile=$tmp/requests2 minblock=512 fuamode=force
multi-conn,cache multi-conn-mode=emulate
blocksize,cache,log minblock=4096 logfile=$tmp/requests3
TABLE
if test -s "$tmp/requests"; then
    for word in Write Zero Trim Flush; do
        grep -q " $word " "$tmp/requests" || die "no $word in the log"
    done
fi

# --- cow: clients write, the image stays.
if have cow; then
    make
    before="$(fingerprint "$image")"
    requests --filter=cow "$PLUGIN" "$image" -- trims=no flush=1 \
        align=65536
    test "$before" = "$(fingerprint "$image")" || die "cow wrote to it"
    # ... but the same image is written beside the filter.
    make
    requests "$PLUGIN" "$image" --
    verify
fi

# --- error: what failed changed nothing, what didn't is there.
if have error; then
    make
    start_nbdkit --filter=error "$PLUGIN" "$image" error=ENOSPC \
        error-pwrite-rate=30% error-zero-rate=30% error-trim-rate=30%
    "$PYTHON" - "$sock" "$tmp/disk" <<'PY'
import errno
import random
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
with open(sys.argv[2], "rb") as f:
    want = bytearray(f.read())
rnd = random.Random("error")
failed = 0
for k in range(200):
    n = rnd.choice((1, 512, 4096, 65536, 100000))
    at = rnd.randrange(len(want) - n)
    data = rnd.randbytes(n) if k % 3 else bytes(n)
    try:
        if k % 3:
            h.pwrite(data, at)
        else:
            h.zero(n, at)
        want[at:at + n] = data
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        failed += 1
assert 20 < failed < 120, failed
assert bytes(h.pread(len(want), 0)) == want
h.shutdown()
with open(sys.argv[2], "wb") as f:
    f.write(want)
PY
    stop_nbdkit "$pid"
    verify
fi

# --- partition: a write to one stays in it.
cat > "$tmp/mbr.py" <<'PY'
# DISK START COUNT [START COUNT]...: a disk of 8 MiB with noise and these.
import struct
import sys
from streams import noise

mbr = bytearray(512)
numbers = [int(a) for a in sys.argv[2:]]
for k in range(0, len(numbers), 2):
    mbr[446 + 8 * k:462 + 8 * k] = struct.pack(
        "<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\2\0", *numbers[k:k + 2])
mbr[510:] = b"\x55\xaa"
with open(sys.argv[1], "wb") as f:
    f.write(mbr + noise("disk", (8 << 20) - 512))
PY
if have partition; then
    "$PYTHON" "$tmp/mbr.py" "$tmp/whole" 2048 1001 4096 3001
    qemu-img convert -f raw -O qcow2 "$tmp/whole" "$image"
    for part in "1 2048 1001" "2 4096 3001"; do
        set -- $part
        dd if="$tmp/whole" of="$tmp/disk" skip=$2 count=$3 status=none
        requests --filter=partition "$PLUGIN" "$image" partition=$1 -- trims=0
        dd if="$tmp/disk" of="$tmp/whole" seek=$2 conv=notrunc status=none
        check_clean "$image"
        same_disk "$image" "$tmp/whole"
    done
fi

# --- offset and truncate.
if have offset; then
    make
    cp "$tmp/disk" "$tmp/whole"
    dd if="$tmp/whole" of="$tmp/disk" bs=1000 skip=70 count=333 status=none
    requests --filter=offset "$PLUGIN" "$image" offset=70000 range=333000 -- \
        trims=0
    dd if="$tmp/disk" of="$tmp/whole" bs=1000 seek=70 conv=notrunc status=none
    check_clean "$image"
    same_disk "$image" "$tmp/whole"
fi
if have truncate; then
    make
    cp "$tmp/disk" "$tmp/whole"
    truncate -s 1000000 "$tmp/disk"
    requests --filter=truncate "$PLUGIN" "$image" truncate=1000000 -- trims=0
    dd if="$tmp/disk" of="$tmp/whole" bs=1000 conv=notrunc status=none
    check_clean "$image"
    same_disk "$image" "$tmp/whole"
fi

# --- luks: what is in the image is ciphertext, and the next reader gets what
# was written, also inside of a partition.
if have luks; then
    head -c 2M /dev/urandom > "$tmp/disk"
    quickly qemu-img convert -f raw -O luks -o key-secret=s,iter-time=10 \
        --object secret,id=s,data=open-sesame "$tmp/disk" "$tmp/luks"
    encrypted ()
    {
        local k
        for k in 1 2; do
            requests "$@" passphrase=open-sesame -- trims=0 block=512
        done
        check_clean "$image"
        "$NBDKIT" -r -U - "$@" passphrase=open-sesame \
            --run "nbdcopy \"\$uri\" '$tmp/copy'"
        cmp "$tmp/copy" "$tmp/disk" || die "not what was written: $*"
    }
    qemu-img convert -f raw -O qcow2 "$tmp/luks" "$image"
    encrypted --filter=luks "$PLUGIN" "$image"
    # QEMU opens it as well.
    qemu-img convert --object secret,id=s,data=open-sesame --image-opts \
        driver=luks,key-secret=s,file.driver=qcow2,file.file.filename="$image" \
        -O raw "$tmp/copy"
    cmp "$tmp/copy" "$tmp/disk" || die "QEMU decrypts something else"
    if have luks partition; then
        sectors=$(( $(stat -c %s "$tmp/luks") / 512 ))
        "$PYTHON" "$tmp/mbr.py" "$tmp/whole" 2048 $sectors
        dd if="$tmp/luks" of="$tmp/whole" seek=2048 conv=notrunc status=none
        qemu-img convert -f raw -O qcow2 "$tmp/whole" "$image"
        # what it was made from
        "$NBDKIT" -r -U - --filter=luks --filter=partition "$PLUGIN" \
            "$image" partition=1 passphrase=open-sesame \
            --run "nbdcopy \"\$uri\" '$tmp/disk'"
        encrypted --filter=luks --filter=partition "$PLUGIN" "$image" \
            partition=1
    fi
fi

# --- exitlast: the end of the last client is a clean end.
if have exitlast; then
    make
    start_nbdkit --filter=exitlast "$PLUGIN" "$image"
    "$PYTHON" "$client" "$sock" "$tmp/disk" exitlast
    wait "$pid" || die "ended with an error"
    forget "$pid"
    verify
fi

test $nr -gt 0 || skip "no filter is installed"
echo "$nr combinations of filters:$done_with"
