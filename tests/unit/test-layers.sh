#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause

# The wings of core/: which folder includes which others.  Within a folder files
# include each other as they like, but not in circles.

core=${srcdir:-$(dirname "$0")}/../../core
[ -n "$1" ] && core=$1

# A folder: what it may include beside itself, folders or single headers.
wings='
base:
crypto: base
storage: base crypto
cache: base storage
disk: base storage cache
raw: base storage cache disk
qcow2: base crypto storage cache disk
qcow2/check: base/advice.h base/bytes.h base/error.h base/hash.h base/offset.h
qcow2/check: storage/storage.h
qcow2/check: qcow2/bitmaps.h qcow2/codec.h qcow2/entry.h qcow2/foreign.h qcow2/format.h
qcow2/check: qcow2/header.h
qcow2/write: base storage cache qcow2 disk qcow2/check
qed: base storage cache disk qcow2/check/report.h qcow2/check/repair.h
manage: base crypto storage cache disk qcow2 qcow2/check qcow2/write qed
.: base crypto storage cache disk raw qcow2 qcow2/check qcow2/write qed manage
'

cd "$core" || exit 1
edges=$(mktemp) || exit 1
trap 'rm -f "$edges"' EXIT

# Everything between quotation marks is ours, by its path in core/; config.h is
# included as <config.h>.  What include what, room by room, goes to stdout.
find . -name '*.[ch]' | sed 's,^\./,,' | sort | WINGS=$wings awk '
function fail(text) { print text > "/dev/stderr"; failed = 1 }
function folder_of(file) { return sub(/\/[^\/]*$/, "", file) ? file : "." }
# X-parts.h is a header of the same room as X.c.
function room_of(file)
{
    sub(/\.[ch]$/, "", file)
    sub(/-parts$/, "", file)
    return file
}
function look(file, line,    folder, header)
{
    folder = folder_of(file)
    # Nothing but core/ itself and the system.
    if (line ~ /include.*(nbdkit|plugin\/|\.\.\/)/)
        fail(file " includes what is outside of core/: " line)
    if (line !~ /^[ \t]*#[ \t]*include[ \t]*"/)
        return
    split(line, part, "\"")
    header = part[2]
    if (!(header in is_file))
        fail(file " includes " header ", which is not here")
    if (folder != folder_of(header) && !((folder, header) in may) &&
        !((folder, folder_of(header)) in may))
        fail(file " includes " header ": " folder " must not")
    if (room_of(file) != room_of(header))
        print room_of(file), room_of(header)
}
BEGIN {
    nr = split(ENVIRON["WINGS"], row, "\n")
    for (i = 1; i <= nr; i++) {
        n = split(row[i], word, " ")
        if (n == 0)
            continue
        sub(/:$/, "", word[1])
        is_wing[word[1]] = 1
        for (j = 2; j <= n; j++)
            may[word[1], word[j]] = 1
    }
}
{ file[NR] = $0; is_file[$0] = 1 }
END {
    if (NR == 0)
        fail("no files found")
    for (i = 1; i <= NR; i++) {
        if (!(folder_of(file[i]) in is_wing))
            fail(file[i] ": its folder is not in the table")
        while ((getline line < file[i]) > 0)
            look(file[i], line)
        close(file[i])
    }
    exit failed
}' > "$edges" || exit 1

tsort "$edges" > /dev/null || {
    echo "these include each other in a circle" >&2
    exit 1
}
