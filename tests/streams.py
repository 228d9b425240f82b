# SPDX-License-Identifier: BSD-3-Clause
"""Contents of clusters, and what compresses them: deflate and zstd in all the forms
that a reader of qcow2 has to take."""

import ctypes
import ctypes.util
import random
import struct
import subprocess
import zlib


# ---------------------------------------------------------------- contents

def noise(seed, n):
    """Bytes that don't compress."""
    return random.Random("noise-%s" % (seed,)).randbytes(n)


def text(seed, n):
    """Bytes that compress; every sector differs from every other."""
    out = []
    for s in range((n + 511) // 512):
        tag = b"<%s:%d>" % (str(seed).encode(), s)
        out.append((tag * (512 // len(tag) + 1))[:512])
    return b"".join(out)[:n]


# ------------------------------------------------------------ compressors

_zstd = None


def _libzstd():
    global _zstd
    if _zstd is None:
        for name in (ctypes.util.find_library("zstd"), "libzstd.so.1"):
            try:
                lib = ctypes.CDLL(name) if name else None
            except OSError:
                lib = None
            if lib is not None:
                break
        if lib is not None:
            lib.ZSTD_compressBound.restype = ctypes.c_size_t
            lib.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
            lib.ZSTD_compress2.restype = ctypes.c_size_t
            lib.ZSTD_compress2.argtypes = [
                ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
                ctypes.c_char_p, ctypes.c_size_t]
            lib.ZSTD_createCCtx.restype = ctypes.c_void_p
            lib.ZSTD_freeCCtx.argtypes = [ctypes.c_void_p]
            lib.ZSTD_CCtx_setParameter.argtypes = [
                ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
            lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
        _zstd = lib or False
    return _zstd


def zstd_frame(data, level=3, checksum=False, content_size=True):
    lib = _libzstd()
    if not lib:
        cmd = ["zstd", "-q", "-c", "-%d" % level,
               "--check" if checksum else "--no-check"]
        if not content_size:
            cmd.append("--no-content-size")
        return subprocess.run(cmd, input=data, stdout=subprocess.PIPE,
                              check=True).stdout
    cctx = lib.ZSTD_createCCtx()
    try:
        lib.ZSTD_CCtx_setParameter(cctx, 100, level)
        lib.ZSTD_CCtx_setParameter(cctx, 200, 1 if content_size else 0)
        lib.ZSTD_CCtx_setParameter(cctx, 201, 1 if checksum else 0)
        bound = lib.ZSTD_compressBound(len(data))
        buf = ctypes.create_string_buffer(bound)
        n = lib.ZSTD_compress2(cctx, buf, bound, data, len(data))
        if lib.ZSTD_isError(n):
            raise RuntimeError("zstd failed")
        return buf.raw[:n]
    finally:
        lib.ZSTD_freeCCtx(cctx)


def zstd_skippable(n=9):
    return struct.pack("<II", 0x184D2A53, n) + b"S" * n


ZSTD_FORMS = ("plain", "frames", "checksum", "nosize", "skippable",
              "skip-end", "strong", "empty-first", "fast")


def zstd_stream(data, form):
    half = len(data) // 3
    if form == "plain":
        return zstd_frame(data)
    if form == "frames":
        return (zstd_frame(data[:half]) + zstd_frame(data[half:half + 1]) +
                zstd_frame(data[half + 1:]))
    if form == "checksum":
        return zstd_frame(data, checksum=True)
    if form == "nosize":
        return (zstd_frame(data[:half], content_size=False) +
                zstd_frame(data[half:], content_size=False, checksum=True))
    if form == "skippable":
        return (zstd_skippable() + zstd_frame(data[:half]) +
                zstd_skippable(0) + zstd_frame(data[half:]))
    if form == "skip-end":
        return zstd_frame(data) + zstd_skippable(40)
    if form == "strong":
        return zstd_frame(data, level=19)
    if form == "empty-first":
        return zstd_frame(b"") + zstd_frame(data)
    if form == "fast":
        return zstd_frame(data, level=-5)
    raise ValueError(form)


DEFLATE_FORMS = ("plain", "best", "stored", "fixed", "huffman", "rle",
                 "unterminated", "sync", "blocks", "longer")

# These have no final block.  A decoder that is still looking at its input
# when the output is full would take what follows for the next block, so the
# stream has to end where the sectors of the cluster end.
ENDLESS_FORMS = ("unterminated", "sync")


def deflate_stream(data, form):
    """Raw deflate in a window of 4 KiB, in one of several shapes."""
    def go(d, level=6, strategy=zlib.Z_DEFAULT_STRATEGY, last=zlib.Z_FINISH):
        c = zlib.compressobj(level, zlib.DEFLATED, -12, 8, strategy)
        return c.compress(d) + c.flush(last)

    if form == "plain":
        return go(data)
    if form == "best":
        return go(data, 9)
    if form == "stored":
        return go(data, 0)
    if form == "fixed":
        return go(data, 6, zlib.Z_FIXED)
    if form == "huffman":
        return go(data, 6, zlib.Z_HUFFMAN_ONLY)
    if form == "rle":
        return go(data, 6, zlib.Z_RLE)
    if form == "unterminated":
        # No final block and not one byte more than is needed to fill the
        # output: the reader runs out of input when it has everything.
        s = go(data, 6, last=zlib.Z_SYNC_FLUSH)
        return s[:-4] if s.endswith(b"\0\0\xff\xff") else s
    if form == "sync":
        return go(data, 6, last=zlib.Z_FULL_FLUSH)
    if form == "blocks":
        c = zlib.compressobj(6, zlib.DEFLATED, -12)
        out, step = b"", max(1, len(data) // 5)
        for i in range(0, len(data), step):
            out += c.compress(data[i:i + step]) + c.flush(zlib.Z_SYNC_FLUSH)
        return out + c.flush()
    if form == "longer":
        # Yields more than a cluster; decoding stops when that is full.
        return go(data + text("overrun", 700))
    raise ValueError(form)
