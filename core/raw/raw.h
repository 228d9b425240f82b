/* SPDX-License-Identifier: BSD-3-Clause */

/* Raw files: the disk, byte by byte. */

#ifndef CORE_RAW_RAW_H
#define CORE_RAW_RAW_H

#include "disk/format.h"

extern const struct format_ops raw_format;

#endif /* CORE_RAW_RAW_H */
