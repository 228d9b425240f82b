/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/misfits.h"

bool
misfits_has (struct misfits *m, const struct storage_stamp *stamp,
             const struct passphrase *p)
{
  bool found = false;
  unsigned i;

  if (m == NULL)
    return false;
  pthread_mutex_lock (&m->lock);
  for (i = 0; i < MAX_MISFITS && !found; ++i)
    found = m->of[i].passphrase == p->bytes &&
      storage_stamps_equal (&m->of[i].stamp, stamp);
  pthread_mutex_unlock (&m->lock);
  return found;
}

void
misfits_add (struct misfits *m, const struct storage_stamp *stamp,
             const struct passphrase *p)
{
  if (m == NULL)
    return;
  pthread_mutex_lock (&m->lock);
  m->of[m->next] = (struct misfit) { *stamp, p->bytes };
  m->next = (m->next + 1) % MAX_MISFITS;
  pthread_mutex_unlock (&m->lock);
}
