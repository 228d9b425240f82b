/* SPDX-License-Identifier: BSD-3-Clause */

/* Pages of the bits of bitmaps as points have them: S6 in qcow2/points.h. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/points.h"

#define BUCKET_BITS 12
#define BUCKETS (1U << BUCKET_BITS)

/* A page, as it was until it got more bits in this generation, or later. */
struct kept_bits {
  struct kept_bits *next; /* in its bucket; of one page, the newer one is first */
  struct host_off table;
  uint64_t page;
  uint64_t generation;
  size_t nr;
  uint8_t bytes[]; /* as on the disk */
};

int
points_allow_bits (struct points *p)
{
  p->bits = calloc (BUCKETS, sizeof *p->bits);
  if (p->bits != NULL)
    return 0;
  error_set (ENOMEM, "out of memory");
  return -1;
}

static struct kept_bits **
find_bucket (const struct points *p, struct host_off table, uint64_t page)
{
  const uint64_t hash = hash_mix (&p->key, hash_mix (&p->key, table.v) + page);

  return &p->bits[hash >> (64 - BUCKET_BITS)];
}

/* The next of this page, from k on; NULL: there is none.  bits_lock held. */
static struct kept_bits *
next_of_page (struct kept_bits *k, struct host_off table, uint64_t page)
{
  while (k != NULL && (k->table.v != table.v || k->page != page))
    k = k->next;
  return k;
}

/* NULL: there is no memory. */
static struct kept_bits *
new_kept (struct points *p, struct host_off table, uint64_t page,
          const uint8_t *bytes, size_t nr)
{
  struct kept_bits *k;

  if (!points_reserve (p, sizeof *k + nr))
    return NULL;
  k = malloc (sizeof *k + nr);
  if (k == NULL) {
    atomic_fetch_sub (&p->bytes, sizeof *k + nr);
    return NULL;
  }
  *k = (struct kept_bits) { .table = table, .page = page, .nr = nr };
  memcpy (k->bytes, bytes, nr);
  return k;
}

static void
free_kept (struct points *p, struct kept_bits *k)
{
  atomic_fetch_sub (&p->bytes, sizeof *k + k->nr);
  free (k);
}

/* The newest generation is read with the lock held, so that what points_end has done
 * is seen if the copies in that bucket were released after it.
 */
static bool
add_kept (struct points *p, struct kept_bits *k)
{
  struct kept_bits **bucket = find_bucket (p, k->table, k->page);
  const struct kept_bits *is;
  bool wanted;

  pthread_mutex_lock (&p->bits_lock);
  k->generation = atomic_load (&p->newest);
  is = next_of_page (*bucket, k->table, k->page);
  wanted = k->generation > atomic_load (&p->bits_given_up) &&
    (is == NULL || is->generation < k->generation);
  if (wanted) {
    k->next = *bucket;
    *bucket = k;
  }
  pthread_mutex_unlock (&p->bits_lock);
  return wanted;
}

void
points_keep_bits (struct points *p, struct host_off table, uint64_t page,
                  const uint8_t *bytes, size_t nr)
{
  struct kept_bits *k;

  if (atomic_load (&p->newest) <= atomic_load (&p->bits_given_up))
    return;
  k = new_kept (p, table, page, bytes, nr);
  if (k != NULL && !add_kept (p, k))
    free_kept (p, k);
}

bool
points_get_bits (struct points *p, const struct point *point,
                 struct host_off table, uint64_t page, uint8_t *bytes,
                 size_t nr)
{
  const uint64_t generation = atomic_load (&point->generation);
  const struct kept_bits *k, *found = NULL;

  pthread_mutex_lock (&p->bits_lock);
  for (k = next_of_page (*find_bucket (p, table, page), table, page);
       k != NULL && k->generation >= generation;
       k = next_of_page (k->next, table, page))
    found = k;
  if (found != NULL)
    memcpy (bytes, found->bytes, nr);
  pthread_mutex_unlock (&p->bits_lock);
  return found != NULL;
}

/* --------------------------------------------------------------- releasing */

static bool
is_needed (const struct points *p, const struct kept_bits *k)
{
  const struct kept_bits *older = next_of_page (k->next, k->table, k->page);

  return points_need (p, k->generation, older == NULL ? 0 : older->generation);
}

/* Give up those of each bucket, or those that no point needs. */
static void
give_up (struct points *p, bool all)
{
  unsigned i;

  for (i = 0; i < BUCKETS; ++i) {
    struct kept_bits **at = &p->bits[i], *k;

    pthread_mutex_lock (&p->bits_lock);
    while ((k = *at) != NULL) {
      if (!all && is_needed (p, k))
        at = &k->next;
      else {
        *at = k->next;
        free_kept (p, k);
      }
    }
    pthread_mutex_unlock (&p->bits_lock);
  }
}

void
points_release_bits (struct points *p)
{
  give_up (p, false);
}

/* That of the newest point comes first: no copies are added after that. */
void
points_give_up_bits (struct points *p)
{
  atomic_store (&p->bits_given_up, atomic_load (&p->newest));
  give_up (p, true);
}
