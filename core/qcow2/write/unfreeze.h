/* SPDX-License-Identifier: BSD-3-Clause */

/* What points in time had, and only they, is given up when they have ended
 * (qcow2/points.h: S3, S4).
 */

#ifndef CORE_QCOW2_WRITE_UNFREEZE_H
#define CORE_QCOW2_WRITE_UNFREEZE_H

#include "qcow2/write/writer.h"

/* Points have ended: give up what only they had.  One thread at a time.  The
 * caller holds nothing, and is in no epoch.  It waits for space as a request
 * does (T5).
 */
extern void unfreeze (struct writer *w);

#endif /* CORE_QCOW2_WRITE_UNFREEZE_H */
