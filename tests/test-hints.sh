#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Parameters that there are not, as people write them: what was meant; and
# values that can't be read, with the parameter that they were for.

. ./functions.sh

requires qemu-img --version
requires nbdinfo --version

cd "$tmp"
qemu-img create -q -f qcow2 image.qcow2 1M

# --- Each parameter is known by its name with underscores, and in capitals.
"$NBDKIT" "$PLUGIN" --help > help
keys="$(sed -n '/^file=/,$ s/^\([a-z0-9-]*\)=.*/\1/p' help)"
test "$(wc -w <<< "$keys")" -ge 18 || die "too few parameters: $keys"
for key in $keys; do
    wrong="${key^}"
    case $key in
        *-*) wrong="${key//-/_}" ;;
    esac
    expect_refusal "unknown parameter '$wrong': did you mean $key= \?.*nbdkit-qcow2-plugin\(1\)" \
        "$PLUGIN" image.qcow2 "$wrong=1"
    test "$(wc -l < refusal.out)" -eq 1 || die "$wrong: $(cat refusal.out)"
done
expect_refusal 'did you mean cluster-size= \?' "$PLUGIN" image.qcow2 CLUSTERSIZE=1

# --- What is called otherwise elsewhere, or is not the plugin's.
while IFS='|' read -r arg hint; do
    expect_refusal "unknown parameter '${arg%%=*}': .*$hint.*nbdkit-qcow2-plugin\(1\)" \
        "$PLUGIN" image.qcow2 "$arg"
    test "$(wc -l < refusal.out)" -eq 1 || die "$arg: $(cat refusal.out)"
done <<'HINTS'
snapshot=monday|clients ask for snapshot/NAME
load-snapshot=monday|clients ask for snapshot/NAME
export=monday|clients choose the export
readonly=true|nbdkit -r
read-only=on|nbdkit -r
ro=1|nbdkit -r
partition=1|nbdkit --filter=partition qcow2
offset=512|nbdkit --filter=offset qcow2
secret=x|passphrase=
image=other.qcow2|did you mean file= \?
filename=other.qcow2|did you mean file= \?
backing_file=base|did you mean backing= \?
backing_fmt=raw|did you mean backing-format= \?
cache=none|did you mean cache-size= \?
data_file=x|did you mean data-file= \?
nosuchkey=1|see
HINTS

# --- Two images; a word without a key is one, too.
expect_refusal "two images: $tmp/image.qcow2, and file= was given twice \(other.qcow2\)" \
    "$PLUGIN" image.qcow2 other.qcow2
expect_refusal 'parameters are KEY=VALUE' "$PLUGIN" image.qcow2 readonly

# --- Values that can't be read.
for arg in create=maybe force-share=2 force-share= lazy-refcounts=x \
           extended-l2=x
do
    expect_refusal "error: $arg: must be true or false" \
        "$PLUGIN" image.qcow2 $arg
done
for arg in size=10X size=-1 size= cluster-size=big cache-size=1e6; do
    expect_refusal "error: $arg: must be a size" "$PLUGIN" image.qcow2 $arg
done
expect_refusal 'refcount-bits' "$PLUGIN" image.qcow2 refcount-bits=x
expect_refusal 'compress-level' "$PLUGIN" image.qcow2 compress-level=x
expect_refusal 'follow=all: must be none, beneath or any' \
    "$PLUGIN" image.qcow2 follow=all

# --- An export that is called otherwise.
qemu-img snapshot -c monday image.qcow2
start_nbdkit "$PLUGIN" image.qcow2
if nbdinfo "nbd+unix:///monday?socket=$sock" > out 2>&1; then
    die "there is an export monday"
fi
grep -q 'there is no export "monday": that snapshot is "snapshot/monday"' \
    "$log" || die "$(cat "$log")"
stop_nbdkit "$pid"
