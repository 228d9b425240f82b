#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# bash completes the commands of nbdkit-qcow2-tool, their options and values.

. ./functions.sh

tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
requires test -x "$tool"
cd "$tmp"
touch disk.qcow2 other.raw

. "$testsrc/../completion/nbdkit-qcow2-tool"
complete -p nbdkit-qcow2-tool > out
grep -q _nbdkit_qcow2_tool out || die "not registered: $(cat out)"

# completes WORDS WORD...: the last of these WORDs, which may be empty, can become
# exactly these.  A `=' is a word, as bash has it.
completes ()
{
    COMP_WORDS=("$tool" "${@:2}")
    COMP_CWORD=$(( $# - 1 ))
    COMPREPLY=()
    _nbdkit_qcow2_tool 2> err || true
    test "${COMPREPLY[*]}" = "$1" ||
        die "${*:2}: '${COMPREPLY[*]}', not '$1' $(cat err)"
}

completes 'check' ch
completes 'snapshot' sn
completes 'resize rebase' help re
completes 'disk.qcow2' check di
completes '--repair=' check --rep
completes 'leaks all' check --repair = ''
completes 'all' check --repair = a
completes 'leaks all' check -r ''
completes 'beneath' map --follow = b
completes 'none beneath any' resize disk.qcow2 --follow =
completes 'human json' snapshot --output =
completes 'raw qcow2 qed' resize --backing-format = ''
completes 'qcow2' resize --backing-format = qc
completes '--shrink' resize --s
completes '--passphrase= --progress' rebase disk.qcow2 --p
completes 'other.raw' rebase -b ot
completes '' nosuch --x

# All commands, and only they.
"$tool" --help | sed -n 's/^  \([a-z][a-z]*\) .*/\1/p' > commands
completes "$(tr '\n' ' ' < commands)help" ''
while read -r command; do
    "$tool" help "$command" > out || die "no help for $command"
    COMP_WORDS=("$tool" "$command" --)
    COMP_CWORD=2
    _nbdkit_qcow2_tool
    printf '%s\n' "${COMPREPLY[@]}" | sed 's/=$//' | sort -u > ours
    grep -oE -- '--[a-z-]+' out | sort -u > theirs
    comm -13 theirs ours > wrong
    test ! -s wrong || die "$command has no $(cat wrong)"
done < commands
