#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# --help: a line that begins with each key=, which is where nbdkit's shell
# completion looks, and no other keys.

. ./functions.sh

"$NBDKIT" "$PLUGIN" --help > "$tmp/help"
keys="$(sed -n 's/^\([a-z0-9-]*\)=.*/\1/p' "$tmp/help" | sort | tr '\n' ' ')"
want='arg backing backing-format backing-passphrase bitmaps cache-size clients '
want+='cluster-size command '
want+='compat compress compress-level compression-type connections create '
want+='data-file data-file-raw detect-zeroes dir discard encrypt export-name '
want+='extended-l2 file follow force-share format iter-time lazy-refcounts '
want+='locking only passphrase point-in-time point-in-time-linger '
want+='point-in-time-memory preallocation refcount-bits repair retry size table-size '
want+='timeout unsafe-no-flush uri '
test "$keys" = "$want" || {
    cat "$tmp/help"
    die "the keys are: $keys"
}
grep -q '^file=.*' "$tmp/help"
grep -q 'qcow2' "$tmp/help"

# Each of them is known to the plugin: not one is "unknown parameter".
touch "$tmp/empty"
for key in $keys; do
    "$NBDKIT" -U - "$PLUGIN" "$tmp/empty" "$key=?" --run true \
        > "$tmp/out" 2>&1 </dev/null && die "$key=? is served"
    if grep 'unknown parameter' "$tmp/out"; then die "$key"; fi
done

# And each is in the manual.
man="$abs_top_srcdir/man/nbdkit-qcow2-plugin.pod"
for key in $keys; do
    grep -Eq "^=item .*B<$key=" "$man" || die "$key= is not in the manual"
done
