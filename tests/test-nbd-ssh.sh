#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images behind ssh: one that is there, and a new one, through nbdkit's ssh plugin
# and an sshd of this test's own.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires_libnbd
command -v ssh-keygen > /dev/null || skip "no ssh-keygen"
PATH="$PATH:/usr/sbin"
sshd="$(command -v sshd)" || skip "no sshd"
"$NBDKIT" --dump-plugin ssh > /dev/null 2>&1 || skip "no plugin ssh"

cd "$tmp"
# As root it wants a directory for processes without privileges, which its service
# makes.
test "$(id -u)" -ne 0 || mkdir -p /run/sshd
for key in host user; do ssh-keygen -q -t ed25519 -N '' -f $key; done
cp user.pub authorized
cat > sshd.conf <<EOF
HostKey $tmp/host
AuthorizedKeysFile $tmp/authorized
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
Subsystem sftp internal-sftp
EOF

# sshd can't be given port 0, but a connection.
"$PYTHON" - "$sshd" <<'PY' &
import os
import socket
import subprocess
import sys

s = socket.create_server(("127.0.0.1", 0))
with open("port.new", "w") as f:
    f.write(str(s.getsockname()[1]))
os.rename("port.new", "port")
while True:
    c, _ = s.accept()
    with open("sshd.log", "a") as log:
        subprocess.Popen([sys.argv[1], "-i", "-e", "-f",
                          os.path.abspath("sshd.conf")],
                         stdin=c, stdout=c, stderr=log)
    c.close()
PY
listener=$!
_pids+=("$listener")
wait_until -p "$listener" test -s port || die "nothing listens"
port="$(cat port)"
echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 host.pub)" > known

# far FILE [OPTION...]: a server of that file; its URI is $far.
far ()
{
    local file="$1"
    shift
    start_nbdkit "$@" ssh host=127.0.0.1 port="$port" user="$(id -un)" \
        identity="$tmp/user" known-hosts="$tmp/known" "path=$tmp/$file"
    far="$uri" far_pid="$pid"
}

make_image image.qcow2 expected
far image.qcow2 -r
"$NBDKIT" -r -U - "$PLUGIN" "uri=$far" --run 'nbdcopy "$uri" -' > copy
cmp copy expected
stop_nbdkit "$far_pid"

truncate -s 8M new.qcow2
far new.qcow2
nbdcopy --flush expected -- \
    [ "$NBDKIT" "$PLUGIN" create=true size="$(stat -c %s expected)" "uri=$far" ]
"$NBDKIT" -r -U - "$PLUGIN" "uri=$far" --run 'nbdcopy "$uri" -' > copy
cmp copy expected
stop_nbdkit "$far_pid"
check_clean new.qcow2
same_disk new.qcow2 expected
