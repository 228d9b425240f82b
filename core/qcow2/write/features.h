/* SPDX-License-Identifier: BSD-3-Clause */

/* The feature bits of the header while an image is written, and the hint that
 * it has a writer.  All return -1 with the error set; then nothing is written
 * any more (I10).
 */

#ifndef CORE_QCOW2_WRITE_FEATURES_H
#define CORE_QCOW2_WRITE_FEATURES_H

#include "qcow2/write/writer.h"

/* Write those of writer.header, durably.  Wants writer.begin_lock. */
extern int features_write (struct writer *w);

/* The image is about to be changed for the first time.  Wants
 * writer.begin_lock.
 */
extern int features_begin (struct writer *w);

/* All is durable and nothing is pending: it is not dirty any more, and has no
 * writer, unless leaks are left.  No request may be running.
 */
extern int features_clear_dirty (struct writer *w);
extern int features_clear_hint (struct writer *w);

#endif /* CORE_QCOW2_WRITE_FEATURES_H */
