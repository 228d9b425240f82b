/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of storage on NBD have in common: nbd.c, the storage, and
 *
 *   nbd-conn.c   one connection: requests, and the wait for their answers
 *   nbd-start.c  servers that are started here
 *   nbd-pool.c   the connections to one server; what becomes of lost ones
 *   nbd-write.c  writes and flushes
 *   nbd-zeros.c  where zeros are, and zeros for a server
 *   nbd-name.c   names of servers
 */

#ifndef CORE_STORAGE_NBD_PARTS_H
#define CORE_STORAGE_NBD_PARTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "storage/nbd.h"
#include "storage/reports.h"

struct nbd_handle; /* libnbd's */

/* Where a server is: at a URI, or it is started here by a command, argv as
 * execvp(3) wants it.  The other one is NULL.
 */
struct far_place {
  const char *uri;
  char *const *command;
};

/* What a server is and can do. */
struct far_server {
  uint64_t size;
  uint32_t block;  /* at least so many bytes for a request; a power of 2 */
  uint32_t most;   /* and at most, of data */
  bool read_only, flush, fua, trim, zero, fast_zero, cache, extents;
  bool multi_conn;
};

/* What a server says about a range, from start on. */
#define FAR_EXTENTS 1024
struct far_extents {
  uint64_t start;
  unsigned nr;
  struct {
    uint64_t end;
    bool zero;
  } extent[FAR_EXTENTS]; /* neighbours differ in zero */
};

enum conn_kind {
  CONN_READ,
  CONN_WRITE,   /* buf is not changed */
  CONN_FLUSH,   /* without a range */
  CONN_TRIM,
  CONN_ZERO,
  CONN_EXTENTS, /* into extents, as far as that has room */
};

struct conn_command {
  enum conn_kind kind;
  uint32_t flags; /* LIBNBD_CMD_FLAG_* */
  void *buf;
  uint64_t offset, count;
  struct far_extents *extents;
  bool *no_space; /* set if it fails with ENOSPC; NULL: nobody asks */
};

/* ---------------------------------------------------------------- nbd-conn.c
 *
 * There is no thread that polls: of those that wait for answers one does, for
 * all, until it has its own.  Then it passes that on to another.
 */

/* A thread that waits for the answers to its commands. */
struct conn_wait {
  struct conn *conn;
  unsigned left;    /* commands without an answer; conn.lock */
  uint64_t since;   /* when they were sent, in milliseconds */
  pthread_cond_t changed;
  struct conn_wait *prev, *next; /* conn.lock; by since */
};

struct conn {
  struct nbd_handle *nbd;
  struct far_server server;
  int fd;            /* the socket; libnbd may close its own descriptor */
  struct started *started; /* NULL: the server was not started here */
  int wake;          /* an eventfd: the one that polls has to look again */
  uint64_t patience; /* in milliseconds: see nbd_options.timeout */
  unsigned users;    /* pool.lock */
  _Atomic bool timed_out; /* before it is lost */

  pthread_mutex_t lock; /* taken within libnbd's, so never around its calls */
  bool polled;
  struct conn_wait *first, *last;
  uint64_t heard;    /* when something arrived last, in milliseconds */
  unsigned caching;  /* CACHE commands without an answer */
};

/* Connect, and wait for that so many seconds at most.  options->timeout holds
 * from then on.  A server that is started for it ends with it; this thread must
 * live for as long.  Returns NULL with the error set.
 */
extern struct conn *conn_open (const struct far_place *place,
                               const struct nbd_options *options,
                               unsigned seconds, const char *name);

/* Nobody may be using it.  An answer that is outstanding is not waited for, but
 * the end of a server that was started for it is.
 */
extern void conn_close (struct conn *c);

extern bool conn_is_lost (const struct conn *c);

/* Send these commands together, and wait for all answers.  Returns -1 with
 * errno set if one of them failed: ENOSPC only if none failed otherwise.  After
 * that, nothing touches their memory.
 */
#define CONN_MAX_COMMANDS 64
extern int conn_run (struct conn *c, const struct conn_command *commands,
                     unsigned nr);

/* Have the server read a range into its cache, without waiting; at times
 * nothing is done.
 */
extern void conn_cache (struct conn *c, uint64_t offset, uint64_t count);

/* --------------------------------------------------------------- nbd-start.c
 *
 * The process of a server, in a group of its own that has the same number.
 */
struct started {
  pid_t parent;
  _Atomic pid_t pid; /* 0: it does not run yet */
};

