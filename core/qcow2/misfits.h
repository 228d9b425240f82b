/* SPDX-License-Identifier: BSD-3-Clause */

/* Passphrases that fit none of the key slots of a file, so that the seconds it
 * takes to find that out are spent once, not for each client.  It holds as long
 * as the file is as it was then, by its stamp.  Should something have changed
 * that this does not tell, a file stays refused that need not be.
 *
 * All functions may be called by several threads at once.
 */

#ifndef CORE_QCOW2_MISFITS_H
#define CORE_QCOW2_MISFITS_H

#include <pthread.h>
#include <stdbool.h>

#include "crypto/passphrase.h"
#include "storage/storage.h"

#define MAX_MISFITS 64 /* the oldest one is forgotten */

struct misfit {
  struct storage_stamp stamp;
  const void *passphrase; /* by its place in memory; NULL: no entry */
};

struct misfits {
  pthread_mutex_t lock; /* of all */
  struct misfit of[MAX_MISFITS];
  unsigned next;
};

#define MISFITS_INIT { .lock = PTHREAD_MUTEX_INITIALIZER }

/* Whether the passphrase is known not to fit the file with this stamp.  m: NULL
 * knows nothing.
 */
extern bool misfits_has (struct misfits *m, const struct storage_stamp *stamp,
                         const struct passphrase *p);

/* It does not fit.  The stamp is of before it was tried. */
extern void misfits_add (struct misfits *m, const struct storage_stamp *stamp,
                         const struct passphrase *p);

#endif /* CORE_QCOW2_MISFITS_H */
