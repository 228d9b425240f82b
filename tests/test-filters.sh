#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The plugin under nbdkit's filters, as the manual shows them.  Those that
# are not installed are left out.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

image="$tmp/image.qcow2"
make_image "$image" "$tmp/expected" snapshots=2
size="$(stat -c %s "$tmp/expected")"

nr=0
done_with=
# have FILTER...: whether all of them are installed.
have ()
{
    local f
    for f in "$@"; do
        if ! "$NBDKIT" --filter="$f" "$PLUGIN" --dump-plugin \
             >/dev/null 2>&1 </dev/null; then
            echo "not installed: $f"
            return 1
        fi
    done
    nr=$(( nr + 1 ))
    done_with="$done_with $*"
}

# copy EXPECTED NBDKIT-ARG...: what comes through equals this file.
copy ()
{
    local want="$1"
    shift
    rm -f "$tmp/copy"
    "$NBDKIT" -U - "$@" --run "nbdcopy \"\$uri\" '$tmp/copy'" ||
        die "not served: $*"
    cmp "$tmp/copy" "$want" || die "wrong data: $*"
}

# with_python NBDKIT-ARG...: the script on stdin, with the socket and the
# expected disk as arguments.
with_python ()
{
    cat > "$tmp/script.py"
    "$NBDKIT" -U - "$@" --run \
        "'$PYTHON' '$tmp/script.py' \"\$unixsocket\" '$tmp/expected'"
}

# The map without a filter, to compare with those through one.
"$NBDKIT" -U - "$PLUGIN" "$image" --run 'nbdinfo --map "$uri"' > "$tmp/map"
test "$(wc -l < "$tmp/map")" -gt 5

# --- cow: clients can write, the image stays as it is.
if have cow; then
    before="$(fingerprint "$image")"
    with_python --filter=cow "$PLUGIN" "$image" <<'EOF'
import random
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert not h.is_read_only()
with open(sys.argv[2], "rb") as f:
    want = bytearray(f.read())
rnd = random.Random("cow")
for _ in range(60):
    n = rnd.choice((1, 100, 512, 65536, 100000))
    at = rnd.randrange(len(want) - n)
    data = rnd.randbytes(n)
    h.pwrite(data, at)
    want[at:at + n] = data
if h.can_zero():
    h.zero(200000, 70000)
    want[70000:270000] = bytes(200000)
h.flush()
for at in range(0, len(want), 1 << 20):
    n = min(1 << 20, len(want) - at)
    assert bytes(h.pread(n, at)) == want[at:at + n], at
h.shutdown()
EOF
    test "$before" = "$(fingerprint "$image")" || die "the image has changed"
    copy "$tmp/expected" --filter=cow "$PLUGIN" "$image"
fi

# --- partition: an MBR with two.
if have partition; then
    "$PYTHON" - "$tmp/disk" "$tmp/part" <<'EOF'
import struct
import sys
from streams import noise

parts = [(2048, 1001), (4096, 3000)]
mbr = bytearray(512)
with open(sys.argv[1], "wb") as f:
    f.truncate(8 << 20)
    for k, (start, n) in enumerate(parts):
        mbr[446 + 16 * k:462 + 16 * k] = struct.pack(
            "<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\2\0", start, n)
        data = noise(k, n * 512)
        f.seek(start * 512)
        f.write(data)
        with open("%s%d" % (sys.argv[2], k + 1), "wb") as p:
            p.write(data)
    mbr[510:] = b"\x55\xaa"
    f.seek(0)
    f.write(mbr)
EOF
    qemu-img convert -c -f raw -O qcow2 "$tmp/disk" "$tmp/disk.qcow2"
    for n in 1 2; do
        copy "$tmp/part$n" --filter=partition "$PLUGIN" "$tmp/disk.qcow2" \
            partition=$n
    done
fi

# --- luks: what a guest has encrypted, inside of a partition as well.
if have luks; then
    head -c $(( 2 << 20 )) "$tmp/expected" > "$tmp/secret.raw"
    quickly qemu-img convert -f raw -O luks -o key-secret=s,iter-time=10 \
        --object secret,id=s,data=open-sesame "$tmp/secret.raw" "$tmp/luks"
    qemu-img convert -f raw -O qcow2 "$tmp/luks" "$tmp/luks.qcow2"
    copy "$tmp/secret.raw" --filter=luks "$PLUGIN" "$tmp/luks.qcow2" \
        passphrase=open-sesame
fi
if have luks partition; then
    "$PYTHON" - "$tmp/disk" "$tmp/luks" <<'EOF'
import os
import struct
import sys

