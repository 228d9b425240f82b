/* SPDX-License-Identifier: BSD-3-Clause */

/* Mapping clusters of a disk whose external data file is a raw image of it
 * (Spec: Header, autoclear feature bit 1).  That file must be what the guest
 * sees, even after a crash.  So
 *
 *  D1  What is mapped stays mapped: zeros are written there, or punched.
 *  D2  What is not mapped is zeros in the data file.
 *  D3  To map a cluster changes nothing, thus: it is zeros, durably, before it
 *      is mapped, and mapped, durably, before anything is written to it.
 *      Writes in place wait until it is (struct writer, in_turn).
 *
 *  D4  The file is as large as the disk, durably, before anything is mapped.
 *      Until then nothing is mapped that begins behind the end that it had:
 *      what is written in place needs no space for more of it (I13).
 *
 *  D5  After a flush it is as large as the disk even though nothing had to be
 *      mapped: whoever reads it without the image finds all of the disk.  Where
 *      it can't be made so it lacks zeros only, and the flush is none the
 *      worse.  This is in writer_flush.
 *
 * Mostly all clusters are mapped: as QEMU and manage/create.h make such
 * images.
 */

#ifndef CORE_QCOW2_WRITE_RAW_DATA_H
#define CORE_QCOW2_WRITE_RAW_DATA_H

#include "qcow2/write/writer.h"

/* Look at what others have put behind what the raw data file had when it was
 * looked through: it is not to be zeroed by mapping that.  Returns -1 with the
 * error set: EIO if there is anything but zeros where nothing is mapped.
 * begin_lock held.
 */
extern int raw_data_look (struct writer *w);

/* Map the cluster at this offset, and those behind it as far as a step goes.
 * The caller holds nothing.  Returns -1 with the error set.
 */
extern int raw_data_map (struct writer *w, struct guest_off offset);

#endif /* CORE_QCOW2_WRITE_RAW_DATA_H */
