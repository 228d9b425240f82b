/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/bitmap-lives.h"

void
bitmap_lives_init (struct bitmap_lives *l)
{
  *l = (struct bitmap_lives) { .nr = 0 };
  pthread_mutex_init (&l->lock, NULL);
}

void
bitmap_lives_destroy (struct bitmap_lives *l)
{
  free (l->life);
  pthread_mutex_destroy (&l->lock);
}

int
bitmap_lives_reserve (struct bitmap_lives *l)
{
  struct bitmap_life *p;
  int r = 0;

  pthread_mutex_lock (&l->lock);
  if (l->max - l->nr < 2) {
    const size_t max = 2 * l->max + 2;

    p = realloc (l->life, max * sizeof *p);
    if (p == NULL)
      r = -1;
    else {
      l->life = p;
      l->max = max;
    }
  }
  pthread_mutex_unlock (&l->lock);
  if (r == -1)
    error_set (ENOMEM, "out of memory");
  return r;
}

/* lock held */
static struct bitmap_life *
find (const struct bitmap_lives *l, struct host_off table)
{
  size_t i = 0;

  while (i < l->nr && l->life[i].table.v != table.v)
    i++;
  return i < l->nr ? &l->life[i] : NULL;
}

void
bitmap_lives_begin (struct bitmap_lives *l, struct host_off table,
                    uint64_t generation)
{
  pthread_mutex_lock (&l->lock);
  l->life[l->nr++] = (struct bitmap_life) { table, generation, 0 };
  pthread_mutex_unlock (&l->lock);
}

void
bitmap_lives_end (struct bitmap_lives *l, struct host_off table,
                  uint64_t generation)
{
  struct bitmap_life *life;

  pthread_mutex_lock (&l->lock);
  life = find (l, table);
  if (life != NULL)
    life->ended = generation;
  else
    l->life[l->nr++] = (struct bitmap_life) { table, 0, generation };
  pthread_mutex_unlock (&l->lock);
}

void
bitmap_lives_forget (struct bitmap_lives *l, struct host_off table)
{
  struct bitmap_life *life;

  pthread_mutex_lock (&l->lock);
  life = find (l, table);
  if (life != NULL)
    *life = l->life[--l->nr];
  pthread_mutex_unlock (&l->lock);
}

bool
bitmap_lives_at (struct bitmap_lives *l, struct host_off table,
                 uint64_t generation)
{
  const struct bitmap_life *life;
  bool r;

  pthread_mutex_lock (&l->lock);
  life = find (l, table);
  r = life == NULL || (life->began <= generation &&
                       (life->ended == 0 || generation <= life->ended));
  pthread_mutex_unlock (&l->lock);
  return r;
}
