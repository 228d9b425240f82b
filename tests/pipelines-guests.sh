# SPDX-License-Identifier: BSD-3-Clause
#
# Pipelines that boot Linux in QEMU, which takes a minute or more where there is
# no KVM: part of pipelines.sh, which has the rest of them and says how they are
# called.

# A guest from Debian's kernel and busybox, which is on the disk.  While it writes
# files, and flushes each, the server is killed.  Then the image is sound, and
# when it boots again what was flushed is there.
kernel=
for file in /boot/vmlinuz-*; do
    if test -r "$file" && test -d "/lib/modules/${file#*vmlinuz-}"; then
        kernel="$file"
    fi
done

has_boot ()
{
    test -n "$kernel" && qemu-system-x86_64 --version &&
        command -v mke2fs modprobe xz && _static_busybox
}
# It runs where there is no library.
_static_busybox ()
{
    local busybox
    busybox="$(command -v busybox)" && ! ldd "$busybox" && "$busybox" cpio --help
}

# make_initrd: its init loads what the disk needs, and goes on with that.
make_initrd ()
{
    local line module nr=100
    rm -rf initrd
    mkdir -p initrd/{bin,dev,root,modules}
    cp "$(command -v busybox)" initrd/bin/busybox
    for module in virtio_pci virtio_blk ext4; do
        modprobe --show-depends -S "${kernel#*vmlinuz-}" "$module"
    done | while read -r _ line _; do
        test -f "$line" || continue # it is built in
        nr=$(( nr + 1 ))
        case "$line" in
            *.xz) xz -dc "$line" > "initrd/modules/$nr.ko" ;;
            *) cp "$line" "initrd/modules/$nr.ko" ;;
        esac
    done
    cat > initrd/init <<'SH'
#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
for m in /modules/*; do $B insmod $m 2> /dev/null; done
$B mount -t ext4 -o rw /dev/vda /root || echo "NO DISK"
exec $B switch_root /root /init
SH
    chmod +x initrd/init
    (cd initrd && find . | busybox cpio -o -H newc 2> /dev/null) > initrd.cpio
}

# make_root: a file system for the disk.  Each boot says which of its files are
# as they were flushed, and then writes more, or ends.
make_root ()
{
    rm -rf root root.raw
    mkdir -p root/{bin,dev,proc,data}
    cp "$(command -v busybox)" root/bin/busybox
    cat > root/init <<'SH'
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
cd /data
n=0
while test -e $((n + 1)).sum && $B md5sum -c $((n + 1)).sum > /dev/null; do
    n=$((n + 1))
    echo "FOUND $n"
done
case "$($B cat /proc/cmdline)" in
    *look-only*)
        echo "LOOKED"
        $B sync
        $B mount -o remount,ro /
        $B reboot -f ;;
esac
while true; do
    n=$((n + 1))
    $B dd if=/dev/urandom of=$n bs=64k count=$((n % 7 + 1)) 2> /dev/null &&
        $B md5sum $n > $n.sum || echo "NOT WRITTEN"
    $B sync
    echo "FLUSHED $n"
done
SH
    chmod +x root/init
    mke2fs -q -F -t ext4 -d root root.raw 64M > mke2fs.log 2>&1 ||
        die "$(cat mke2fs.log)"
}

# boot [WORD]: start the guest; what it says is in console.  Linux looks whether
# its timer ticks, and panics where QEMU gets no processor meanwhile: it must not.
boot ()
{
    : > console
    qemu-system-x86_64 -accel tcg -m 256 -nodefaults -display none \
        -no-reboot -serial file:console -kernel "$kernel" -initrd initrd.cpio \
        -append "console=ttyS0 panic=-1 no_timer_check ${1-}" \
        -drive "file=$s,format=raw,if=virtio,discard=unmap,detect-zeroes=unmap" \
        > qemu.log 2>&1 < /dev/null &
    guest=$!
    _pids+=("$guest")
}
# The last number that the guest has said.
last () { sed -n "s/.*$1 \([0-9]*\).*/\1/p" console | tail -n 1; }
has_flushed () { test "$(last FLUSHED || true)" -ge "$1"; } 2> /dev/null

run_boot ()
{
    local flushed found
    test -e initrd.cpio || make_initrd
    test -e root.raw || make_root
    serve --shared=0
    timeout 300 qemu-img convert -n -f raw -O raw root.raw "$s"
    boot
    wait_until -t 1800 -p "$guest" has_flushed 12 ||
        die "the guest does not write: $(cat console qemu.log)"
    # The power is cut.
    kill -9 "$pid"
    _gone "$pid"
    wait "$pid" || true
    forget "$pid"
    kill -9 "$guest"
    _gone "$guest"
    wait "$guest" || true
    forget "$guest"
    flushed="$(last FLUSHED)"
    test "$flushed" -ge 12
    # Leaks are not damage.
    qemu-img check -q -f qcow2 disk.qcow2 > check.log 2>&1 || test $? -eq 3 ||
        die "$server: $(cat check.log)"
    qemu-img check -q -f qcow2 -r leaks disk.qcow2 > check.log 2>&1 ||
        die "$(cat check.log)"
    serve --shared=0
    boot look-only
    wait_until -t 1800 grep -q LOOKED console ||
        die "it does not boot again: $(cat console qemu.log)"
    _gone "$guest" 600 || die "the guest does not end: $(cat console)"
    wait "$guest" || true
    forget "$guest"
    found="$(last FOUND)"
    test "${found:-0}" -ge "$flushed" ||
        die "$server: of $flushed flushed files there are $found"
    qemu-img convert -f raw -O raw "$s" after.raw
    e2fsck -fn after.raw > e2fsck.log 2>&1 || die "$(cat e2fsck.log)"
    echo "a sound image, and all flushed files"
}

# libguestfs takes KVM where there is a /dev/kvm, which need not work.
export LIBGUESTFS_BACKEND=direct
kvm_works ()
{
    (echo quit | qemu-system-x86_64 -machine accel=kvm -cpu max -nodefaults \
        -display none -monitor stdio -S)
} > /dev/null 2>&1
kvm_works || export LIBGUESTFS_BACKEND_SETTINGS=force_tcg

# guestfish: partition, file system, files, trim.
has_guestfish () { test -n "$kernel" && guestfish --version; }
run_guestfish ()
{
    serve --shared=0
    timeout 1800 guestfish > guestfish.out \
        2> guestfish.log <<END || die "$(cat guestfish.out guestfish.log)"
add-drive "" protocol:nbd server:unix:$tmp/s format:raw discard:enable
run
part-disk /dev/sda mbr
mkfs ext4 /dev/sda1
mount-options discard /dev/sda1 /
write /hello "some text"
fill 1 20000000 /big
checksum sha256 /big
sync
rm /big
sync
fstrim /
cat /hello
umount /
fsck ext4 /dev/sda1
part-list /dev/sda
END
    cat guestfish.out
    # What was trimmed was given back: the data was 20 MB.
    test "$(stat -c %b disk.qcow2)" -lt 20000 || die "$server: not trimmed"
}
