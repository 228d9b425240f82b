#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block sizes that clients are told: 1 is the smallest, the cluster or the
# subcluster is preferred.

. ./functions.sh

requires_python_nbd
requires nbdinfo --version

# check PREFERRED KEY=VALUE...: of an image made with these.
check ()
{
    local preferred="$1" export
    shift
    make_image "$tmp/image.qcow2" "$tmp/expected" snapshots=1 "$@"
    for export in '' snapshot/snap1; do
        "$NBDKIT" -U - "$PLUGIN" "$tmp/image.qcow2" --run \
            "nbdinfo --json \"nbd+unix:///$export?socket=\$unixsocket\"" \
            > "$tmp/info.json"
        "$PYTHON" - "$tmp/info.json" "$preferred" "$*" <<'EOF'
import json
import sys

with open(sys.argv[1]) as f:
    e = json.load(f)["exports"][0]
got = (e["block_size_minimum"], e["block_size_preferred"])
want = (1, int(sys.argv[2]))
if got != want:
    sys.exit("%s: minimum, preferred %s instead of %s" % (
        sys.argv[3], got, want))
assert e["block_size_maximum"] >= 1 << 25, e
EOF
    done
}

for version in 2 3; do
    check 512 cluster_bits=9 version=$version
    check 65536 cluster_bits=16 version=$version
    check $(( 2 << 20 )) cluster_bits=21 version=$version size=$(( 6 << 20 ))
done
check 512 cluster_bits=14 extl2=1
check 2048 cluster_bits=16 extl2=1
check 65536 cluster_bits=21 extl2=1 size=$(( 6 << 20 ))

# What is said to work works: a byte anywhere.
"$NBDKIT" -U - "$PLUGIN" "$tmp/image.qcow2" --run \
    "'$PYTHON' - \"\$unixsocket\" '$tmp/expected'" <<'EOF'
import random
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
with open(sys.argv[2], "rb") as f:
    want = f.read()
rnd = random.Random(1)
for at in [0, len(want) - 1] + [rnd.randrange(len(want)) for _ in range(50)]:
    assert bytes(h.pread(1, at)) == want[at:at + 1], at
EOF
