/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stddef.h>

#include "memory.h"
#include "promise.h"

/* What core/ may have allocated at one time, of images opened with the smallest
 * cache of tables: decoded clusters (CLUSTER_CACHE_MAX_BYTES, 16 MiB), and either the
 * header's cluster (2 MiB), or a new refcount table (8 MiB) and a cluster to
 * copy.  A repair decodes nothing, and has two refcount tables.  The rest is
 * small: the snapshot table of an input, and this program's own copies of it.
 */
#define MAX_BYTES (32L << 20)

extern int __sanitizer_install_malloc_and_free_hooks
(void (*malloc_hook) (const volatile void *, size_t),
 void (*free_hook) (const volatile void *)) __attribute__ ((__weak__));
extern size_t __sanitizer_get_allocated_size (const volatile void *)
  __attribute__ ((__weak__));

/* Of memory that was allocated before, only the end is seen. */
static long now, peak;

static void
allocated (const volatile void *p, size_t size)
{
  now += size;
  if (now > peak)
    peak = now;
}

static void
freed (const volatile void *p)
{
  if (p != NULL)
    now -= __sanitizer_get_allocated_size (p);
}

void
memory_start (void)
{
  static bool installed;

  if (!installed && __sanitizer_install_malloc_and_free_hooks != NULL)
    __sanitizer_install_malloc_and_free_hooks (allocated, freed);
  installed = true;
  now = peak = 0;
}

void
memory_end (long max)
{
  expect (peak <= (max != 0 ? max : MAX_BYTES), "an input takes too much memory");
}
