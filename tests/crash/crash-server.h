/* SPDX-License-Identifier: BSD-3-Clause */

/* An NBD server, in threads of the test, that has a crash_disk: each request that
 * changes something is a call of its storage, so that a power cut is the far
 * server's.  Requests that are in flight at once are begun, and answered, in any
 * order.
 */

#ifndef CRASH_SERVER_H
#define CRASH_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crash-storage.h"

/* What a server lacks, or has.  All false: it has everything, no minimum size of
 * blocks, and one connection.
 */
struct crash_server_kind {
  bool no_fua;
  bool no_zero;   /* zeros have to be written */
  bool no_fast;   /* nor is it known whether zeroing is fast */
  bool no_trim;
  bool no_extents;
  uint32_t block; /* 0: any */
  bool many;      /* multi-conn */
};

/* As text: words joined by `+', such as nofua+block4096.  `all' is what has
 * everything.  crash_server_parse returns false if there is no such word.
 */
extern const char *crash_server_format (const struct crash_server_kind *k,
                                        char *buf, size_t size);
extern bool crash_server_parse (struct crash_server_kind *k, const char *text);

/* One of them, at random. */
extern struct crash_server_kind crash_server_any (uint64_t seed);

/* What was seen of requests, of all servers; may be shared by processes. */
struct crash_server_stats {
  _Atomic uint64_t requests;
  _Atomic uint64_t early;     /* begun while earlier ones of the connection waited */
  _Atomic uint64_t beside;    /* on a connection that was not the server's first */
};

struct crash_server_plan {
  struct crash_server_kind kind;
  uint64_t seed;
  struct crash_server_stats *stats; /* NULL: nobody asks */
};

struct crash_server;

/* Serve the disk, which outlives it, and keeps its size: a request past the end
 * aborts, as do one that the kind of server doesn't know, and a second connection
 * without multi-conn: no flush would cover both.
 */
extern struct crash_server *
crash_server_start (struct crash_disk *d, const struct crash_server_plan *plan);

/* The clients must have gone. */
extern void crash_server_end (struct crash_server *s);

/* Connect to it, by storage/nbd.  Aborts if that fails. */
extern struct storage *crash_server_open (const struct crash_server *s,
                                          const char *name);

/* A disk that is served has a multiple of so many bytes. */
#define CRASH_SERVER_UNIT 4096

#endif /* CRASH_SERVER_H */
