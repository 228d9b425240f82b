# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""A chart of the ratios, by gnuplot."""

from common import run
from report import medians

SCRIPT = """\
set terminal svg size 900,{height} dynamic font "sans-serif,11" \\
    background "#ffffff"
set title "Speed of this plugin, as a multiple of others' (more is better)"
set logscale x 2
set xrange [{low}:{high}]
set xtics {ticks}
set yrange [{rows}:-1]
set ytics ({names}) scale 0
set grid xtics
set arrow from 1, graph 0 to 1, graph 1 nohead linewidth 2 \\
    linecolor "#444444" front
set key outside bottom center horizontal
set style fill solid
plot $reference using 2:1:(1):2:($1 - 0.4):1 with boxxyerror \\
        linecolor "#8da0cb" title "of raw, or what the table names", \\
     $qemu using 2:1:(1):2:1:($1 + 0.4) with boxxyerror \\
        linecolor "#fc8d62" title "of QEMU", \\
     $reference using 2:($1 - 0.2):(sprintf(" %.2f", $2)) with labels \\
        left font ",8" notitle, \\
     $qemu using 2:($1 + 0.2):(sprintf(" %.2f", $2)) with labels \\
        left font ",8" notitle
"""


def ratios(results):
    """(row's name, ours/reference, ours/qemu) of all rows; None for what is
    not compared."""
    for row, got in results:
        med = {s: medians(v) for s, v in got.items()}
        _, reference, qemu, ours = row.lines(med)[0]
        mine = med.get(ours, {}).get("speed")
        both = [mine and s in med and mine / med[s]["speed"] or None
                for s in (reference, qemu)]
        if any(both):
            yield row.name, *both


def block(name, values):
    """Data for gnuplot: the line, and the ratio there.  NaN is no bar, but
    keeps a block from being empty, which is an error."""
    return "$%s << end\n%s\nend\n" % (name, "\n".join(
        "%d %s" % (i, "%.4f" % x if x else "NaN")
        for i, x in enumerate(values)))


def draw(results, path):
    """Write it to path; returns whether there was anything to draw."""
    lines = list(ratios(results))
    if not lines:
        return False
    names, reference, qemu = zip(*lines)
    low, high = 0.5, 2
    for x in filter(None, reference + qemu):
        while x < low:
            low /= 2
        while x * 1.2 > high:
            high *= 2
    ticks, x = [], low
    while x <= high:
        ticks.append('"%g" %g' % (x, x))
        x *= 2
    script = SCRIPT.format(
        height=120 + 26 * len(names), rows=len(names), low=low, high=high,
        ticks="(%s)" % ", ".join(ticks),
        names=", ".join('"%s" %d' % (n, i) for i, n in enumerate(names)))
    svg = run("gnuplot", data=(block("reference", reference) +
                               block("qemu", qemu) + script).encode())
    with open(path, "wb") as f:
        f.write(svg)
    return True
