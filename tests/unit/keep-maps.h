/* SPDX-License-Identifier: BSD-3-Clause */

/* Tests open images thousands of times, each of which maps memory for its cache.
 * To give that back to the system takes longer than all that is done with it, since
 * every processor has to hear of it.  So a test can keep it for the next image.
 */

#ifndef UNIT_KEEP_MAPS_H
#define UNIT_KEEP_MAPS_H

/* From now on anonymous memory that is unmapped is kept, up to a number of pieces,
 * and handed out again as zeros.  Does nothing with sanitizers, which want to know
 * what is unmapped, nor on machines where nobody has tried it.  Not for tests that
 * look at how much memory is in use.
 */
extern void keep_maps (void);

#endif /* UNIT_KEEP_MAPS_H */
