/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <fcntl.h>

#include "storage/file.h"
#include "storage/open.h"

struct storage *
storage_open (const char *name, const struct nbd_options *nbd)
{
  return storage_nbd_is_uri (name) ? storage_nbd_open (name, nbd, name)
    : storage_open_path (name);
}

struct storage *
storage_open_path (const char *path)
{
  return storage_file_open (AT_FDCWD, path, FILE_ANYWHERE, path);
}

struct storage *
storage_open_beneath (int dirfd, const char *path, const char *name)
{
  return storage_file_open (dirfd, path, FILE_BENEATH, name);
}

struct storage *
storage_open_regular (int dirfd, const char *path, const char *name)
{
  return storage_file_open (dirfd, path, FILE_REGULAR_BENEATH, name);
}

struct storage *
storage_open_at (int dirfd, const char *path, const char *name)
{
  return storage_file_open (dirfd, path, FILE_ANYWHERE, name);
}
