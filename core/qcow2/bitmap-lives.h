/* SPDX-License-Identifier: BSD-3-Clause */

/* At which points in time bitmaps have begun and ended while the image is served
 * (qcow2/write/rotate.h): so that nobody asks one what had changed by a point that is
 * not within its life.  Those that were there before, and have not ended, are not
 * listed.  A bitmap is known by the place of its table, which no other one gets.
 *
 * Memory: 24 bytes for each bitmap that has begun or ended.
 */

#ifndef CORE_QCOW2_BITMAP_LIVES_H
#define CORE_QCOW2_BITMAP_LIVES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/offset.h"

struct bitmap_life {
  struct host_off table;
  uint64_t began, ended; /* generations of points; began may be 0: before all;
                          * ended, too: it has not */
};

struct bitmap_lives {
  pthread_mutex_t lock; /* moments */
  struct bitmap_life *life;
  size_t nr, max;
};

extern void bitmap_lives_init (struct bitmap_lives *l);
extern void bitmap_lives_destroy (struct bitmap_lives *l);

/* Have room for one that begins, and one that ends.  Returns -1 with ENOMEM set. */
extern int bitmap_lives_reserve (struct bitmap_lives *l);

/* After that: one begins, or ends, with the point of this generation; or it has not
 * begun after all.
 */
extern void bitmap_lives_begin (struct bitmap_lives *l, struct host_off table,
                                uint64_t generation);
extern void bitmap_lives_end (struct bitmap_lives *l, struct host_off table,
                              uint64_t generation);
extern void bitmap_lives_forget (struct bitmap_lives *l, struct host_off table);

/* Whether all that had changed by the point of this generation, since the bitmap
 * began, is in it.
 */
extern bool bitmap_lives_at (struct bitmap_lives *l, struct host_off table,
                             uint64_t generation);

#endif /* CORE_QCOW2_BITMAP_LIVES_H */
