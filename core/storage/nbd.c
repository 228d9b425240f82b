/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "base/advice.h"
#include "base/error.h"
#include "base/hash.h"
#include "storage/align.h"
#include "storage/nbd-parts.h"
#include "storage/reports.h"

/* Ranges of a request without data: zeroing much may take a server long, and
 * it shall not seem to be dead.
 */
#define MOST_ZEROS (UINT64_C (128) << 20)
#define MOST_EXTENTS (UINT64_C (1) << 30)

/* So often a server is asked about one range, which it may tell of bit by bit;
 * then it is not known to be zeros.
 */
#define MOST_ANSWERS 64

struct far {
  struct storage storage;
  struct storage_ops ops;
  struct pool pool;
  uint64_t identity[2];
  _Atomic bool writable;
  struct reports reports;
  enum storage_locking locking;

  /* What the server last said, as long as nothing is written. */
  pthread_mutex_t known_lock;
  struct far_extents known;
};

static struct far *
far_of (struct storage *s)
{
  return (struct far *) s;
}

static const struct far_server *
server_of (const struct storage *s)
{
  return &((const struct far *) s)->pool.server;
}

/* How much of count bytes at offset there is. */
static uint64_t
within (const struct far *f, uint64_t offset, uint64_t count)
{
  const uint64_t size = f->pool.server.size;

  if (offset >= size)
    return 0;
  return count < size - offset ? count : size - offset;
}

/* ----------------------------------------------------------------- reading */

static ssize_t
far_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct far *f = far_of (s);
  struct conn_command read = {
    .kind = CONN_READ, .buf = buf, .offset = offset,
    .count = within (f, offset, count),
  };

  if (read.count > f->pool.server.most)
    read.count = f->pool.server.most;
  if (read.count == 0)
    return 0;
  /* By N2 it is what is there, as long as nothing is written. */
  if (offset + read.count <= f->pool.start_bytes &&
      !atomic_load (&f->writable)) {
    memcpy (buf, f->pool.start + offset, read.count);
    return read.count;
  }
  return pool_run (&f->pool, &read, 1) == -1 ? -1 : (ssize_t) read.count;
}

static int
far_pread_many (struct storage *s, const struct storage_run *runs, unsigned nr)
{
  struct far *f = far_of (s);
  struct conn_command commands[CONN_MAX_COMMANDS];
  unsigned i, n = 0;

  for (i = 0; i < nr; ++i) {
    uint8_t *buf = runs[i].iov[0].iov_base;
    uint64_t left = runs[i].iov[0].iov_len, at = runs[i].offset.v, count;

    for (; left > 0; buf += count, at += count, left -= count) {
      count = within (f, at, left);
      if (count == 0) {
        memset (buf, 0, left);
        break;
      }
      if (count > f->pool.server.most)
        count = f->pool.server.most;
      if (n == CONN_MAX_COMMANDS) {
        if (pool_run (&f->pool, commands, n) == -1)
          return -1;
        n = 0;
      }
      commands[n++] = (struct conn_command) {
        .kind = CONN_READ, .buf = buf, .offset = at, .count = count,
      };
    }
  }
  return n == 0 ? 0 : pool_run (&f->pool, commands, n);
}

static void
far_prefetch (struct storage *s, uint64_t offset, uint64_t count)
{
  struct far *f = far_of (s);

  count = within (f, offset, count);
  if (count > f->pool.server.most)
    count = f->pool.server.most;
  if (count > 0)
    pool_cache (&f->pool, offset, count);
}

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
    count = within (f, offset, MOST_EXTENTS); /* for those that follow */
  }
  count = within (f, offset, count);
  if (count > MOST_EXTENTS)
    count = MOST_EXTENTS;
  if (count == 0) {
    errno = EINVAL;
    return -1;
  }
  return found ? 0 : ask_extents (f, offset, count, zero, length);
}

static int
far_extent (struct storage *s, uint64_t offset, uint64_t count, bool *hole,
            uint64_t *length)
{
  if (find_extent (far_of (s), offset, count, hole, length) == -1)
    return -1;
  if (*length > count)
    *length = count;
  return 0;
}

static uint64_t
far_hole (struct storage *s, uint64_t offset)
{
  struct far *f = far_of (s);
  uint64_t length;
  bool zero;

  if (find_extent (f, offset, within (f, offset, MOST_EXTENTS), &zero,
                   &length) == -1 || !zero)
    return 0;
  return within (f, offset, length);
}

