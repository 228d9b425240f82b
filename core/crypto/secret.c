/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <sys/mman.h>

#include "base/error.h"
#include "crypto/secret.h"

void *
secret_new (size_t count)
{
  void *p = mmap (NULL, count, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (p == MAP_FAILED) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  /* What the host can't do is done without. */
  (void) madvise (p, count, MADV_DONTDUMP);
  return p;
}

void
secret_free (void *secret, size_t count)
{
  if (secret == NULL)
    return;
  secret_wipe (secret, count);
  munmap (secret, count);
}
