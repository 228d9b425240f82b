#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause

# Each fault of the table has its patch, which still fits core/, and tests that
# exist; and there are no other patches.  Whether the tests catch the faults is
# what `make check-mutations' finds out.

srcdir=${srcdir:-$(dirname "$0")}
top=$srcdir/../..
status=0
nr=0

if ! command -v patch > /dev/null; then
    echo "there is no patch(1)"
    exit 77
fi

wrong () {
    echo "$*" >&2
    status=1
}

while IFS='|' read -r name breaks tests what; do
    name=${name%% *}
    nr=$((nr + 1))
    if [ -z "${breaks// }" ] || [ -z "${what// }" ]; then
        wrong "$name: the table does not say what it breaks"
    fi
    for test in ${tests//+/ }; do
        command=$(sed -n "s/^$test = \([^ ]*\).*/\1/p" "$srcdir/table")
        program=${command:-$test}.c
        [ -f "$top/tests/unit/$program" ] ||
            [ -f "$top/tests/crash/$program" ] ||
            wrong "$name: there is no $test"
    done
    patch --dry-run -s -f -p1 -F0 -d "$top" < "$srcdir/$name.patch" ||
        wrong "$name.patch does not apply"
done < <(grep '^[0-9].*|' "$srcdir/table")

for patch in "$srcdir"/*.patch; do
    grep -q "^$(basename "$patch" .patch) *|" "$srcdir/table" ||
        wrong "$patch is not in the table"
done

echo "$nr patches"
[ "$nr" -gt 0 ] || wrong "the table is empty"
exit $status
