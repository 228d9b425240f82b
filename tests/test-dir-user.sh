#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# dir= in the background, and with -u: the folder is the one that was there at
# the start, though its user can't reach it by its path.

. ./functions.sh

requires_python_nbd
requires_qemu

mkdir "$tmp/w"
cd "$tmp/w"
mkdir -p locked/folder run
qemu-img create -q -f qcow2 locked/folder/a.qcow2 1M
qemu-img create -q -f qcow2 locked/folder/base.qcow2 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 locked/folder/over.qcow2

# serve OPTION...: in the background, from a relative path.
serve ()
{
    rm -f run/*
    "$NBDKIT" -U "$PWD/run/s" -P "$PWD/run/pid" "$@" "$PLUGIN" \
        dir=locked/folder follow=beneath > server.log 2>&1 ||
        die "$(cat server.log)"
    pid="$(cat run/pid)"
    _pids+=("$pid")
}
# ends: with all that it should write.
ends ()
{
    kill "$pid"
    _gone "$pid" || die "it does not end"
    forget "$pid"
}
# seen: the images that are listed and can be opened, and whether for writing.
seen ()
{
    timeout 60 "$PYTHON" -c 'import os, sys, time, nbd
def target(fd):
    try:
        return os.readlink(fd)
    except FileNotFoundError:
        return ""
names = []
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
h.opt_list(lambda name, description: names.append(name) or 0)
h.opt_abort()
for name in names:
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    print(name, "ro" if h.is_read_only() else "rw")
    h.shutdown()
    # Its locks are let go after its client has left.
    while any(".qcow2" in target(e) for e in os.scandir(sys.argv[2])):
        time.sleep(0.01)' run/s "/proc/$pid/fd"
}

serve
test "$(seen | tr '\n' ' ')" = 'a.qcow2 rw base.qcow2 rw over.qcow2 rw ' ||
    die "in the background: $(seen)"
# Another folder has its name by now.
mv locked/folder locked/elsewhere
mkdir locked/folder
test "$(seen | wc -l)" -eq 3 || die "the folder was renamed: $(seen)"
ends
rmdir locked/folder
mv locked/elsewhere locked/folder

as_nobody
test "$(id -u)" -eq 0 || skip "only root can use -u"
chmod 700 locked
chmod 755 locked/folder
chown nobody locked/folder/a.qcow2 run
chmod 600 locked/folder/a.qcow2
chmod 644 locked/folder/base.qcow2 locked/folder/over.qcow2
cp locked/folder/base.qcow2 locked/folder/secret.qcow2
chmod 600 locked/folder/secret.qcow2
serve -u nobody
test "$(seen | tr '\n' ' ')" = 'a.qcow2 rw base.qcow2 ro over.qcow2 ro ' ||
    die "-u nobody: $(seen)"
ends
check_clean locked/folder/a.qcow2
