/* SPDX-License-Identifier: BSD-3-Clause */

/* In place of storage on NBD servers where libnbd is not there. */

#include <config.h>

#include <errno.h>
#include <stddef.h>

#include "base/error.h"
#include "storage/nbd.h"

static struct storage *
without_libnbd (const char *name)
{
  error_set (ENOTSUP, "%s: NBD servers can't be reached: this was built "
             "without libnbd", name);
  return NULL;
}

struct storage *
storage_nbd_open (const char *uri, const struct nbd_options *options,
                  const char *name)
{
  (void) uri;
  (void) options;
  return without_libnbd (name);
}

struct storage *
storage_nbd_start (char *const *command, const struct nbd_options *options,
                   const char *name)
{
  (void) command;
  (void) options;
  return without_libnbd (name);
}

const char *
storage_nbd_library (void)
{
  return NULL;
}
