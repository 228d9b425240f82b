/* SPDX-License-Identifier: BSD-3-Clause */

/* From pieces of memory to commands that write them. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "storage/nbd-parts.h"

/* Pieces up to so many bytes are copied and sent as one. */
#define SMALL_BYTES 65536

/* One command for each piece of memory, or for as much of it as goes into one.
 * Returns how many, and in *bytes of how many bytes: not all, perhaps.
 */
static unsigned
command_pieces (const struct pool *p, const struct iovec *iov, int nr,
                uint64_t offset,
                struct conn_command commands[CONN_MAX_COMMANDS],
                uint64_t *bytes)
{
  unsigned n = 0;

  *bytes = 0;
  for (; nr > 0 && n < CONN_MAX_COMMANDS; ++iov, --nr) {
    const size_t count = iov->iov_len < p->server.most
      ? iov->iov_len : p->server.most;

    if (count == 0)
      continue;
    commands[n++] = (struct conn_command) {
      .kind = CONN_WRITE, .buf = iov->iov_base, .count = count,
      .offset = offset + *bytes,
    };
    *bytes += count;
    if (count < iov->iov_len)
      break;
  }
  return n;
}

static uint64_t
count_pieces (const struct iovec *iov, int nr)
{
  uint64_t count = 0;

  while (nr > 0)
    count += iov[--nr].iov_len;
  return count;
}

static void
join_pieces (uint8_t *to, const struct iovec *iov, int nr)
{
  for (; nr > 0; ++iov, --nr) {
    memcpy (to, iov->iov_base, iov->iov_len);
    to += iov->iov_len;
  }
}

/* Write small pieces as one.  Returns as pwritev. */
static ssize_t
write_joined (struct pool *p, const struct iovec *iov, int nr, uint64_t count,
              uint64_t offset)
{
  uint8_t *buf = malloc (count);
  const struct conn_command write = {
    .kind = CONN_WRITE, .buf = buf, .count = count, .offset = offset,
  };
  int r;

  if (buf == NULL)
    return -1;
  join_pieces (buf, iov, nr);
  r = pool_run (p, &write, 1);
  free (buf);
  return r == -1 ? -1 : (ssize_t) count;
}

/* Write what goes into one batch of commands, all of it or not.  Returns as
 * pwritev.
 */
static ssize_t
write_some (struct pool *p, const struct iovec *iov, int nr, uint64_t offset)
{
  struct conn_command commands[CONN_MAX_COMMANDS];
  const uint64_t count = count_pieces (iov, nr);
  uint64_t bytes;
  unsigned n;

  if (offset > p->server.size || count > p->server.size - offset) {
    errno = ENOSPC;
    return -1;
  }
  if (nr > 1 && count <= SMALL_BYTES && count <= p->server.most)
    return write_joined (p, iov, nr, count, offset);
  n = command_pieces (p, iov, nr, offset, commands, &bytes);
  return pool_run (p, commands, n) == -1 ? -1 : (ssize_t) bytes;
}

/* Where the bytes of a run are, or are copied to: *copy is moved on. */
static void *
run_bytes (const struct storage_run *r, uint8_t **copy)
{
  void *bytes = *copy;

  if (r->nr == 1)
    return r->iov[0].iov_base;
  join_pieces (bytes, r->iov, r->nr);
  *copy += count_pieces (r->iov, r->nr);
  return bytes;
}

/* Write one run after the other, each as often as it takes. */
static int
write_each (struct pool *p, const struct storage_run *runs, unsigned nr)
{
  unsigned i;
  int k;

  for (i = 0; i < nr; ++i) {
    uint64_t offset = runs[i].offset.v;

    for (k = 0; k < runs[i].nr; ++k) {
      struct iovec piece = runs[i].iov[k];

      while (piece.iov_len > 0) {
        const ssize_t r = write_some (p, &piece, 1, offset);

        if (r == -1)
          return -1;
        piece.iov_base = (uint8_t *) piece.iov_base + r;
        piece.iov_len -= r;
        offset += r;
      }
    }
  }
  return 0;
}

