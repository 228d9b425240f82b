/* SPDX-License-Identifier: BSD-3-Clause */

/* A change of an image is cut off at every moment, and each of its calls
 * fails.
 */

#ifndef CRASH_EVERYWHERE_H
#define CRASH_EVERYWHERE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crash-storage.h"

/* In the environment, a number N: only the first, the last and each N-th cut are
 * judged, and only each N-th call fails.  For slow builds, where it matters more that
 * all code runs.
 */
#define CRASH_EVERY_VARIABLE "CRASH_EVERY"

struct everywhere {
  const uint8_t *bytes; /* before the change */
  uint64_t size;
  const char *subject; /* of messages */
  unsigned torn;       /* random states of each cut */

  /* Is filled with what is looked at, for messages. */
  char *what;
  size_t what_size;

  void (*judge) (const uint8_t *bytes, uint64_t size);
};

/* The change made the calls that this disk has logged: judge what a power cut
 * leaves of them.
 */
extern void cut_everywhere (const struct everywhere *e,
                            const struct crash_disk *disk);

/* Make the change with this fault; return whether there was such a call. */
typedef bool fail_call_function (void *opaque,
                                 const struct crash_fault *fault);

/* Let call after call fail, once and for ever, with EIO and ENOSPC. */
extern void fail_everywhere (const struct everywhere *e,
                             fail_call_function *fail_call, void *opaque);

#endif /* CRASH_EVERYWHERE_H */
