/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of a commit have in common: commit.c, which checks and empties,
 * and
 *
 *   commit-copy.c   copies, in several threads
 */

#ifndef CORE_COMMIT_PARTS_H
#define CORE_COMMIT_PARTS_H

#include "commit.h"

/* Copy what the files above the base have of their own to base, which is
 * writable, or, if that is NULL, to the raw file that the base is, whose storage
 * is.  Not durable.  Returns -1 with the error set, which tells that a part may
 * have been copied.
 */
extern int commit_copy (struct image *im, unsigned above, struct image *base,
                        const struct commit_options *o);

#endif /* CORE_COMMIT_PARTS_H */
