/* SPDX-License-Identifier: BSD-3-Clause */

/* New images on NBD servers: devices that others may have written before. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/create.h"
#include "manage/names.h"

/* So much of a device must be zeros, or all of it. */
#define EMPTY_BYTES 1048576

#define PIECE_BYTES 65536

/* What is read comes from the server, since the storage is writable, and over
 * the connections that will be written to.
 */
static int
check_is_empty (struct storage *s)
{
  static const uint8_t zeros[PIECE_BYTES];
  struct host_off at = { 0 };
  uint8_t *buf = malloc (PIECE_BYTES);
  int r = 0;

  if (buf == NULL) {
    error_set (ENOMEM, "%s: out of memory", s->name);
    return -1;
  }
  for (; r == 0 && at.v < EMPTY_BYTES && at.v < s->size; at.v += PIECE_BYTES) {
    r = storage_read (s, buf, PIECE_BYTES, at);
    if (r == 0 && memcmp (buf, zeros, PIECE_BYTES) != 0) {
      error_set (EEXIST, "%s: it holds data: create=overwrite formats it "
                 "anyway", s->name);
      r = -1;
    }
  }
  free (buf);
  return r;
}

int
create_far (struct storage *s, bool overwrite, const struct create_options *o)
{
  struct create_options options = *o;

  options.must_fit = o->backing == NULL && o->data_file == NULL;
  storage_set_locking (s, o->locking);
  if (storage_make_writable (s, CREATE_LOCKS, CREATE_LOCKS) == -1 ||
      (!overwrite && check_is_empty (s) == -1))
    return -1;
  return create_image (s, &options);
}
