/* SPDX-License-Identifier: BSD-3-Clause */

/* How much memory an input takes: more than the bounds of core/ allow is a
 * broken promise (I11).  Sanitizers tell; without one nothing is measured.
 */

#ifndef FUZZ_MEMORY_H
#define FUZZ_MEMORY_H

extern void memory_start (void);
extern void memory_end (void);

#endif /* FUZZ_MEMORY_H */
