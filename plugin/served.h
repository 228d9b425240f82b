/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that has clients, or will have. */

#ifndef QCOW2_SERVED_H
#define QCOW2_SERVED_H

#include <stdatomic.h>

#include "image.h"

struct served {
  struct image *image;
  atomic_flag noted; /* that it is served read-only */
};

#endif /* QCOW2_SERVED_H */
