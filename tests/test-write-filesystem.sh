#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A file system lives on the disk: made of real files (those of FS_SOURCE),
# copied in, changed there by debugfs and, where the host lets us mount it,
# by the kernel; then copied out.  It is sound, every file is what it should
# be, and the image is clean.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires command -v mke2fs
requires command -v e2fsck
requires command -v debugfs

source_dir="${FS_SOURCE:-/usr/include/linux}"
test -d "$source_dir" || skip "$source_dir is not there"

# A copy of our own, since others may change the original meanwhile, without
# what debugfs doesn't restore alike: only files, folders and links.  Every
# other one is enough, but for a longer test.
step=2
if longer_test; then step=1; fi
mkdir "$tmp/tree"
(cd "$source_dir" && find . \( -type f -o -type d -o -type l \) -readable \
    -print0 | sed -zn "1~${step}p" |
    tar -cf - --null --no-recursion -T -) | tar -xf - -C "$tmp/tree"
size=$(( $(du -s --apparent-size -B1M "$tmp/tree" | cut -f1) * 3 + 40 ))
truncate -s ${size}M "$tmp/fs.raw"
mke2fs -q -t ext4 -O ^has_journal -d "$tmp/tree" "$tmp/fs.raw"

# The disk as a file, for programs that know nothing of NBD.
fuse=no
if nbdfuse --version >/dev/null 2>&1 && test -w /dev/fuse; then fuse=yes; fi

image="$tmp/fs.qcow2"
follow=()
n=0 mounted=0 changed=0

# unmount FOLDER, when nobody looks at it any more.
unmount ()
{
    wait_until _unmounted "$1" || die "can't unmount $1"
}
_unmounted ()
{
    ! mountpoint -q "$1" || fusermount3 -u "$1" 2>/dev/null ||
        fusermount -u "$1" 2>/dev/null || umount "$1" 2>/dev/null
}
# as_file: has the disk at $sock as the file $tmp/fuse/nbd.
as_file ()
{
    mkdir -p "$tmp/fuse"
    nbdfuse "$tmp/fuse" --unix "$sock" &
    fuse_pid=$!
    _pids+=("$fuse_pid")
    wait_until -p "$fuse_pid" test -e "$tmp/fuse/nbd"
}
no_file ()
{
    unmount "$tmp/fuse"
    wait "$fuse_pid" || true
    forget "$fuse_pid"
}
at_exit eval 'mountpoint -q "$tmp/mnt" && umount "$tmp/mnt"'
at_exit eval 'mountpoint -q "$tmp/fuse" && umount -l "$tmp/fuse"'

# compare TREE: the disk has this file system.
compare ()
{
    rm -rf "$tmp/dump" "$tmp/copy"
    mkdir "$tmp/dump"
    check_clean "$image"
    "$NBDKIT" -r -U - "$PLUGIN" "$image" "${follow[@]}" \
        --run "nbdcopy \"\$uri\" '$tmp/copy'"
    same_disk "$image" "$tmp/copy"
    e2fsck -fn "$tmp/copy" > "$tmp/fsck.log" 2>&1 || {
        cat "$tmp/fsck.log"
        die "the file system is damaged"
    }
    debugfs -R "rdump / $tmp/dump" "$tmp/copy" > "$tmp/rdump.log" 2>&1
    rm -rf "$tmp/dump/lost+found"
    diff -r --no-dereference "$1" "$tmp/dump" || die "files differ"
}

# live OPTIONS...: an image made so, and what happens in it.
live ()
{
    local k
    n=$(( n + 1 ))
    rm -f "$image"
    qemu-img create -q -f qcow2 "$@" "$image" ${size}M

    # In: nbdcopy writes, zeroes and trims on several connections.
    start_nbdkit "$PLUGIN" "$image" "${follow[@]}"
    nbdcopy --flush --request-size=$(( 65536 << n % 3 )) "$tmp/fs.raw" "$uri"
    stop_nbdkit "$pid"
    compare "$tmp/tree"

    test $fuse = yes || return 0
    rm -rf "$tmp/tree2"
    cp -a "$tmp/tree" "$tmp/tree2"

    # Some files go, others come, by debugfs on the disk as a file.
    start_nbdkit "$PLUGIN" "$image" "${follow[@]}"
    if ! as_file; then
        fuse=no
        stop_nbdkit "$pid"
        return 0
    fi
    mkdir "$tmp/tree2/new"
    {
        echo "mkdir new"
        k=0
        (cd "$tmp/tree" && find . -type f | sort) > "$tmp/files"
        while read -r file; do
            k=$(( k + 1 ))
            if test $(( k % 7 )) -eq 0; then
                echo "rm ${file#.}"
                rm "$tmp/tree2/$file"
            elif test $(( k % 11 )) -eq 0; then
                echo "write $tmp/tree/$file new/file$k"
                cp -a "$tmp/tree/$file" "$tmp/tree2/new/file$k"
            fi
        done < "$tmp/files"
    } > "$tmp/commands"
    debugfs -w -f "$tmp/commands" "$tmp/fuse/nbd" > "$tmp/debugfs.log" 2>&1
    changed=$(( changed + 1 ))

    # And by the kernel.
    mkdir -p "$tmp/mnt"
    if test "$(id -u)" -eq 0 &&
       mount -t ext4 -o loop "$tmp/fuse/nbd" "$tmp/mnt" 2>/dev/null; then
        mounted=$(( mounted + 1 ))
        cp -a "$tmp/tree" "$tmp/mnt/again"
        cp -a "$tmp/tree" "$tmp/tree2/again"
        sync -f "$tmp/mnt"
        rm -rf "$tmp/mnt/again/netfilter" "$tmp/tree2/again/netfilter"
        fstrim "$tmp/mnt" 2>/dev/null || true
        for k in 1 2 3; do
            head -c 3000000 /dev/urandom > "$tmp/tree2/random$k"
            cp "$tmp/tree2/random$k" "$tmp/mnt/"
            sync -f "$tmp/mnt"
        done
        umount "$tmp/mnt"
    fi
    no_file
    stop_nbdkit "$pid"
    compare "$tmp/tree2"
}

live
live -o compat=0.10
live -o extended_l2=on,cluster_size=128k
live -o lazy_refcounts=on,cluster_size=4k,refcount_bits=8
head -c $(( size << 19 )) /dev/urandom > "$tmp/base.raw"
follow=(follow=beneath)
live -b base.raw -F raw

# Over a compressed image of itself, changed in place: the first session's
# file system is the second one's backing file.
qemu-img convert -c -f raw -O qcow2 "$tmp/fs.raw" "$tmp/low.qcow2"
live -b low.qcow2 -F qcow2

echo "$n images, $changed changed by debugfs, $mounted mounted," \
     "$(find "$tmp/tree" -type f | wc -l) files in each"
