/* SPDX-License-Identifier: BSD-3-Clause */

/* What following has: for follow.c, and for rotate.c, which has bitmaps come and go.
 */

#ifndef CORE_QCOW2_WRITE_FOLLOW_PARTS_H
#define CORE_QCOW2_WRITE_FOLLOW_PARTS_H

#include "qcow2/write/bit-slots.h"
#include "qcow2/write/follow.h"

struct following {
  struct bit_parts parts;
  struct bit_slots *slots;
  atomic_bool prepared;
  pthread_mutex_t prepare_lock; /* around I/O */

  /* The thread that settles, every `idle' milliseconds. */
  unsigned idle;
  bool has_thread; /* prepare_lock */
  pthread_t thread;
  pthread_mutex_t ending_lock; /* moments */
  pthread_cond_t ending_cond;
  bool ending;     /* ending_lock */
};

/* One without bitmaps and without pages, which are both for the caller to add.
 * Returns NULL with ENOMEM set.
 */
extern struct following *follow_new (struct writer *w);
extern void follow_free (struct following *f); /* without a thread; or NULL */

/* End its thread.  No request is using it. */
extern void follow_stop (struct following *f);

#endif /* CORE_QCOW2_WRITE_FOLLOW_PARTS_H */
