/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of an image have in common: image.c, which opens and closes it
 * and takes requests, and
 *
 *   image-writable.c   what is done before it is written, repair included
 *   image-exports.c    the live disk and snapshots, by their names
 */

#ifndef CORE_IMAGE_PARTS_H
#define CORE_IMAGE_PARTS_H

#include "base/epoch.h"
#include "base/gate.h"
#include "disk/chain.h"
#include "image.h"
#include "qcow2/disk.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/leaks.h"
#include "qcow2/write/writer.h"

/* Why an image can't be written: found out at some cost, which another client
 * does not have to cause again.  It holds as long as the file is as it was
 * then, by its inode, size and times.  Should something have changed that
 * these don't tell (within one tick of the file system's clock, or on a block
 * device) then an image stays refused that need not be; that it is sound is
 * never taken from here, so nothing is written that should not be.
 */
struct verdict {
  bool known;
  struct storage_stamp stamp;
  int err;
  char message[1024];
};

struct image {
  struct shared shared;
  struct epoch epoch;
  struct chain chain;
  struct snapshots snapshots;

  struct gate gate; /* of requests that change something, and of flushes */
  pthread_mutex_t writer_lock;
  struct writer *_Atomic writer; /* NULL: not writable */
  _Atomic uint64_t full; /* see no_space_once */
  struct leaks *leaks; /* writer_lock; NULL: none are looked for */
  bool leaks_begun;    /* writer_lock; or are not to be looked for */
  enum detect_zeroes detect_zeroes;
  bool repaired;      /* writer_lock; or found to need no repair */
  bool counted;       /* writer_lock; excess references were lowered */
  bool repair_failed; /* writer_lock; nothing is written any more (I10) */
  uint64_t check_memory;
  struct verdict verdict; /* writer_lock */
};

static inline const struct qcow2_file *
image_top (const struct image *im)
{
  return qcow2_file (im->chain.layer[0]);
}

#endif /* CORE_IMAGE_PARTS_H */
