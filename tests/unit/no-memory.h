/* SPDX-License-Identifier: BSD-3-Clause */

/* Allocations that fail on demand.  A program that links no-memory.c with
 * --wrap (see Makefile.am) has one of the allocations fail that are made
 * while memory_armed is set.
 */

#ifndef UNIT_NO_MEMORY_H
#define UNIT_NO_MEMORY_H

#include <stdbool.h>

/* Set while a thread runs code of core/.  Weak, so that code which sets it can
 * be linked without no-memory.c as well; volatile, since the compiler knows
 * that malloc does not look at it.
 */
_Thread_local volatile bool memory_armed __attribute__ ((__weak__));

/* What a test needs for itself does not count. */
static inline bool
memory_pause (void)
{
  const bool was = memory_armed;

  memory_armed = false;
  return was;
}

static inline void
memory_resume (bool was)
{
  memory_armed = was;
}

/* The allocation that fails, counted from 1; 0: none. */
extern unsigned memory_fail_at;
extern unsigned memory_calls; /* so far */

#endif /* UNIT_NO_MEMORY_H */