/* Whether all runs are within the server, and in one request each: else sets
 * errno, or *each.  *bytes: of all together.
 */
static bool
runs_fit (const struct pool *p, const struct storage_run *runs, unsigned nr,
          uint64_t *bytes, bool *each)
{
  unsigned i;

  *bytes = 0;
  *each = false;
  for (i = 0; i < nr; ++i) {
    const uint64_t count = count_pieces (runs[i].iov, runs[i].nr);

    if (runs[i].offset.v > p->server.size ||
        count > p->server.size - runs[i].offset.v) {
      errno = ENOSPC;
      return false;
    }
    *bytes += count;
    *each |= count > p->server.most;
  }
  return true;
}

/* Write runs, in one batch with a flush if that is wanted.  no_space: set for
 * each run to be durable that finds none; NULL: they need not be durable.
 */
static int
write_together (struct pool *p, const struct storage_run *runs, unsigned nr,
                uint64_t bytes, bool *no_space, bool flush)
{
  const uint32_t flags = no_space != NULL ? LIBNBD_CMD_FLAG_FUA : 0;
  struct conn_command commands[CONN_MAX_COMMANDS];
  uint8_t *buf = malloc (bytes), *copy = buf;
  unsigned i;
  int r;

  if (buf == NULL)
    return -1;
  for (i = 0; i < nr; ++i)
    commands[i] = (struct conn_command) {
      .kind = CONN_WRITE, .buf = run_bytes (&runs[i], &copy),
      .offset = runs[i].offset.v, .flags = flags,
      .count = count_pieces (runs[i].iov, runs[i].nr),
      .no_space = no_space != NULL ? &no_space[i] : NULL,
    };
  if (flush)
    commands[i++] = (struct conn_command) { .kind = CONN_FLUSH };
  r = pool_run (p, commands, i);
  free (buf);
  return r;
}

int
pool_write_many (struct pool *p, const struct storage_run *runs, unsigned nr)
{
  uint64_t bytes;
  bool each;

  if (!runs_fit (p, runs, nr, &bytes, &each))
    return -1;
  return each ? write_each (p, runs, nr)
    : write_together (p, runs, nr, bytes, NULL, false);
}

int
pool_flush (struct pool *p)
{
  const struct conn_command flush = { .kind = CONN_FLUSH };

  if (!p->server.flush) /* without_flush was asked for */
    return 0;
  return pool_run (p, &flush, 1);
}

/* Durable writes failed, those that are marked for lack of space: try these
 * again as ordinary ones, each by itself, since one may have been told of a loss
 * where another one finds no space (N4).  Returns -1 with errno set.
 */
static int
find_cause (struct pool *p, const struct storage_run *runs, unsigned nr,
            const bool *no_space)
{
  int err = ENOSPC;
  unsigned i;

  for (i = 0; i < nr; ++i) {
    if (!no_space[i])
      continue;
    if (pool_write_many (p, &runs[i], 1) == 0)
      err = EIO;
    else if (errno != ENOSPC)
      err = errno;
  }
  errno = err;
  return -1;
}

int
pool_write_durably (struct pool *p, const struct storage_run *runs, unsigned nr,
                    bool all)
{
  bool no_space[CONN_MAX_COMMANDS] = { false }, each;
  uint64_t bytes;

  if (!runs_fit (p, runs, nr, &bytes, &each))
    return -1;
  if (each)
    return write_each (p, runs, nr) == -1 ? -1 : pool_flush (p);
  if (write_together (p, runs, nr, bytes, no_space, all) == 0)
    return 0;
  return errno != ENOSPC ? -1 : find_cause (p, runs, nr, no_space);
}

ssize_t
pool_write (struct pool *p, const struct iovec *iov, int nr, uint64_t offset,
            bool durable)
{
  const ssize_t r = write_some (p, iov, nr, offset);

  return r != -1 && durable && pool_flush (p) == -1 ? -1 : r;
}
