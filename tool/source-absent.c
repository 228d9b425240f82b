/* SPDX-License-Identifier: BSD-3-Clause */

/* What is left of source.h without libnbd. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "source.h"

struct source *
source_open (const char *uri)
{
  error_set (ENOTSUP, "%s: this was built without libnbd", uri);
  return NULL;
}

void
source_close (struct source *s)
{
  (void) s;
}

/* The rest has no source to be called with. */

uint64_t
source_size (const struct source *s)
{
  (void) s;
  abort ();
}

unsigned
source_connections (const struct source *s)
{
  (void) s;
  abort ();
}

int
source_read (struct source *s, unsigned connection, void *buf, size_t count,
             uint64_t offset)
{
  (void) s;
  (void) connection;
  (void) buf;
  (void) count;
  (void) offset;
  abort ();
}

int
source_extents (struct source *s, unsigned connection, uint64_t count,
                uint64_t offset, source_fn *fn, void *opaque)
{
  (void) s;
  (void) connection;
  (void) count;
  (void) offset;
  (void) fn;
  (void) opaque;
  abort ();
}
