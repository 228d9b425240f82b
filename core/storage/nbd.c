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

static const struct far_server *
server_of (const struct storage *s)
{
  return &((const struct far *) s)->pool.server;
}

uint64_t
far_within (const struct far *f, uint64_t offset, uint64_t count)
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
    .count = far_within (f, offset, count),
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
      count = far_within (f, at, left);
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

  count = far_within (f, offset, count);
  if (count > f->pool.server.most)
    count = f->pool.server.most;
  if (count > 0)
    pool_cache (&f->pool, offset, count);
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
