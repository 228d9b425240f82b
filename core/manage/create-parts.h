/* SPDX-License-Identifier: BSD-3-Clause */

/* What create.c has of other formats. */

#ifndef CORE_MANAGE_CREATE_PARTS_H
#define CORE_MANAGE_CREATE_PARTS_H

#include "manage/create.h"

/* create_image for QED: in a storage that is empty. */
extern int create_qed (struct storage *s, const struct create_options *o);

#endif /* CORE_MANAGE_CREATE_PARTS_H */
