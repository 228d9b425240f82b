# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""Do the servers return the same data?"""

import hashlib
import random
import subprocess

from common import MiB, QEMU_DEFAULT, TiB, die, say


def digest_whole(uri):
    h = hashlib.sha256()
    p = subprocess.Popen(["nbdcopy", uri, "-"], stdout=subprocess.PIPE)
    while True:
        b = p.stdout.read(MiB)
        if not b:
            break
        h.update(b)
    if p.wait() != 0:
        die("nbdcopy failed on", uri)
    return h.hexdigest()


def digest_sample(uri, places):
    """Of a disk which is too large to be read as a whole."""
    import nbd
    h = nbd.NBD()
    h.connect_uri(uri)
    d = hashlib.sha256(str(h.get_size()).encode())
    for at in places:
        d.update(h.pread(4096, at))
    h.shutdown()
    return d.hexdigest()


def check_same(bench, name, start, where=""):
    """Once for each of them.  start is what starts one of the servers."""
    if (name, where) in bench.checked:
        return
    bench.checked.add((name, where))
    raw, image = bench.data.get(name)[:2]
    if name in ("tib", "scatter"):
        rnd = random.Random(4)
        places = [rnd.randrange(TiB - 4096) for _ in range(4096)]
        if name == "scatter":
            places += bench.data.scattered()
        places.append(TiB - 4096)

        def digest(uri):
            return digest_sample(uri, places)
    else:
        digest = digest_whole
    sums = {}
    for server in "raw", QEMU_DEFAULT, "ours":
        s = start(server, raw, image)
        sums[server] = digest(s.uri())
        s.stop()
    if len(set(sums.values())) != 1:
        die("the servers return different data%s for %s: %s"
            % (where, name, sums))
    say("same data from the three servers%s: %s (sha256 %s...)"
        % (where, name, sums["raw"][:16]))