n = os.path.getsize(sys.argv[2]) // 512
with open(sys.argv[1], "wb") as f, open(sys.argv[2], "rb") as luks:
    f.write(struct.pack("<446xB3sB3sII48x2s", 0, b"\0\2\0", 0x83, b"\0\2\0",
                        2048, n, b"\x55\xaa"))
    f.seek(1 << 20)
    f.write(luks.read())
    f.truncate((2 << 20) + n * 512)
EOF
    qemu-img convert -f raw -O qcow2 "$tmp/disk" "$tmp/disk.qcow2"
    copy "$tmp/secret.raw" --filter=luks --filter=partition "$PLUGIN" \
        "$tmp/disk.qcow2" partition=1 passphrase=open-sesame
fi

# --- log
if have log; then
    copy "$tmp/expected" --filter=log "$PLUGIN" "$image" \
        logfile="$tmp/requests"
    grep -q ' Read ' "$tmp/requests"
    grep -q ' Extents ' "$tmp/requests"
    grep -q " Connect export=.* size=0x$(printf %x "$size") " "$tmp/requests"
fi

# --- cacheextents, cache, readahead, blocksize ...: nothing changes.
for filters in cacheextents cache readahead blocksize retry-request \
               multi-conn noparallel nocache "cacheextents cache" \
               "blocksize cow" "readahead cache"
do
    if have $filters; then
        options=()
        for f in $filters; do
            options+=(--filter="$f")
        done
        copy "$tmp/expected" "${options[@]}" "$PLUGIN" "$image"
        # cow and cache change what is a hole, others don't.
        case "$filters" in
        *cow*|*"cache"|readahead*) ;;
        *)
            "$NBDKIT" -U - "${options[@]}" "$PLUGIN" "$image" \
                --run 'nbdinfo --map "$uri"' > "$tmp/map2"
            cmp "$tmp/map" "$tmp/map2" || die "another map: $filters"
            ;;
        esac
    fi
done
if have noextents; then
    copy "$tmp/expected" --filter=noextents "$PLUGIN" "$image"
fi
if have blocksize-policy; then
    copy "$tmp/expected" --filter=blocksize-policy "$PLUGIN" "$image" \
        blocksize-minimum=512 blocksize-error-policy=error
fi

# --- offset and truncate
if have offset; then
    tail -c +70001 "$tmp/expected" | head -c 333333 > "$tmp/part" || true
    copy "$tmp/part" --filter=offset "$PLUGIN" "$image" offset=70000 \
        range=333333
fi
if have truncate; then
    cp "$tmp/expected" "$tmp/part"
    truncate -s $(( size + 12345 )) "$tmp/part"
    copy "$tmp/part" --filter=truncate "$PLUGIN" "$image" \
        truncate=$(( size + 12345 ))
fi

# --- exportname: a snapshot as the default export.
if have exportname; then
    one=(--filter=exportname "$PLUGIN" "$image"
         default-export=snapshot/snap1)
    copy "$tmp/expected.1" "${one[@]}"
    "$NBDKIT" -U - "${one[@]}" --run 'nbdinfo "$uri"' > "$tmp/info"
    grep -q 'description: internal snapshot of ' "$tmp/info" || {
        cat "$tmp/info"
        die "the description is not the snapshot's"
    }
    # The others are still there.
    "$NBDKIT" -U - "${one[@]}" --run \
        "nbdcopy \"nbd+unix:///snapshot/snap2?socket=\$unixsocket\" \
             '$tmp/copy'"
    cmp "$tmp/copy" "$tmp/expected.2"
    # This one alone, as the manual says.
    only=("${one[@]}" exportname-list=defaultonly exportname-strict=true
          exportname= exportname=snapshot/snap1)
    copy "$tmp/expected.1" "${only[@]}"
    "$NBDKIT" -U - "${only[@]}" --run \
        "nbdcopy \"nbd+unix:///snapshot/snap1?socket=\$unixsocket\" \
             '$tmp/copy'"
    cmp "$tmp/copy" "$tmp/expected.1"
    if "$NBDKIT" -U - "${only[@]}" --run \
        "nbdinfo \"nbd+unix:///snapshot/snap2?socket=\$unixsocket\"" \
        >/dev/null 2>&1
    then
        die "the other snapshot can be reached"
    fi
    "$NBDKIT" -U - "${only[@]}" --run 'nbdinfo --list --json "$uri"' \
        > "$tmp/list.json"
    "$PYTHON" -c 'import json, sys
names = [e["export-name"] for e in json.load(open(sys.argv[1]))["exports"]]
assert names == ["snapshot/snap1"], names' "$tmp/list.json"
fi
if have cow exportname; then
    copy "$tmp/expected.2" --filter=cow --filter=exportname "$PLUGIN" \
        "$image" default-export=snapshot/snap2
fi

test $nr -gt 0 || skip "no filter is installed"
echo "$nr combinations of filters:$done_with"
