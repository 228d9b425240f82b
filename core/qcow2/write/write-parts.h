/* SPDX-License-Identifier: BSD-3-Clause */

/* What write.c, which takes requests and writes in place, and write-step.c, which
 * changes mappings, have in common.
 */

#ifndef CORE_QCOW2_WRITE_WRITE_PARTS_H
#define CORE_QCOW2_WRITE_WRITE_PARTS_H

#include "qcow2/write/write.h"
#include "storage/crypt.h"

/* The storage that takes what the guest sees at an offset from there on, if it
 * is stored here: of AES it is a view, which numbers sectors as the guest does.
 */
extern struct storage *write_data_at (const struct writer *w,
                                      struct host_off host, uint64_t guest,
                                      struct crypt_view *view);

/* Write where mappings have to change.  *done: the bytes written, 0 if they are
 * mapped by now and can be written in place.
 */
extern int write_elsewhere (struct writer *w, const uint8_t *buf,
                            uint64_t count, struct guest_off offset,
                            unsigned flags, uint64_t *done);

#endif /* CORE_QCOW2_WRITE_WRITE_PARTS_H */
