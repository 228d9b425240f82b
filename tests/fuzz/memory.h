/* SPDX-License-Identifier: BSD-3-Clause */

/* How much memory an input takes: more than the bounds of core/ allow is a
 * broken promise (I11).  Sanitizers tell; without one nothing is measured.
 */

#ifndef FUZZ_MEMORY_H
#define FUZZ_MEMORY_H

extern void memory_start (void);
/* max: bytes; 0: the usual bound. */
extern void memory_end (long max);

#endif /* FUZZ_MEMORY_H */
