/* SPDX-License-Identifier: BSD-3-Clause */

/* Long work in the background that leaves the CPUs to what the process does for
 * its clients: after each part it rests, if other threads were at work meanwhile.
 * A lower priority would not do: what it holds would be held for longer, and
 * others would wait for it.
 */

#ifndef CORE_BASE_PACE_H
#define CORE_BASE_PACE_H

#include <stdint.h>

/* Of one thread.  CPU time, in nanoseconds. */
struct pace {
  uint64_t own; /* the thread's when it began, or had rested */
  uint64_t all; /* that of all threads of the process */
};

extern void pace_begin (struct pace *pace);

/* Rest for six times the CPU time that the thread has used since it began, or rested,
 * but 50 ms at most, if that is worth it and all other threads have used a quarter of
 * it or more: whatever they do, and however many CPUs there are.  Wants no lock to be
 * held.
 */
extern void pace_rest (struct pace *pace);

#endif /* CORE_BASE_PACE_H */
