#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A new image for which there is no room: an error, and no file; nor is one
# lost that was to be overwritten.

. ./functions.sh

requires_qemu

# no_room FOLDER: there are 2 MB, and 'old' in it.
no_room ()
{
    local before
    cp "$tmp/old" "$1/old"
    before="$(fingerprint "$1/old")"
    for options in 'size=8M preallocation=falloc' \
                   'size=8M preallocation=full' \
                   'size=2G preallocation=metadata cluster-size=4K' \
                   'size=8M preallocation=full extended-l2=on'
    do
        expect_refusal 'No space left|File too large' \
            "$PLUGIN" "$1/new" create=true $options
        expect_refusal 'No space left|File too large' \
            "$PLUGIN" "$1/old" create=overwrite $options
        test "$(ls -A "$1")" = old || die "left: $(ls -A "$1")"
        test "$(fingerprint "$1/old")" = "$before" || die "old was touched"
    done
    # There is room for others.
    "$NBDKIT" -U - "$PLUGIN" "$1/new" create=true size=100G --run true
    check_clean "$1/new"
    "$NBDKIT" -U - "$PLUGIN" "$1/old" create=overwrite size=1M --run true
    check_clean "$1/old"
    rm "$1/new" "$1/old"
}
qemu-img create -q -f qcow2 "$tmp/old" 1M

# --- A limit of the file's size; anyone can have that.
if prlimit --fsize=1000000 true 2>/dev/null; then
    real="$NBDKIT"
    cat > "$tmp/limited" <<'SH'
#!/bin/sh
# The signal is ignored by those that are started from here.
trap '' XFSZ
exec prlimit --fsize=2000000 -- "$REAL_NBDKIT" "$@"
SH
    chmod +x "$tmp/limited"
    export REAL_NBDKIT="$real"
    mkdir "$tmp/limit"
    NBDKIT="$tmp/limited"
    no_room "$tmp/limit"
    NBDKIT="$real"
fi

# --- A small file system.
test "$(id -u)" -eq 0 || { echo "only root can mount"; exit 0; }
mkdir "$tmp/small"
if mount -t tmpfs -o size=2m none "$tmp/small" 2>/dev/null; then
    at_exit umount "$tmp/small"
    no_room "$tmp/small"
    # Not even for a name.
    mount -o remount,nr_inodes=1 "$tmp/small" 2>/dev/null &&
        expect_refusal 'making a file next to it: No space left' \
            "$PLUGIN" "$tmp/small/new" create=true size=1M
    test -z "$(ls -A "$tmp/small")"
fi
