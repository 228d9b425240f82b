#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause

# The wings of core/: which folder includes which others.  Within a folder files
# include each other as they like, but not in circles.

core=${srcdir:-$(dirname "$0")}/../../core
[ -n "$1" ] && core=$1

# A folder: what it may include beside itself, folders or single headers.
wings='
base:
storage: base
cache: base storage
disk: base storage cache
raw: base storage cache disk
qcow2: base storage cache disk
qcow2/check: base/advice.h base/bytes.h base/error.h base/hash.h base/offset.h
qcow2/check: storage/storage.h
qcow2/check: qcow2/codec.h qcow2/entry.h qcow2/foreign.h qcow2/format.h
qcow2/check: qcow2/header.h
qcow2/write: base storage cache qcow2 disk qcow2/check
qed: base storage cache disk qcow2/check/report.h qcow2/check/repair.h
manage: base storage qcow2 qed
.: base storage cache disk raw qcow2 qcow2/check qcow2/write qed manage
'

failed=0
nr=0

fail ()
{
    echo "$*" >&2
    failed=1
}

# may_include FOLDER HEADER
may_include ()
{
    printf '%s' "$wings" | awk -v folder="$1:" -v header="$2" '
        BEGIN { of = header; if (!sub(/\/[^\/]*$/, "", of)) of = "." }
        of ":" == folder { found = 1 }
        $1 == folder { for (i = 2; i <= NF; i++)
                           if ($i == of || $i == header) found = 1 }
        END { exit !found }'
}

cd "$core" || exit 1
edges=$(mktemp) || exit 1
trap 'rm -f "$edges"' EXIT

for file in $(find . -name '*.[ch]' | sed 's,^\./,,'); do
    nr=$((nr + 1))
    folder=$(dirname "$file")
    printf '%s' "$wings" | grep -q "^$folder:" ||
        fail "$file: its folder is not in the table (see $0)"
    # Everything between quotation marks is ours, by its path in core/; config.h
    # is included as <config.h>.
    for header in $(sed -n \
        's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' \
        "$file"); do
        [ -f "$header" ] || fail "$file includes $header, which is not here"
        may_include "$folder" "$header" ||
            fail "$file includes $header: $folder must not"
        # X-parts.h is a header of the same room as X.c.
        room=${file%.[ch]}
        room=${room%-parts}
        included=${header%.h}
        included=${included%-parts}
        [ "$room" = "$included" ] || echo "$room $included"
    done
    # Nothing but core/ itself and the system.
    if grep -n 'include.*\(nbdkit\|plugin/\|\.\./\)' "$file" >&2; then
        fail "$file includes what is outside of core/"
    fi
done > "$edges"

tsort "$edges" > /dev/null || fail "these include each other in a circle"
[ "$nr" -gt 0 ] || fail "no files found in $core"
exit "$failed"
