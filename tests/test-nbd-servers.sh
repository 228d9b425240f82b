#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images on servers as people have them: a base on a web server, with two hosts'
# overlays over it, a server that is slow, one whose requests fail, one that ends,
# and one in memory.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires_libnbd
PATH="$PATH:/usr/sbin"

cd "$tmp"
make_image image.qcow2 expected

# far ARG...: nbdkit with these; its URI is $far, its process $far_pid.
far ()
{
    start_nbdkit "$@"
    far="$uri" far_pid="$pid"
}

# --- Slow.
far --filter=delay file image.qcow2 rdelay=10ms wdelay=10ms
"$NBDKIT" -r -U - "$PLUGIN" "uri=$far" --run 'nbdcopy "$uri" -' > copy
cmp copy expected
stop_nbdkit "$far_pid"

# --- In memory: what one client has put there is there for the next.
far memory 16M
nbdcopy image.qcow2 "$far"
start_nbdkit "$PLUGIN" "uri=$far"
cp expected model
"$PYTHON" - "$sock" model <<'PY'
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
with open(sys.argv[2], "r+b") as f:
    for at, count in ((0, 4096), (70000, 200000), (700000, 512)):
        h.pwrite(b"m" * count, at)
        f.seek(at)
        f.write(b"m" * count)
h.flush()
h.shutdown()
PY
stop_nbdkit "$pid"
nbdcopy "$far" out.qcow2
check_clean out.qcow2
same_disk out.qcow2 model
stop_nbdkit "$far_pid"

# --- Reads fail, at times: that is told, and nothing false is read.
far --filter=error file image.qcow2 error-pread-rate=100% \
    error-pread-file="$tmp/broken" error=EIO
start_nbdkit -r "$PLUGIN" "uri=$far"
nbdcopy "$uri" copy
cmp copy expected
touch broken
if nbdcopy "$uri" copy 2> copy.log; then die "what can't be read is read"; fi
rm broken
nbdcopy "$uri" copy
cmp copy expected
stop_nbdkit "$pid"
stop_nbdkit "$far_pid"

# --- Writes fail: that is told, and what was flushed before is there.
cp image.qcow2 failing.qcow2
truncate -s +8M failing.qcow2
rm -f broken
far --filter=error file failing.qcow2 error-pwrite-rate=100% \
    error-pwrite-file="$tmp/broken" error=EIO
start_nbdkit "$PLUGIN" "uri=$far"
"$PYTHON" - "$sock" broken <<'PY'
import errno
import sys
import nbd

h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"f" * 300000, 100000)
h.flush()
open(sys.argv[2], "w").close()
for k in range(2):
    try:
        h.pwrite(b"g" * 65536, (1 + k) << 20)
    except nbd.Error as e:
        assert e.errnum == errno.EIO, e
    else:
        sys.exit("that goes well")
h.shutdown()
PY
rm broken
end_process "$pid" || true
stop_nbdkit "$far_pid"
qemu-img check -q -f qcow2 failing.qcow2 || test $? -eq 3
qemu-io -f qcow2 -r -c 'read -P 102 100000 300000' failing.qcow2 > out
if grep -q fail out; then die "what was flushed is not there"; fi

# --- It ends while it is used: readers are told.
far file image.qcow2
start_nbdkit -r "$PLUGIN" "uri=$far" retry=0 timeout=5
connect_client
nbdcopy "$uri" copy
cmp copy expected
kill -9 "$far_pid"
_gone "$far_pid"
forget "$far_pid"
if nbdcopy "$uri" copy 2> copy.log; then die "a server that is gone is read"; fi
disconnect_client
stop_nbdkit "$pid"

# --- It takes no new clients and ends with its last one: that is served to the end.
cp image.qcow2 leaving.qcow2
truncate -s +8M leaving.qcow2
far --filter=exitwhen file leaving.qcow2 exit-when-file-created="$tmp/leave" \
    exit-when-poll=1
start_nbdkit "$PLUGIN" "uri=$far"
connect_client
touch leave
"$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"m" * 4096, 0)
h.pwrite(b"m" * 200000, 70000)
h.pwrite(b"m" * 512, 700000)
h.shutdown()' "$sock"
disconnect_client
stop_nbdkit "$pid"
_gone "$far_pid" || die "it lives on without clients"
forget "$far_pid"
check_clean leaving.qcow2
same_disk leaving.qcow2 model

# --- A web server: the base of two overlays, as in the manual.
requires nginx -v
"$NBDKIT" --dump-plugin curl > /dev/null 2>&1 || skip "no plugin curl"
mkdir web
cp image.qcow2 web/base.qcow2
chmod -R a+rX web
cat > nginx.conf <<EOF2
daemon off;
worker_processes 1;
pid $tmp/nginx.pid;
error_log $tmp/nginx.log;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path $tmp/web-temp;
    proxy_temp_path $tmp/web-temp;
    fastcgi_temp_path $tmp/web-temp;
    uwsgi_temp_path $tmp/web-temp;
    scgi_temp_path $tmp/web-temp;
    server { listen unix:$tmp/web.sock; root $tmp/web; }
}
EOF2
test "$(id -u)" -ne 0 || sed -i '1iuser root;' nginx.conf
nginx -e "$tmp/nginx.log" -c "$tmp/nginx.conf" &
web=$!
_pids+=("$web")
wait_until -p "$web" listens "$tmp/web.sock" || die "nginx: $(cat nginx.log)"
far curl http://localhost/base.qcow2 unix-socket-path="$tmp/web.sock"
"$NBDKIT" -r -U - "$PLUGIN" "uri=$far" --run 'nbdcopy "$uri" -' > copy
cmp copy expected
for i in 1 2; do
    start_nbdkit "$PLUGIN" "overlay$i.qcow2" create=true "backing=$far" \
        backing-format=qcow2
    eval "sock$i=\$sock pid$i=\$pid uri$i=\$uri"
done
for i in 1 2; do
    eval "sock=\$sock$i uri=\$uri$i"
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(sys.argv[2].encode() * 70000, 30000)
h.shutdown()' "$sock" "$i"
    cp expected "model$i"
    "$PYTHON" -c 'import sys
f = open("model" + sys.argv[1], "r+b")
f.seek(30000)
f.write(sys.argv[1].encode() * 70000)' "$i"
done
for i in 1 2; do
    eval "pid=\$pid$i uri=\$uri$i"
    nbdcopy "$uri" copy
    cmp copy "model$i"
    stop_nbdkit "$pid"
    check_clean "overlay$i.qcow2"
    same_disk "overlay$i.qcow2" "model$i"
done
cmp web/base.qcow2 image.qcow2
