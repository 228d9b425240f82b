#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An external data file on an NBD server, of an image that is here or on another
# one: random writes, zeroes and trims, against a model.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires_libnbd

cd "$tmp"
far ()
{
    start_nbdkit "$@"
    far="$uri" far_pid="$pid"
}

cat > change.py <<'PY'
"""change.py SOCKET MODEL SEED: changes both alike, at random."""
import random
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
r = random.Random(int(sys.argv[3]))
with open(sys.argv[2], "r+b") as f:
    size = h.get_size()
    for k in range(80):
        at = r.randrange(size)
        count = min(r.choice((512, 5000, 65536, 200000)), size - at)
        what = r.randrange(4)
        data = bytes(count) if what > 1 else r.randbytes(count)
        if what == 3:
            # Parts of clusters may keep what they have: find out.
            h.trim(count, at)
            data = h.pread(count, at)
            f.seek(at)
            old = f.read(count)
            assert all(d in (0, o) for d, o in zip(data, old)), (at, count)
        elif what == 2:
            h.zero(count, at)
        else:
            h.pwrite(data, at)
        f.seek(at)
        f.write(data)
        if k % 40 == 0:
            h.flush()
    h.flush()
    f.seek(0)
    for at in range(0, size, 1 << 20):
        n = min(1 << 20, size - at)
        assert h.pread(n, at) == f.read(n), at
h.shutdown()
PY

size=$(( (6 << 20) + 512 ))
turn=0
for raw in off on; do
    for filters in '' '--filter=noextents --filter=nozero' \
                   '--filter=multi-conn'; do
        turn=$(( turn + 1 ))
        rm -f image.qcow2 data.raw model
        qemu-img create -q -f qcow2 -o "data_file=data.raw,data_file_raw=$raw" \
            image.qcow2 $size
        truncate -s $size data.raw
        truncate -s $size model
        mode=
        case $filters in *multi-conn) mode=multi-conn-mode=disable ;; esac
        # shellcheck disable=SC2086
        far $filters file data.raw $mode
        data="$far" data_pid="$far_pid" image=image.qcow2
        if test $(( turn % 2 )) -eq 0; then
            truncate -s 8M image.qcow2
            far file image.qcow2
            image="uri=$far"
        fi
        for seed in 1 2; do
            start_nbdkit "$PLUGIN" "$image" "data-file=$data"
            "$PYTHON" change.py "$sock" model $seed
            stop_nbdkit "$pid"
        done
        "$NBDKIT" -r -U - "$PLUGIN" "$image" "data-file=$data" \
            --run 'nbdcopy "$uri" -' > copy
        cmp copy model
        stop_nbdkit "$data_pid"
        test "$image" = image.qcow2 || stop_nbdkit "$far_pid"
        check_clean image.qcow2
        same_disk image.qcow2 model
        test $raw = off || cmp -n $size data.raw model
    done
done

# --- It has less than the disk, or can't be written or flushed.
qemu-img create -q -f qcow2 -o data_file=small.raw image.qcow2 4M
truncate -s 1M small.raw
far file small.raw
start_nbdkit "$PLUGIN" image.qcow2 "data-file=$far"
"$PYTHON" -c 'import errno, sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 65536, 0)
try:
    h.pwrite(b"x" * 65536, 2 << 20)
except nbd.Error as e:
    assert e.errnum == errno.ENOSPC, e
else:
    sys.exit("that goes well")
h.flush()
assert h.pread(65536, 0) == b"x" * 65536
assert h.pread(65536, 2 << 20) == bytes(65536)
h.shutdown()' "$sock"
stop_nbdkit "$pid"
stop_nbdkit "$far_pid"
check_clean image.qcow2
far -r file small.raw
start_nbdkit "$PLUGIN" image.qcow2 "data-file=$far"
requires nbdinfo --version
nbdinfo --is read-only "$uri"
stop_nbdkit "$pid"

# --- What can't be.
expect_refusal 'was given twice' "$PLUGIN" image.qcow2 "data-file=$far" \
    "data-file=$far"
expect_refusal 'must be a file' "$PLUGIN" new.qcow2 create=true size=1M \
    "data-file=$far"
test ! -e new.qcow2
qemu-img create -q -f qcow2 plain.qcow2 1M
expect_refusal 'no external data file' "$PLUGIN" plain.qcow2 "data-file=$far"
# What the image's data would be written to is the image, on either end.
qemu-img create -q -f qcow2 -o data_file=data.raw self.qcow2 4M
truncate -s 4M self.qcow2
cp self.qcow2 before.qcow2
far file self.qcow2
expect_refusal 'may be the same' "$PLUGIN" self.qcow2 "data-file=$far"
expect_refusal 'may be the same' "$PLUGIN" "uri=$far" "data-file=$tmp/self.qcow2"
expect_refusal 'may be the same' "$PLUGIN" "uri=$far" \
    "data-file=nbd+unix:///other?socket=$sock"
cmp self.qcow2 before.qcow2
stop_nbdkit "$far_pid"
# What an image names is never connected to.
"$PYTHON" - image.qcow2 <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    data = f.read(4096)
    f.seek(data.index(b"small.raw"))
    f.write(b"nbd://xx/")
PY
expect_refusal 'not protocols' "$PLUGIN" image.qcow2 follow=any
