#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# doc/testing.md names each test, or has a pattern for it, and names none that there
# is not.

. ./functions.sh

"$PYTHON" - "$abs_top_srcdir" << 'EOF_PYTHON' || exit 1
import fnmatch, os, re, sys

top = sys.argv[1]


def words(makefile, variable):
    """What a variable of a Makefile.am lists, but for other variables."""
    with open(os.path.join(top, makefile)) as f:
        text = f.read().replace("\\\n", " ")
    value = re.search(r"^%s\s*=(.*)$" % variable, text, re.M).group(1)
    return [w.removesuffix(".sh") for w in value.split() if w[0] != "$"]


tests = set(words("tests/Makefile.am", "integration_tests"))
for folder, variables in (("unit", ("check_PROGRAMS", "TESTS")),
                          ("crash", ("TESTS",)), ("fuzz", ("TESTS",))):
    for v in variables:
        tests.update("%s/%s" % (folder, w)
                     for w in words("tests/%s/Makefile.am" % folder, v))
assert len(tests) > 250, len(tests)

with open(os.path.join(top, "doc/testing.md")) as f:
    named = set(re.findall(r"`((?:unit/|crash/|fuzz/)?(?:test|qed|fuzz)-[\w*-]+)`",
                           f.read()))
missing = [t for t in sorted(tests)
           if not any(fnmatch.fnmatchcase(t, n) for n in named)]
gone = [n for n in sorted(named) if not fnmatch.filter(tests, n)]
if missing or gone:
    sys.exit("doc/testing.md does not name: %s\nand names what there is not: %s" %
             (" ".join(missing) or "-", " ".join(gone) or "-"))
EOF_PYTHON
