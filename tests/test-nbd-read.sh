#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images and backing files on NBD servers: what is served, what is refused and
# why, and that no image makes the plugin connect anywhere.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version
requires_libnbd
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"

# far NAME [NBDKIT-OPTION...] PLUGIN [PARAMETER...]: start a server; far_NAME
# is its URI, pid_NAME its process.
far ()
{
    local name="$1"
    shift
    NBDKIT="$(command -v nbdkit)" start_nbdkit "$@"
    eval "far_$name='$uri' pid_$name='$pid'"
}

cd "$tmp"
make_image image.qcow2 expected snapshots=1
far image -r file image.qcow2
"$NBDKIT" -r -U - "$PLUGIN" "uri=$far_image" --run 'nbdcopy "$uri" -' > copy
cmp copy expected

# --- In the background, nbdkit forks; and it changes its directory.
"$NBDKIT" -r -U "$tmp/bg.sock" -P bg.pid "$PLUGIN" "uri=$far_image"
has_gone_to_background bg.pid
nbdcopy "nbd+unix:///?socket=$tmp/bg.sock" copy
cmp copy expected
nbdinfo --list "nbd+unix:///?socket=$tmp/bg.sock" | grep -q snapshot/snap1

# --- It can only be read, and that is said to clients.
start_nbdkit "$PLUGIN" "uri=$far_image"
nbdinfo --is read-only "$uri"
grep -q 'the server has it read-only' "$log"
stop_nbdkit "$pid"

# --- The server is started again meanwhile: a reader does not notice.  But if
# it has something else now, that is not taken for the image.
start_nbdkit -r "$PLUGIN" "uri=$far_image"
connect_client
kill -9 "$pid_image"
_gone "$pid_image"
far_sock="${far_image#*socket=}"
rm -f "$far_sock"
again () { nbdkit -f -U "$far_sock" -P "$tmp/again.pid" "$@" & _pids+=("$!"); last=$!; }
again -r file "$tmp/image.qcow2"
wait_until -p "$last" listens "$far_sock"
nbdcopy "$uri" copy
cmp copy expected
kill -9 "$last"
_gone "$last"
rm -f "$far_sock"
again -r memory "$(stat -c %s image.qcow2)"
wait_until -p "$last" listens "$far_sock"
if nbdcopy "$uri" copy 2> copy.log; then die "another image is read"; fi
grep -q 'Stale file handle' "$log"
disconnect_client
stop_nbdkit "$pid"

# --- The tool.
far image -r file image.qcow2
"$tool" check "$far_image" > check.out
"$tool" info image.qcow2 > info.file
"$tool" info "$far_image" > info.far
grep -q 'snap1' info.far
"$tool" map image.qcow2 | awk '{ print $1, $2, $3 }' > map.file
"$tool" map "$far_image" | awk '{ print $1, $2, $3 }' > map.far
cmp map.file map.far

# --- A backing file there, raw or an image, of an overlay here.
far raw -r file expected
for kind in raw qcow2; do
    case $kind in raw) base=$far_raw ;; qcow2) base=$far_image ;; esac
    rm -f overlay.qcow2
    start_nbdkit "$PLUGIN" overlay.qcow2 create=true "backing=$base" \
        backing-format=$kind
    nbdcopy "$uri" copy
    cmp copy expected
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"overlay" * 1000, 66000)
h.shutdown()' "$sock"
    stop_nbdkit "$pid"
    cp expected model
    "$PYTHON" -c 'import sys
f = open("model", "r+b")
f.seek(66000)
f.write(b"overlay" * 1000)'
    # QEMU finds the base, too, as the name that is recorded is a URI.
    same_disk overlay.qcow2 model
    check_clean overlay.qcow2
    start_nbdkit -r "$PLUGIN" overlay.qcow2 "backing=$base"
    nbdcopy "$uri" copy
    cmp copy model
    stop_nbdkit "$pid"
    # But only if the user says so.
    for follow in none beneath any; do
        expect_refusal 'nbd\+unix|protocol' "$PLUGIN" overlay.qcow2 \
            follow=$follow
    done
done

# --- Two hosts' overlays over one base at once.
for i in 1 2; do
    start_nbdkit "$PLUGIN" "two$i.qcow2" create=true "backing=$far_raw" \
        backing-format=raw
    eval "uri$i='$uri'"
done
nbdcopy "$uri1" copy1 & c1=$!
nbdcopy "$uri2" copy2
wait $c1
cmp copy1 expected
cmp copy2 expected

# --- An image there that names a backing file.
qemu-img create -q -f qcow2 -b "$tmp/expected" -F raw abs.qcow2
qemu-img create -q -f qcow2 -b expected -F raw rel.qcow2
far abs -r file abs.qcow2
far rel -r file rel.qcow2
expect_refusal 'not allowed: refused by follow=none' "$PLUGIN" "uri=$far_abs"
expect_refusal "can't be found from an NBD server: backing=" "$PLUGIN" \
    "uri=$far_abs" follow=beneath
for follow in beneath any; do
    expect_refusal "can't be found from an NBD server: backing=" "$PLUGIN" \
        "uri=$far_rel" follow=$follow
done
for args in "uri=$far_abs follow=any" "uri=$far_rel backing=$tmp/expected" \
            "uri=$far_rel backing=$far_raw"; do
    # shellcheck disable=SC2086
    "$NBDKIT" -r -U - "$PLUGIN" $args --run 'nbdcopy "$uri" -' > copy
    cmp copy expected
done

# --- Loops are found where they can be.
far loop -r file abs.qcow2
expect_refusal 'loop' "$PLUGIN" "uri=$far_loop" "backing=$far_loop" \
    backing-format=qcow2

# --- What is wrong with the parameters is said.
none="nbd+unix:///?socket=$tmp/none"
expect_refusal 'connecting: ' "$PLUGIN" "uri=$none"
expect_refusal 'must be an NBD URI' "$PLUGIN" uri=image.qcow2
expect_refusal 'say uri=' "$PLUGIN" nbd://localhost
expect_refusal 'two images' "$PLUGIN" image.qcow2 "uri=$far_image"
expect_refusal 'must be absolute' "$PLUGIN" 'uri=nbd+unix:///?socket=s'
expect_refusal 'retry= is only for' "$PLUGIN" image.qcow2 retry=1
expect_refusal 'from 1 to 16' "$PLUGIN" "uri=$far_image" connections=17
expect_refusal 'from 1 to' "$PLUGIN" "uri=$far_image" timeout=0
expect_refusal 'NBD has no locks' -r "$PLUGIN" "uri=$far_image" locking=on
far empty memory 1M
expect_refusal 'qcow2' "$PLUGIN" "uri=$far_empty"

# --- A server that comes late.
( sleep 1.5; exec nbdkit -f -r -U "$tmp/none" file "$tmp/image.qcow2" ) &
_pids+=("$!")
"$NBDKIT" -r -U - "$PLUGIN" "uri=$none" retry=100 --run 'nbdcopy "$uri" -' > copy
cmp copy expected
