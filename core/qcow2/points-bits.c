/* SPDX-License-Identifier: BSD-3-Clause */

/* Pages of the bits of bitmaps as points have them: S6 in qcow2/points.h. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/points.h"

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
  p->bits = calloc (UINT64_C (1) << p->bucket_bits, sizeof *p->bits);
  if (p->bits != NULL)
    return 0;
  error_set (ENOMEM, "out of memory");
  return -1;
}

static struct kept_bits **
find_bucket (const struct points *p, struct host_off table, uint64_t page)
{
  const uint64_t hash = hash_mix (&p->key, hash_mix (&p->key, table.v) + page);

  return &p->bits[hash >> (64 - p->bucket_bits)];
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
new_kept (struct host_off table, uint64_t page, const uint8_t *bytes, size_t nr)
{
  struct kept_bits *k = malloc (sizeof *k + nr);

  if (k == NULL)
    return NULL;
  *k = (struct kept_bits) { .table = table, .page = page, .nr = nr };
  memcpy (k->bytes, bytes, nr);
  return k;
}

/* The newest generation is read with the lock held, so that what points_end has done
 * is seen if the copies in that bucket were released after it.  And it counts as
 * memory only where it can be found, so that it can be given up for a shadow.
 */
static bool
add_kept (struct points *p, struct kept_bits *k)
{
  struct kept_bits **bucket = find_bucket (p, k->table, k->page);
  const struct kept_bits *is;
  bool added;

  pthread_mutex_lock (&p->bits_lock);
  k->generation = atomic_load (&p->newest);
  is = next_of_page (*bucket, k->table, k->page);
  added = k->generation > atomic_load (&p->bits_given_up) &&
    (is == NULL || is->generation < k->generation) &&
    points_reserve (p, sizeof *k + k->nr);
  if (added) {
    k->next = *bucket;
    *bucket = k;
    p->nr_bits++;
  }
  pthread_mutex_unlock (&p->bits_lock);
  return added;
}

void
points_keep_bits (struct points *p, struct host_off table, uint64_t page,
                  const uint8_t *bytes, size_t nr)
{
  struct kept_bits *k;

  if (atomic_load (&p->newest) <= atomic_load (&p->bits_given_up))
    return;
  k = new_kept (table, page, bytes, nr);
  if (k != NULL && !add_kept (p, k))
    free (k);
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

/* Unlink all of a bucket, or those that no point needs, and put them in a list.
 * bits_lock held.
 */
static void
unlink_bucket (struct points *p, uint64_t bucket, bool all,
               struct kept_bits **list)
{
  struct kept_bits **at = &p->bits[bucket], *k;

  while ((k = *at) != NULL) {
    if (!all && is_needed (p, k)) {
      at = &k->next;
      continue;
    }
    *at = k->next;
    k->next = *list;
    *list = k;
    p->nr_bits--;
    atomic_fetch_sub (&p->bytes, sizeof *k + k->nr);
  }
}

static void
free_list (struct kept_bits *list)
{
  struct kept_bits *next;

  for (; list != NULL; list = next) {
    next = list->next;
    free (list);
  }
}

static bool
have_bits (struct points *p)
{
  bool have;

  pthread_mutex_lock (&p->bits_lock);
  have = p->nr_bits > 0;
  pthread_mutex_unlock (&p->bits_lock);
  return have;
}

/* Give up all, or those that no point needs: so many buckets at a time. */
#define STEP 64

static void
give_up (struct points *p, bool all)
{
  const uint64_t end = UINT64_C (1) << p->bucket_bits;
  uint64_t i, k;

  for (i = 0; i < end && have_bits (p); i += STEP) {
    struct kept_bits *list = NULL;

    pthread_mutex_lock (&p->bits_lock);
    for (k = i; k < i + STEP; ++k)
      unlink_bucket (p, k, all, &list);
    pthread_mutex_unlock (&p->bits_lock);
    free_list (list);
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
