/* SPDX-License-Identifier: BSD-3-Clause */

/* Why images of the folder can't be written, while they are not open: see
 * struct verdict.  What sticks is kept until nbdkit ends, and of the rest what
 * was found last.  All functions may be called by several threads at once.
 */

#ifndef QCOW2_FINDINGS_H
#define QCOW2_FINDINGS_H

#include "base/registry.h"
#include "image.h"

/* Keep it, instead of what is known.  Does nothing if it says nothing, or if
 * there is no memory.
 */
extern void findings_keep (const struct registry_key *key,
                           const struct verdict *v);

/* *v is what is known. */
extern void findings_look_up (const struct registry_key *key,
                              struct verdict *v);

extern void findings_free (void);

#endif /* QCOW2_FINDINGS_H */
