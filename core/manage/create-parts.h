/* SPDX-License-Identifier: BSD-3-Clause */

/* What create.c has of other formats, and what others have of it. */

#ifndef CORE_MANAGE_CREATE_PARTS_H
#define CORE_MANAGE_CREATE_PARTS_H

#include "manage/create.h"

/* create_image for QED: in a storage that is empty. */
extern int create_qed (struct storage *s, const struct create_options *o);

/* Check cluster size, refcount width and features of a qcow2 image.  Returns -1
 * with the error set to EINVAL, about an image of this name.
 */
extern int create_check_format (const char *name,
                                const struct create_options *o);

#endif /* CORE_MANAGE_CREATE_PARTS_H */
