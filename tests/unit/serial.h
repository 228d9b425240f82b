/* SPDX-License-Identifier: BSD-3-Clause */

/* What sectors may hold once requests have met.  Each request takes effect
 * whole for each sector of 512 bytes, one after the other: where one ended
 * before another began in that order, else in either.
 */

#ifndef UNIT_SERIAL_H
#define UNIT_SERIAL_H

#include <stdbool.h>
#include <stdint.h>

#define SERIAL_SECTOR 512
#define SERIAL_MAX 32 /* requests */

struct serial_request {
  uint64_t from, to;     /* the bytes of the disk that it changes */
  const uint8_t *bytes;  /* NULL: to zeros */
  bool flush;            /* what ended before it began is stable, */
  bool fua;              /* or what it changes itself, once it has ended */
  bool optional;         /* advice: it may as well change nothing */
  uint64_t begun, ended; /* moments; 0: not yet */
};

struct serial {
  const uint8_t *disk; /* as it was at first */
  struct serial_request request[SERIAL_MAX];
  unsigned nr;
  uint64_t now;
};

/* A request begins; returns its number.  bytes must outlive all of this. */
extern unsigned serial_begin (struct serial *s, struct serial_request r);
extern void serial_end (struct serial *s, unsigned request);

/* The requests, as a bitmap, that had ended before this one began; all that
 * have ended; those that survive a crash from now on (I1).
 */
extern uint32_t serial_before (const struct serial *s, unsigned request);
extern uint32_t serial_ended (const struct serial *s);
extern uint32_t serial_stable (const struct serial *s);

/* True if a sector may hold this once at least those in `must' took effect,
 * of all that have begun.
 */
extern bool serial_allows (const struct serial *s, uint64_t sector,
                           const uint8_t *content, uint32_t must);

#endif /* UNIT_SERIAL_H */
