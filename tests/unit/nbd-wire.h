/* SPDX-License-Identifier: BSD-3-Clause */

/* The server's side of the NBD protocol, for servers in a thread of a test:
 * fixed newstyle negotiation, requests with short headers, structured replies.
 */

#ifndef UNIT_NBD_WIRE_H
#define UNIT_NBD_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a server offers, and how requests and errors are numbered. */
enum {
  WIRE_HAS_FLAGS = 1, WIRE_CAN_FLUSH = 4, WIRE_CAN_FUA = 8, WIRE_CAN_TRIM = 32,
  WIRE_CAN_ZERO = 64, WIRE_CAN_MULTI_CONN = 256, WIRE_CAN_FAST_ZERO = 2048,
};
enum {
  WIRE_READ = 0, WIRE_WRITE = 1, WIRE_DISCONNECT = 2, WIRE_FLUSH = 3,
  WIRE_TRIM = 4, WIRE_ZERO = 6, WIRE_EXTENTS = 7,
};
enum { WIRE_FUA = 1, WIRE_NO_HOLE = 2, WIRE_REQ_ONE = 8, WIRE_FAST = 16 };
enum { WIRE_EIO = 5, WIRE_EINVAL = 22, WIRE_ENOSPC = 28, WIRE_ENOTSUP = 95 };

struct wire_export {
  uint64_t size;
  uint16_t flags; /* WIRE_CAN_*; WIRE_HAS_FLAGS goes without saying */
  uint32_t block; /* the smallest, 1 at least; 0: nothing is said */
  bool extents;   /* base:allocation is there */
};

/* As it comes; the numbers are big-endian. */
struct wire_request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t count;
} __attribute__ ((__packed__));

/* All of it.  wire_get returns false if the client has gone; what wire_put can't
 * send is lost.
 */
extern bool wire_get (int fd, void *buf, size_t count);
extern void wire_put (int fd, const void *buf, size_t count);

/* From the greeting to the first request.  Returns false if the client has gone,
 * or wants something strange.
 */
extern bool wire_negotiate (int fd, const struct wire_export *e);

/* The only chunk of an answer: data of a read, or an error (0: none). */
extern void wire_put_read (int fd, const struct wire_request *q,
                           const void *data, uint32_t count);
extern void wire_put_error (int fd, const struct wire_request *q,
                            uint32_t error);

/* The answer to WIRE_EXTENTS: so many pairs of length and flags, in the order of
 * this machine.
 */
#define WIRE_MAX_EXTENTS 16
extern void wire_put_extents (int fd, const struct wire_request *q,
                              const uint32_t *pairs, unsigned nr);

#endif /* UNIT_NBD_WIRE_H */