/* ----------------------------------------------------------------- writing */

/* What came of making something durable, once that of all calls beside it is
 * known.  A lack of space is the write's own (N4), and nothing is lost.
 */
static int
durable_result (struct far *f, struct report_wait *w, int r)
{
  return r == -1 && errno == ENOSPC ? reports_end_alone (&f->reports, w)
    : reports_end (&f->reports, w, r);
}

static ssize_t
far_pwritev (struct storage *s, const struct iovec *iov, int nr,
             uint64_t offset, bool durable)
{
  struct far *f = far_of (s);
  struct report_wait w;
  ssize_t r;

  if (!durable)
    return pool_write (&f->pool, iov, nr, offset, false);
  reports_begin (&f->reports, &w);
  r = pool_write (&f->pool, iov, nr, offset, true);
  return durable_result (f, &w, r == -1 ? -1 : 0) == -1 ? -1 : r;
}

static int
far_pwrite_many (struct storage *s, const struct storage_run *runs,
                 unsigned nr)
{
  return pool_write_many (&far_of (s)->pool, runs, nr);
}

static int
far_pwrite_durably (struct storage *s, const struct storage_run *runs,
                    unsigned nr, bool all)
{
  struct far *f = far_of (s);
  struct report_wait w;

  reports_begin (&f->reports, &w);
  return durable_result (f, &w, pool_write_durably (&f->pool, runs, nr, all));
}

