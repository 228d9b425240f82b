/* SPDX-License-Identifier: BSD-3-Clause */

/* Making new images.
 *
 * The layout is fixed: header, refcount table, refcount blocks, L1 table, and
 * with preallocation L2 tables and the guest's clusters, in the guest's order;
 * if it is encrypted, a LUKS header before those.
 * Every cluster has a refcount of 1.  The header is written last, after all
 * else is durable, so that an interrupted creation leaves no image.
 */

#ifndef CORE_MANAGE_CREATE_H
#define CORE_MANAGE_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/passphrase.h"
#include "qcow2/header.h"
#include "storage/nbd.h"
#include "storage/storage.h"

/* How much of a new disk is allocated from the start. */
enum preallocation {
  PREALLOCATION_OFF,
  PREALLOCATION_METADATA, /* all clusters are mapped, to holes */
  PREALLOCATION_FALLOC,   /* and the host has space for them */
  PREALLOCATION_FULL,     /* and they were written, as zeros */
};

enum create_format {
  CREATE_QCOW2,
  CREATE_QED, /* of the other fields, these are used: size, cluster_size,
               * table_size, backing, backing_format, locking */
};

struct create_options {
  enum create_format format;
  unsigned table_size;      /* QED: of each table, in clusters */
  uint64_t size;            /* of the disk, in bytes; rounded up to 512 */
  unsigned version;         /* 2 or 3 */
  uint64_t cluster_size;    /* bytes */
  unsigned refcount_bits;
  bool lazy_refcounts;
  bool extended_l2;
  enum compression compression;
  enum preallocation preallocation;
  const char *backing;        /* the name to be recorded, or NULL */
  const char *backing_format; /* "raw", "qcow2"; NULL without backing */
  enum storage_locking locking; /* for create_file */

  /* Guest data is to be in a file of its own, which create_data_file makes: the
   * name to be recorded, or NULL.  raw: as a raw image of the disk.  Then all
   * clusters are mapped from the start, as QEMU has it.
   */
  const char *data_file;
  bool data_file_raw;

  /* Encrypt it with LUKS, so that this opens it, which takes so many
   * milliseconds; NULL: don't.
   */
  const struct passphrase *passphrase;
  unsigned iter_time;

  /* The storage, whose size is fixed, must have room for all of the disk. */
  bool must_fit;
};

/* The longest that an image may take to be opened here. */
#define CREATE_MAX_ITER_TIME 20000

/* As QEMU's: version 3, clusters of 64 KiB, refcounts of 16 bits. */
#define CREATE_DEFAULTS \
  { .version = 3, .cluster_size = 65536, .refcount_bits = 16, .table_size = 4, \
    .iter_time = 2000 }

/* Make an image in a storage: a new file, which is empty and grows, or a block
 * device, whose contents are lost.  Durable on return.  Returns -1 with the
 * error set: EINVAL if there can't be such an image (nothing is changed then),
 * ENOSPC (nor then, with must_fit), EIO, ENOMEM.  Spec: Header, Host cluster
 * management, Cluster mapping.
 */
extern int create_image (struct storage *s, const struct create_options *o);

/* Write zeros that take space: neither a hole nor merely allocated space.
 * Returns -1 with the error set.
 */
extern int create_zeros (struct storage *s, struct host_off at, uint64_t count);

/* The path to which a name leads that is recorded in an image at `file'.  The
 * caller frees it.  NULL: out of memory.
 */
extern char *create_path_from (const char *file, const char *name);

/* The file of an image that was made at a path. */
struct created {
  struct storage *storage; /* open for writing; lets no other process use it */
  int dir;                 /* its directory */
  char *name;              /* its name there; NULL: it is a block device */

  /* The file that it has replaced, which is kept and locked for now, and that
   * one's name in the same directory; or NULL.
   */
  struct storage *old;
  char *old_name;
};

#define CREATED_NOTHING { .dir = -1 }

/* The same at a path, relative to the current directory.  The image is made
 * under a temporary name in the same directory, and renamed when complete and
 * durable.  An existing file is an error (EEXIST) unless overwrite is set; it
 * then stays, under a temporary name once the new one has its own, until
 * create_release.  Only a block device is written in place.  Other users who
 * can write the directory can't make this write to a file that it did not
 * create.  *made identifies the file, since the path may soon lead to another;
 * release it by one of the two functions below.  Fails with EAGAIN, too, if
 * another process uses what is to be overwritten.  After an error there is
 * nothing to release, and what was there is there again.
 */
extern int create_file (const char *path, bool overwrite,
                        const struct create_options *o, struct created *made);

/* The same for a new file that is yet to be filled: it keeps a temporary name,
 * made->name next to path, until create_publish, so that what is at path is
 * complete.  create_undo removes it.
 */
extern int create_hidden (const char *path, const struct create_options *o,
                          struct created *made);

/* Let others use it, so that it can be opened for writing once more.  Returns
 * -1 with the error set.
 */
extern int create_hand_over (struct created *made);

/* Make it durable and give it its name, which must be free.  Nobody writes it
 * any more.  Returns -1 with the error set (EEXIST).
 */
extern int create_publish (struct created *made, const char *path,
                           enum storage_locking locking);

/* The same on an NBD server: a device of fixed size, which is made writable, and
 * formatted.  Without a backing file or data file, it must have room for all of
 * the disk.  What looked at it before, and what serves it then, must not connect
 * again: the same name may lead to something else by then.  Returns -1 with the
 * error set, and nothing is changed: EEXIST if its first 1 MiB is not all zeros,
 * unless overwrite is set; EROFS, ENOTSUP if it can't be written or flushed;
 * ENOLCK; as create_image.  After other errors (EIO) it is no image.
 */
extern int create_far (struct storage *s, bool overwrite,
                       const struct create_options *o);

/* Make the external data file of an image that is to be made with these
 * options: a new file at a path, as large as the disk, which reads as zeros;
 * durable on return.  Returns -1 with the error set: EEXIST if there is
 * anything at that path, whatever create_file may do.  Release it as an image.
 */
extern int create_data_file (const char *path, const struct create_options *o,
                             struct created *made);

/* The image stays, and what it has replaced is removed; a note says so if it
 * can't be.  Does nothing if nothing was made.
 */
extern void create_release (struct created *made);

/* Release it, and leave all files as they are: another process, which has the
 * same, releases or undoes it.
 */
extern void create_let_go (struct created *made);

/* Remove what create_file made, unless its name now belongs to another file or
 * it is on a block device, and give what it has replaced its name again; and
 * release it.  A note says what could not be done.  If others have removed what
 * it has replaced, it stays.
 */
extern void create_undo (struct created *made);

#endif /* CORE_MANAGE_CREATE_H */
