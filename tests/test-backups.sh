#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The manual's backups of a disk in use, as they are written there, beside a guest
# that writes.

. ./functions.sh

requires_python_nbd
requires_qemu
requires_libnbd
requires nbdcopy --version
qemu-img bitmap --help 2>&1 | grep -q -- --merge ||
    skip "qemu-img can't make bitmaps"

# nbdkit finds the plugin by its name, and the shell the tool.
real="$(type -P "$NBDKIT")"
mkdir "$tmp/bin"
cat > "$tmp/bin/nbdkit" <<EOF
#!/usr/bin/env bash
args=()
for a; do
    if test "\$a" = qcow2; then a='$PLUGIN'; fi
    args+=("\$a")
done
exec '$real' "\${args[@]}"
EOF
chmod +x "$tmp/bin/nbdkit"
ln -s "$abs_top_builddir/tool/nbdkit-qcow2-tool" "$tmp/bin/"

export PATH="$tmp/bin:$PATH" POD="$abs_top_srcdir/man/nbdkit-qcow2-plugin.pod"
"$PYTHON" "$testsrc/backups.py"
rm -f "$tmp"/*.qcow2 "$tmp"/*.raw "$tmp"/disk.sock # they have the same names
"$PYTHON" "$testsrc/backups-daily.py"