static int
far_flush (struct storage *s)
{
  struct far *f = far_of (s);
  struct report_wait w;

  reports_begin (&f->reports, &w);
  return reports_end (&f->reports, &w, pool_flush (&f->pool));
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

static int
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

/* ---------------------------------------------------------------- the rest */

/* The server may keep its space in a file with holes, but has no command that
 * fills them and leaves what is there.
 */
static int
far_allocate (struct storage *s, uint64_t offset, uint64_t count)
{
  (void) s;
  (void) offset;
  (void) count;
  errno = EOPNOTSUPP;
  return -1;
}

static int
far_resize (struct storage *s, uint64_t size)
{
  /* Nor is it cut: what is there would pass for zeros when it "grows" again. */
  if (size == server_of (s)->size)
    return 0;
  errno = ENOSPC;
  return -1;
}

/* Others may write it, and nothing tells. */
static int
far_stamp (struct storage *s, struct storage_stamp *stamp)
{
  (void) s;
  (void) stamp;
  errno = EOPNOTSUPP;
  return -1;
}

static int
far_check_writable (const struct storage *s)
{
  const struct far *f = (const struct far *) s;

  if (f->pool.server.read_only) {
    error_set (EROFS, "%s: the server has it read-only", s->name);
    return -1;
  }
  if (!f->pool.server.flush && !f->pool.options.without_flush) {
    error_set (ENOTSUP, "%s: the server can't flush, so that nothing would "
               "ever be known to be safe", s->name);
    advise (ADVICE_FLUSH);
    return -1;
  }
  return 0;
}

static void
far_set_locking (struct storage *s, enum storage_locking locking)
{
  far_of (s)->locking = locking;
}

static int
far_lock (struct storage *s, unsigned uses, unsigned denies, bool alone)
{
  (void) uses;
  (void) denies;
  (void) alone;
  if (far_of (s)->locking != STORAGE_LOCKING_ON)
    return 0;
  error_set (ENOLCK, "%s: NBD has no locks, and locking=on asks for them",
             s->name);
  return -1;
}

/* Others may use the server, or what is behind it. */
static bool
far_keeps_writers_out (const struct storage *s)
{
  (void) s;
  return false;
}

static int
far_make_writable (struct storage *s, unsigned uses, unsigned denies)
{
  struct far *f = far_of (s);

  if (atomic_load (&f->writable))
    return 0;
  if (far_check_writable (s) == -1 || far_lock (s, uses, denies, false) == -1)
    return -1;
  if (pool_make_writable (&f->pool) == 0) {
    atomic_store (&f->writable, true);
    return 0;
  }
  if (errno == ESTALE)
    error_set (EAGAIN, "%s: it has changed since it was opened: somebody else "
               "writes it", s->name);
  else
    error_set (EIO, "%s: making it writable: %s", s->name, strerror (errno));
  return -1;
}

static const char far_kind[] = "nbd", own_kind[] = "nbd, started here";

static void
far_identify (const struct storage *s, struct storage_identity *id)
{
  const struct far *f = (const struct far *) s;

  *id = (struct storage_identity) {
    f->pool.uri != NULL ? far_kind : own_kind,
    { f->identity[0], f->identity[1] }, true,
  };
}

static void
far_close (struct storage *s)
{
  struct far *f = far_of (s);

  pool_destroy (&f->pool);
  pthread_mutex_destroy (&f->known_lock);
  reports_destroy (&f->reports);
  free (f);
}

static const struct storage_ops far_ops = {
  .pread = far_pread,
  .pread_many = far_pread_many,
  .extent = far_extent,
  .hole = far_hole,
  .prefetch = far_prefetch,
  .pwritev = far_pwritev,
  .pwrite_many = far_pwrite_many,
  .pwrite_durably = far_pwrite_durably,
  .flush = far_flush,
  .zero = far_zero,
  .allocate = far_allocate,
  .resize = far_resize,
  .stamp = far_stamp,
  .set_locking = far_set_locking,
  .lock = far_lock,
  .keeps_writers_out = far_keeps_writers_out,
  .make_writable = far_make_writable,
  .check_writable = far_check_writable,
  .identify = far_identify,
  .close = far_close,
};

/* Without those that this server has not. */
static void
choose_far_ops (struct far *f)
{
  f->ops = far_ops;
  if (!f->pool.server.extents) {
    f->ops.extent = NULL;
    f->ops.hole = NULL;
  }
  if (!f->pool.server.cache)
    f->ops.prefetch = NULL;
  if (!f->pool.server.zero && !f->pool.server.trim)
    f->ops.zero = NULL;
  f->storage.ops = &f->ops;
}

/* Equal URIs name the same; of others nobody knows. */
static void
set_identity (struct far *f, const char *uri)
{
  const struct hash_key key = hash_key ();

  f->identity[0] = strlen (uri);
  f->identity[1] = key.word[1];
  for (; *uri != '\0'; ++uri) {
    f->identity[0] = hash_mix (&key, f->identity[0] ^ (uint8_t) *uri);
    f->identity[1] = hash_mix (&key, f->identity[1] + (uint8_t) *uri);
  }
}

/* No other storage is on a server that was started for this one. */
static void
set_own_identity (struct far *f)
{
  static _Atomic uint64_t count;

  f->identity[0] = atomic_fetch_add (&count, 1);
}

static struct storage *
open_far (const struct far_place *place, const struct nbd_options *options,
          const char *name)
{
  struct far *f = calloc (1, sizeof *f);

  assert (options->connections <= NBD_MAX_CONNECTIONS);
  if (f != NULL)
    f->storage.name = strdup (name);
  if (f == NULL || f->storage.name == NULL) {
    error_set (ENOMEM, "%s: out of memory", name);
    free (f);
    return NULL;
  }
  pthread_mutex_init (&f->known_lock, NULL);
  reports_init (&f->reports);
  if (place->uri != NULL)
    set_identity (f, place->uri);
  else
    set_own_identity (f);
  if (pool_init (&f->pool, place, f->storage.name, options) == -1) {
    free (f->storage.name);
    pthread_mutex_destroy (&f->known_lock);
    reports_destroy (&f->reports);
    free (f);
    return NULL;
  }
  f->storage.size = f->pool.server.size;
  f->storage.fixed_size = true;
  f->storage.one_report = true; /* servers have the file open once */
  if (f->pool.server.fua && f->pool.server.flush)
    f->storage.durable_runs = POOL_DURABLE_RUNS;
  choose_far_ops (f);
  if (f->pool.server.block > 1)
    return storage_align_new (&f->storage, f->pool.server.block);
  return &f->storage;
}

struct storage *
storage_nbd_open (const char *uri, const struct nbd_options *options,
                  const char *name)
{
  const struct far_place place = { .uri = uri };

  return open_far (&place, options, name);
}

struct storage *
storage_nbd_start (char *const *command, const struct nbd_options *options,
                   const char *name)
{
  const struct far_place place = { .command = command };

  return open_far (&place, options, name);
}

const char *
storage_nbd_library (void)
{
  static char version[32];
  struct nbd_handle *nbd = nbd_create ();

  if (nbd != NULL)
    snprintf (version, sizeof version, "%s", nbd_get_version (nbd));
  nbd_close (nbd);
  return version;
}
