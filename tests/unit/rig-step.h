/* SPDX-License-Identifier: BSD-3-Clause */

/* A request as a line of a table: tests that have each call of the storage
 * fail in turn go through such tables.
 */

#ifndef RIG_STEP_H
#define RIG_STEP_H

#include <stdint.h>
#include <stdlib.h>

#include "image.h"
#include "rig.h"

enum what { WRITE, FUA, ZERO, ZERO_TRIM, TRIM, FLUSH };

struct step {
  enum what what;
  uint64_t offset, count; /* bytes of the disk */
};

/* The request, and the same to the model if it succeeds.  What is written
 * follows from seed.  Returns 0, or -1 with an error.
 */
static inline int
rig_try_step (struct rig *r, const struct step *s, uint64_t seed)
{
  switch (s->what) {
  case WRITE:
    return rig_try_write (r, s->offset, s->count, seed, 0);
  case FUA:
    return rig_try_write (r, s->offset, s->count, seed, IMAGE_FUA);
  case ZERO:
    return rig_try_zero (r, s->offset, s->count, 0);
  case ZERO_TRIM:
    return rig_try_zero (r, s->offset, s->count, IMAGE_MAY_TRIM);
  case TRIM:
    return rig_try_trim (r, s->offset, s->count, 0);
  case FLUSH:
    return image_flush (r->im);
  }
  abort ();
}

#endif
