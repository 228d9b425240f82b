/* SPDX-License-Identifier: BSD-3-Clause */

/* Points in time by their tokens: who reads them, and how long they last. */

#ifndef CORE_IMAGE_POINTS_H
#define CORE_IMAGE_POINTS_H

#include "image.h"

/* The disk of the point with this token, which is taken if there is none yet.
 * image_close_disk closes it.  Returns NULL with the error set: EINVAL for what
 * can't be a token; ESTALE if it has ended; EBUSY if there are too many; EIO if
 * it has failed; ENOMEM.
 */
extern struct layer *image_points_open (struct image *im, const char *token);

/* All points fail, since the disk is changed by other means than requests. */
extern void image_points_fail (struct image *im);

/* No request is running, nor will one, and no disk of them be closed any more:
 * nbdkit leaves some open when it ends.  End them all, and give up what they had,
 * as long as there is a writer.
 */
extern void image_points_close (struct image *im);

#endif /* CORE_IMAGE_POINTS_H */
