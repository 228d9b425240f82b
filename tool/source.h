/* SPDX-License-Identifier: BSD-3-Clause */

/* An NBD export that is read, with its extents, over several connections. */

#ifndef QCOW2_SOURCE_H
#define QCOW2_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of an extent: NBD's base:allocation. */
#define SOURCE_HOLE 1U
#define SOURCE_ZERO 2U

/* More than one may be used, if the server is sure that all see the same. */
#define SOURCE_MAX_CONNECTIONS 4

struct source;

/* All of these return -1 or NULL with the error set: see base/error.h.  When the
 * tool is to stop (tool_is_stopped) what waits for the server fails with EINTR,
 * and the source can only be closed.
 */

extern struct source *source_open (const char *uri);
extern void source_close (struct source *s); /* NULL is allowed */

extern uint64_t source_size (const struct source *s);

/* How many connections there are: each is for one thread at a time. */
extern unsigned source_connections (const struct source *s);

extern int source_read (struct source *s, unsigned connection, void *buf,
                        size_t count, uint64_t offset);

/* Call fn for the extents from offset on, until it returns false, or they cover
 * count bytes, or the server tells no more.
 */
typedef bool source_fn (void *opaque, uint64_t length, unsigned flags);
extern int source_extents (struct source *s, unsigned connection,
                           uint64_t count, uint64_t offset, source_fn *fn,
                           void *opaque);

#endif /* QCOW2_SOURCE_H */
