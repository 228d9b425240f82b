# nbdkit qcow2 plugin
# SPDX-License-Identifier: BSD-3-Clause

"""What programs want to be told of an image.  The end of a file's name tells
what it is: .raw, .qcow2, .qed; .luks is encrypted, and .datafile has an
external data file: both are qcow2.  What has an NBD URI is raw or qcow2."""

import os

from common import SECRET


def suffix(path):
    return os.path.splitext(path)[1][1:]


def far(image):
    return image.startswith("nbd+unix:")


def for_qemu(image):
    """What the programs of QEMU want to be told of an image."""
    if far(image):
        return ["-f", "qcow2", image]
    kind = suffix(image)
    if kind == "luks":
        return ["--object", "secret,id=key,data=" + SECRET, "--image-opts",
                "driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,"
                "file.filename=" + image]
    return ["-f", "qcow2" if kind == "datafile" else kind, image]


def for_raw(reference):
    """The plugin of nbdkit that passes it through, and its parameters."""
    if far(reference):
        return ["nbd", "uri=" + reference]
    return ["file", reference]


def for_us(image):
    if far(image):
        return ["uri=" + image]
    if suffix(image) == "luks":
        return ["passphrase=" + SECRET, "file=" + image]
    return ["follow=beneath", "file=" + image]


def to_make(image):
    """Options of qemu-img create and convert, to make one like it."""
    kind = suffix(image)
    if kind == "luks":
        return ["--object", "secret,id=key,data=" + SECRET, "-o",
                "encrypt.format=luks,encrypt.key-secret=key,"
                "encrypt.iter-time=10"]
    if kind == "datafile":
        return ["-o", "data_file=" + image + ".data"]
    return []
