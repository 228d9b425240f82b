/* SPDX-License-Identifier: BSD-3-Clause */

/* The formats that there are. */

#ifndef CORE_FORMATS_H
#define CORE_FORMATS_H

#include "disk/format.h"

/* For struct shared; NULL after the last. */
extern const struct format_ops *const all_formats[];

#endif /* CORE_FORMATS_H */
