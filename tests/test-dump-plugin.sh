#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# --dump-plugin: what the plugin can do and which libraries it has.

. ./functions.sh

"$NBDKIT" "$PLUGIN" --dump-plugin > "$tmp/dump"
has ()
{
    grep -Eqx -- "$1" "$tmp/dump" || {
        cat "$tmp/dump"
        die "no line '$1'"
    }
}

has 'name=qcow2'
has 'thread_model=parallel'
has 'max_thread_model=parallel'
has 'magic_config_key=file'
has 'has_extents=1'
has 'has_can_cache=1'
has 'has_list_exports=1'
has 'has_block_size=1'
has 'qcow2_versions=2,3'
has 'qcow2_features=([a-z0-9-]+,)*snapshot-exports(,[a-z0-9-]+)*'
has 'qcow2_features=([a-z0-9-]+,)*extended-l2(,[a-z0-9-]+)*'
has 'qcow2_features=([a-z0-9-]+,)*bitmap-exports(,[a-z0-9-]+)*'
has 'qcow2_backing_formats=raw,qcow2,qed'
has 'qcow2_compression=deflate,zstd'
has 'qcow2_zlib=[0-9]+\.[0-9.]+.*'
has 'qcow2_zstd=[0-9]+\.[0-9.]+.*'
has 'qcow2_libdeflate=(no|[0-9]+\.[0-9.]+)'
for what in can_write pwrite zero trim flush can_fua can_fast_zero; do
    has "has_$what=1"
done
has 'qcow2_encryption=(no|luks,aes)'
has 'qcow2_gnutls=(no|[0-9]+\.[0-9.]+)'
