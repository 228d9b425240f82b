/* SPDX-License-Identifier: BSD-3-Clause */

/* Counters that all threads change are divided into stripes, so that threads
 * mostly write different cache lines.
 */

#ifndef CORE_BASE_STRIPE_H
#define CORE_BASE_STRIPE_H

#define STRIPES 16
#define STRIPE_BYTES 64 /* a cache line */

/* The stripe of this thread, from 0 to STRIPES - 1; it never changes. */
extern unsigned stripe_of_thread (void);

#endif /* CORE_BASE_STRIPE_H */
