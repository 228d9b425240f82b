/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdatomic.h>

#include "base/stripe.h"

unsigned
stripe_of_thread (void)
{
  static _Atomic unsigned next;
  static _Thread_local unsigned mine; /* + 1; 0: none yet */

  if (mine == 0)
    mine = atomic_fetch_add (&next, 1) % STRIPES + 1;
  return mine - 1;
}