/* Have libnbd start a server, and connect to it.  It ends when this thread does
 * (with SIGTERM), at the latest, unless it changes its user.  Returns NULL with
 * errno set, or libnbd's error; else what conn_end_server releases.
 */
extern struct started *conn_start_server (struct nbd_handle *nbd,
                                          char *const *command);

/* End the server, and what it has started in its group: by SIGTERM, or if not
 * all have ended after so many milliseconds by SIGKILL.  nbd_close, which waits
 * for the server, must follow.
 */
extern void conn_end_server (struct nbd_handle *nbd, struct started *s,
                             uint64_t patience);

/* ---------------------------------------------------------------- nbd-pool.c
 *
 *  N1  Once the pool is made writable, no connection is added but those that
 *      this begins to make, and none after the first write; and when one is
 *      lost nothing is written, zeroed or flushed any more: what was answered
 *      on it and not flushed may be lost (I10).
 *  N2  A connection that is added, or takes the place of all lost ones, must
 *      lead to what was there before: it has the same size, and begins with
 *      the same bytes.
 *  N3  A server that was started here has one connection, and once that is lost
 *      it stays so.
 */

struct pool;

/* A connection that is being made. */
struct pool_extra {
  struct pool *pool;
  pthread_t thread;
  bool started;
  struct conn *conn; /* once the thread has ended; NULL: it was not made */
};

struct pool {
  char *uri;         /* NULL: N3 */
  const char *name;  /* the storage's */
  struct nbd_options options;
  struct far_server server;

  pthread_mutex_t lock;
  pthread_cond_t changed;  /* connecting is over */
  struct conn *conn[NBD_MAX_CONNECTIONS];
  unsigned nr, max; /* max: at most; 1 at least */
  bool connecting;
  bool replaced; /* N2 failed, for good */
  bool writable; /* N1 */
  _Atomic bool lost; /* N1 */

  struct pool_extra extra[NBD_MAX_CONNECTIONS]; /* N1 */
  unsigned nr_extra;
  pthread_mutex_t settling; /* held while they are waited for; before lock */
  _Atomic bool unsettled; /* there may be some */

  uint8_t *start;     /* N2: the first bytes */
  uint32_t start_bytes;
};

/* Connect.  Returns -1 with the error set, and nothing is to be freed. */
extern int pool_init (struct pool *p, const struct far_place *place,
                      const char *name,
                      const struct nbd_options *options);
extern void pool_destroy (struct pool *p);

/* Have these commands done, by one connection, as conn_run; those that only
 * read by another one if it is lost.  Returns -1 with errno set: ENOTCONN or
 * ETIMEDOUT after a loss, ENOLINK by N1 and N3, ESTALE where N2 failed.
 */
extern int pool_run (struct pool *p, const struct conn_command *commands,
                     unsigned nr);

extern void pool_cache (struct pool *p, uint64_t offset, uint64_t count);

/* See N1.  This process must not fork before something was written.  Returns -1
 * with errno set: the server can't be reached any more, or what it has begins
 * differently than when it was opened.
 */
extern int pool_make_writable (struct pool *p);

/* -------------------------------------------------------------- nbd-write.c
 *
 * The functions of these names in struct storage_ops: they set errno, ENOSPC
 * past the server's end.
 *
 *  N4  Of what was to be durable ENOSPC is only said if each write that met it
 *      meets it alone as well.  Making it durable may have met it, and that may be
 *      the only time that the server tells of earlier data which it has lost
 *      (I10).
 */

extern ssize_t pool_write (struct pool *p, const struct iovec *iov, int nr,
                           uint64_t offset, bool durable);
extern int pool_write_many (struct pool *p, const struct storage_run *runs,
                            unsigned nr);

/* So many runs at most are worth FUA: a server makes each durable by itself. */
#define POOL_DURABLE_RUNS 4
extern int pool_write_durably (struct pool *p, const struct storage_run *runs,
                               unsigned nr, bool all);
extern int pool_flush (struct pool *p);

/* --------------------------------------------------- nbd.c and nbd-zeros.c */

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

static inline struct far *
far_of (struct storage *s)
{
  return (struct far *) s;
}

/* How much of count bytes at offset there is. */
extern uint64_t far_within (const struct far *f, uint64_t offset,
                            uint64_t count);

/* Of storage_ops. */
extern int far_extent (struct storage *s, uint64_t offset, uint64_t count,
                       bool *hole, uint64_t *length);
extern uint64_t far_hole (struct storage *s, uint64_t offset);
extern int far_zero (struct storage *s, uint64_t offset, uint64_t count,
                     bool give_back);

#endif /* CORE_STORAGE_NBD_PARTS_H */
