/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <fcntl.h>

#include "storage/file.h"
#include "storage/open.h"

struct storage *
storage_open (const char *name)
{
  return storage_file_open (AT_FDCWD, name, false, name);
}

struct storage *
storage_open_beneath (int dirfd, const char *path, const char *name)
{
  return storage_file_open (dirfd, path, true, name);
}
