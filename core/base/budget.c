/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "base/budget.h"

#define PART 16 /* of what is left */

void
budget_init (struct budget *b, uint64_t total, uint64_t least)
{
  pthread_mutex_init (&b->lock, NULL);
  b->least = least;
  b->set_apart = total / 2 < least ? least : total / 2;
  b->more = total - b->set_apart;
}

void
budget_destroy (struct budget *b)
{
  pthread_mutex_destroy (&b->lock);
}

uint64_t
budget_take (struct budget *b)
{
  uint64_t bytes = 0;

  pthread_mutex_lock (&b->lock);
  if (b->set_apart >= b->least) {
    const uint64_t more = b->more / PART;

    b->set_apart -= b->least;
    b->more -= more;
    bytes = b->least + more;
  }
  pthread_mutex_unlock (&b->lock);
  return bytes;
}

void
budget_give_back (struct budget *b, uint64_t bytes)
{
  pthread_mutex_lock (&b->lock);
  b->set_apart += b->least;
  b->more += bytes - b->least;
  pthread_mutex_unlock (&b->lock);
}
