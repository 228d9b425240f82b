/* SPDX-License-Identifier: BSD-3-Clause */

/* What pages of bits are: for bit-slots.c, and for bit-slots-kept.c, which keeps
 * what they were at points in time.
 */

#ifndef CORE_QCOW2_WRITE_BIT_SLOTS_PARTS_H
#define CORE_QCOW2_WRITE_BIT_SLOTS_PARTS_H

#include <endian.h>
#include <string.h>

#include "base/hash.h"
#include "qcow2/write/bit-slots.h"

#define PAGE_WORDS (BIT_PAGE / 8)

enum slot_state { SLOT_FREE, SLOT_LOADING, SLOT_READY, SLOT_WRITING };

struct bit_slot {
  /* bit_slots.lock */
  struct bit_slot *next; /* with the same hash, or free */
  enum slot_state state;
  unsigned holders;
  bool used; /* since the clock's hand has passed */

  unsigned bitmap; /* constant while held */
  uint64_t page;

  /* Bits of this page.  Words as they are in the host, of PAGE_WORDS. */
  _Atomic uint64_t *exact, *durable;

  /* For points up to this generation it was kept (S5), if there was memory. */
  _Atomic uint64_t kept;

  unsigned unsettled; /* sectors that may have more on the disk than durable,
                       * since writing them has failed; constant while held */

  pthread_mutex_t lock; /* around a mark's I/O */
  uint64_t marked_at;   /* lock; nanoseconds */
  unsigned mark;        /* lock; bits that the last one added; 0: none since
                         * the page was loaded, or written as it is exactly */
};

struct bit_slots {
  struct bit_parts *parts;
  unsigned page_bits, page_shift; /* bits in a page, log2 of it */
  struct hash_key key;
  unsigned hash_bits;
  unsigned nr, max_holds;
  struct bit_slot *slot;
  _Atomic uint64_t *words;

  pthread_mutex_t lock; /* moments */
  pthread_cond_t changed;
  struct bit_slot **bucket;
  struct bit_slot *free;
  unsigned hand, holds;
};

/* Words of a page, as they are on the disk. */
static inline void
bit_slots_bytes (const struct bit_slots *s, const _Atomic uint64_t *words,
                 uint8_t *bytes)
{
  unsigned i;

  for (i = 0; i < s->page_bits / 64; ++i) {
    const uint64_t word = htole64 (words[i]);

    memcpy (bytes + 8 * i, &word, sizeof word);
  }
}

/* Whether it must be kept before it gets more bits; and keep it.  Whoever has seen
 * that it was kept sees that it can be found.  The caller holds the page, or
 * s->lock, and is beyond the gate: there are no new points meanwhile.
 */
static inline bool
bit_slots_must_keep (const struct bit_slots *s, const struct bit_slot *t)
{
  return points_want_bits (s->parts->w->points,
                           atomic_load_explicit (&t->kept,
                                                 memory_order_acquire));
}

extern void bit_slots_keep (struct bit_slots *s, struct bit_slot *t);

#endif /* CORE_QCOW2_WRITE_BIT_SLOTS_PARTS_H */
