/* SPDX-License-Identifier: BSD-3-Clause */

/* What pages of bits have at points in time is kept: S5. */

#include <config.h>

#include "qcow2/write/bit-slots-parts.h"

/* So many slots are looked at in one step. */
#define STEP 64

/* The words that have all of what has changed, for points up to the newest one: what
 * is exact may lack some after its bitmap's end began (S4).  It is read before the
 * words are: a bitmap that follows again has regained them by then.
 */
static const _Atomic uint64_t *
right_words (const struct bit_slots *s, const struct bit_slot *t,
             uint64_t newest)
{
  const struct followed *b = &s->parts->bitmap[t->bitmap];
  const enum follow_state state =
    atomic_load_explicit (&b->state, memory_order_acquire);

  return state == FOLLOW_ALL ||
    (state == FOLLOW_ENDING && newest <= b->ends_at) ? t->exact : t->durable;
}

/* Several threads may do it at once.  Each adds bits only when there is a copy, so
 * that all have found the same ones, but for want of memory.
 */
void
bit_slots_keep (struct bit_slots *s, struct bit_slot *t)
{
  struct points *p = s->parts->w->points;
  const uint64_t newest = atomic_load (&p->newest);
  uint8_t bytes[BIT_PAGE];

  bit_slots_bytes (s, right_words (s, t, newest), bytes);
  points_keep_bits (p, s->parts->bitmap[t->bitmap].table, t->page, bytes,
                    s->page_bits / 8);
  atomic_store_explicit (&t->kept, newest, memory_order_release);
}

/* Whether the disk may have more bits than those which are right.  s->lock held. */
static bool
has_more (const struct bit_slots *s, const struct bit_slot *t)
{
  const uint64_t newest = atomic_load (&s->parts->w->points->newest);
  const _Atomic uint64_t *right = right_words (s, t, newest);
  unsigned i = 0;

  while (i < s->page_bits / 64 && right[i] == t->durable[i])
    i++;
  return t->unsettled != 0 || i < s->page_bits / 64;
}

/* While a page is written, as it is exactly, the disk may have more of it. */
static void
wait_for_slot (struct bit_slots *s, const struct bit_slot *t, unsigned i)
{
  while (t->state == SLOT_WRITING && t->bitmap == i)
    pthread_cond_wait (&s->changed, &s->lock);
}

bool
bit_slots_keep_some (struct bit_slots *s, unsigned i, unsigned *at)
{
  const unsigned end = *at + STEP < s->nr ? *at + STEP : s->nr;

  for (; *at < end; ++*at) {
    struct bit_slot *t = &s->slot[*at];

    pthread_mutex_lock (&s->lock);
    wait_for_slot (s, t, i);
    if (t->state == SLOT_READY && t->bitmap == i &&
        bit_slots_must_keep (s, t) && has_more (s, t))
      bit_slots_keep (s, t);
    pthread_mutex_unlock (&s->lock);
  }
  return *at < s->nr;
}
