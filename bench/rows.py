# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""What rows are, and how the servers take turns."""

from common import BEFORE, QEMU_DEFAULT, QEMU_TUNED, say


def faster_qemu(med, flags=""):
    return max((s for s in (QEMU_DEFAULT + flags, QEMU_TUNED + flags)
                if s in med), key=lambda s: med[s]["speed"])


def turns(bench, row, servers):
    got = {s: [] for s in servers}
    for i in range(bench.opts.rounds):
        # Back and forth, so that a drift does not favour one of them.
        for server in servers if i % 2 == 0 else reversed(servers):
            say("%s, round %d of %d: %s"
                % (row.name, i + 1, bench.opts.rounds, server))
            got[server].append(row.sample(bench, server, i == 0))
    return got


class Row:
    kind = "read"
    bs = 4096                       # of fio
    format = "qcow2"
    reference = "raw"               # what ours and qemu are compared with
    table = "raw"                   # where the report has it
    needs_nbd = False               # libnbd for Python
    qemu_nbd = True                 # whether it is compared with that
    needs_tool = False              # nbdkit-qcow2-tool
    runtime = None                  # of fio, in seconds, not --seconds
    writes = False                  # to our plugin
    want = None                     # the aim: our speed itself

    def __init__(self, name, title, data, load, unit, want_raw=None,
                 want_qemu=None, rw="", depth=0, conns=1, again=False):
        self.name = name
        self.title = title
        self.data = data            # which data set
        self.sets = [data]          # all that it needs
        self.load = load            # which function of clients
        self.unit = unit
        self.want_raw = want_raw    # the aim: times the speed of raw ...
        self.want_qemu = want_qemu  # ... and of the better qemu-nbd
        self.rw = rw
        self.depth = depth
        self.conns = conns
        self.again = again

    def against(self):
        """It compares two builds of this plugin, which is no aim's matter."""
        self.reference = self.table = BEFORE
        self.want_raw = self.want_qemu = None
        self.qemu_nbd = False

    def servers(self):
        """Those that are compared with ours, and ours."""
        if self.reference == BEFORE:
            return [BEFORE, "ours"]
        return [self.reference, QEMU_DEFAULT, "ours", QEMU_TUNED]

    def check(self, bench):
        """What has to be right before anything is measured."""

    def measure(self, bench):
        """Return {server: [samples]} of all rounds."""
        raise NotImplementedError

    def sample(self, bench, server, first):
        """One of them; first is true in the first round."""
        raise NotImplementedError

    def lines(self, med):
        """Those of the report, each (title, raw, qemu, ours): which servers
        it compares.  Not every row has all of them."""
        qemu = None if self.reference == BEFORE else faster_qemu(med)
        return [(self.title, self.reference, qemu, "ours")] + [
            ("%s, nbdkit%s" % (self.title, t), "raw" + t, qemu, "ours" + t)
            for t in (" -t 1", " -t 4") if "ours" + t in med]
