#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause

# The rooms of core/ are on levels, and each includes only lower ones.
# A file that is not in the table fails as well: give it a level.

core=${srcdir:-$(dirname "$0")}/../../core
[ -n "$1" ] && core=$1

# A room's own header does not count: it is on the same level.
levels='
0 format error advice hash beneath locks storage storage-file
1 header entry codec foreign backing-name check-holes
2 check-counts check-mend check-ranges check-refcounts check-report
2 bitmaps cache create create-file decoded epoch gather inflight overlap
2 suspects
3 check-state map snapshot commit
4 check-tables layer refcount
5 check-size check-walk read extents space
6 check-image chain writer
7 compress leaks repair-state
8 repair-entries repair-refcounts write
9 repair-l1 repair-snapshots zero
10 repair
11 image
'

level_of ()
{
    printf '%s' "$levels" |
        awk -v room="$1" '{ for (i = 2; i <= NF; i++)
                              if ($i == room) { print $1; exit } }'
}

failed=0
nr=0

fail ()
{
    echo "$*" >&2
    failed=1
}

for path in "$core"/*.c "$core"/*.h; do
    file=${path##*/}
    room=${file%.[ch]}
    level=$(level_of "$room")
    if [ -z "$level" ]; then
        fail "$file: no level is known for it (see $0)"
        continue
    fi
    nr=$((nr + 1))
    # Everything between quotation marks is ours but for config.h, which
    # must be included as <config.h>.
    for header in $(sed -n \
        's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' \
        "$path"); do
        included=${header%.h}
        [ "$included" = "${room%-file}" ] && continue
        # storage-file.c implements a part of storage.h, create-file.c of
        # create.h.
        lower=$(level_of "$included")
        if [ -z "$lower" ]; then
            fail "$file includes $header, for which no level is known"
        elif [ "$lower" -gt "$level" ]; then
            fail "$file (level $level) includes $header (level $lower)"
        elif [ "$lower" -eq "$level" ]; then
            echo "$level $room $included"
        fi
        # The check is to convict the rest, and shares little with it.
        case $room in
            check-*|repair*)
                case $included in
                    check-*|repair*) ;;
                    *) [ "${lower:-9}" -le 1 ] ||
                           fail "$file includes $header: not a check's" ;;
                esac ;;
        esac
    done
    # Nothing but core/ itself and the system.
    if grep -n 'include.*\(nbdkit\|plugin/\|\.\./\)' "$path" >&2; then
        fail "$file includes what is outside of core/"
    fi
done > equal-levels.$$

# On one level includes must not go round in circles, and only level 0 and
# entry -> header, codec -> header have any.
while read -r level room included; do
    case $level in
        0) ;;
        1) case $included in
               header) ;;
               *) fail "$room includes $included, on the same level" ;;
           esac ;;
        *) fail "$room includes $included, on the same level" ;;
    esac
    if grep -q "^$level $included $room\$" equal-levels.$$; then
        fail "$room and $included include each other"
    fi
done < equal-levels.$$
rm -f equal-levels.$$

[ "$nr" -gt 0 ] || fail "no files found in $core"
exit "$failed"
