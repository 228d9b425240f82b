/* SPDX-License-Identifier: BSD-3-Clause */

/* Where a server has zeros, and zeros for it. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include <libnbd.h>

#include "storage/nbd-parts.h"

/* Ranges of a request without data: zeroing much may take a server long, and
 * it shall not seem to be dead.
 */
#define MOST_ZEROS (UINT64_C (128) << 20)
#define MOST_EXTENTS (UINT64_C (1) << 30)

/* So often a server is asked about one range, which it may tell of bit by bit;
 * then it is not known to be zeros.
 */
#define MOST_ANSWERS 64

/* Look a place up in what the server has said.  Returns false if that is not
 * about it.
 */
static bool
find_known (const struct far_extents *e, uint64_t offset, bool *zero,
            uint64_t *length)
{
  unsigned i;

  if (e->nr == 0 || offset < e->start || offset >= e->extent[e->nr - 1].end)
    return false;
  for (i = 0; e->extent[i].end <= offset; ++i)
    ;
  *zero = e->extent[i].zero;
  *length = e->extent[i].end - offset;
  return true;
}

/* Ask the server.  Returns -1 with errno set. */
static int
ask_extents (struct far *f, uint64_t offset, uint64_t count, bool *zero,
             uint64_t *length)
{
  struct far_extents *e = malloc (sizeof *e);
  const struct conn_command ask = {
    .kind = CONN_EXTENTS, .offset = offset, .count = count, .extents = e,
  };
  int r;

  if (e == NULL)
    return -1;
  r = pool_run (&f->pool, &ask, 1);
  if (r == 0 && !find_known (e, offset, zero, length)) {
    errno = EPROTO;
    r = -1;
  }
  if (r == 0 && !atomic_load (&f->writable)) {
    pthread_mutex_lock (&f->known_lock);
    f->known = *e;
    pthread_mutex_unlock (&f->known_lock);
  }
  free (e);
  return r;
}

/* What is known, or what the server says now.  Nothing is known of a storage
 * that is written: answers and changes would overtake each other.
 */
static int
find_extent (struct far *f, uint64_t offset, uint64_t count, bool *zero,
             uint64_t *length)
{
  bool found = false;

  if (!atomic_load (&f->writable)) {
    pthread_mutex_lock (&f->known_lock);
    found = find_known (&f->known, offset, zero, length);
    pthread_mutex_unlock (&f->known_lock);
    count = far_within (f, offset, MOST_EXTENTS); /* for those that follow */
  }
  count = far_within (f, offset, count);
  if (count > MOST_EXTENTS)
    count = MOST_EXTENTS;
  if (count == 0) {
    errno = EINVAL;
    return -1;
  }
  return found ? 0 : ask_extents (f, offset, count, zero, length);
}

int
far_extent (struct storage *s, uint64_t offset, uint64_t count, bool *hole,
            uint64_t *length)
{
  if (find_extent (far_of (s), offset, count, hole, length) == -1)
    return -1;
  if (*length > count)
    *length = count;
  return 0;
}

uint64_t
far_hole (struct storage *s, uint64_t offset)
{
  struct far *f = far_of (s);
  uint64_t length;
  bool zero;

  if (find_extent (f, offset, far_within (f, offset, MOST_EXTENTS), &zero,
                   &length) == -1 || !zero)
    return 0;
  return far_within (f, offset, length);
}

/* ----------------------------------------------------------------- zeroing */

static int
zero_pieces (struct far *f, enum conn_kind kind, uint64_t offset,
             uint64_t count, uint32_t flags)
{
  while (count > 0) {
    const struct conn_command zero = {
      .kind = kind, .offset = offset, .flags = flags,
      .count = count < MOST_ZEROS ? count : MOST_ZEROS,
    };

    if (pool_run (&f->pool, &zero, 1) == -1)
      return -1;
    offset += zero.count;
    count -= zero.count;
  }
  return 0;
}

/* Whether the server says that all of a range is zeros. */
static bool
says_zero (struct far *f, uint64_t offset, uint64_t count)
{
  bool zero = f->pool.server.extents;
  unsigned answers = 0;
  uint64_t length;

  for (; zero && count > 0; offset += length, count -= length) {
    if (answers++ == MOST_ANSWERS ||
        find_extent (f, offset, count, &zero, &length) == -1)
      return false;
    if (length > count)
      length = count;
  }
  return zero;
}

/* Give space back: zeros, where that takes no time.  Else a trim, which may do
 * nothing, or leave anything: the server is asked what it has left.
 */
static int
punch (struct far *f, uint64_t offset, uint64_t count)
{
  const struct far_server *server = &f->pool.server;

  if (server->zero && server->fast_zero &&
      zero_pieces (f, CONN_ZERO, offset, count,
                   LIBNBD_CMD_FLAG_FAST_ZERO) == 0)
    return 0;
  if (server->trim)
    (void) zero_pieces (f, CONN_TRIM, offset, count, 0);
  if (says_zero (f, offset, count))
    return 0;
  errno = EOPNOTSUPP;
  return -1;
}

int
far_zero (struct storage *s, uint64_t offset, uint64_t count, bool give_back)
{
  struct far *f = far_of (s);

  if (give_back)
    return punch (f, offset, count);
  if (f->pool.server.zero)
    return zero_pieces (f, CONN_ZERO, offset, count, LIBNBD_CMD_FLAG_NO_HOLE);
  errno = EOPNOTSUPP;
  return -1;
}
