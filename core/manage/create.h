/* SPDX-License-Identifier: BSD-3-Clause */

/* Making new images.
 *
 * An image is made as a whole, in one layout: header, refcount table, refcount
 * blocks, L1 table, and with preallocation L2 tables and the guest's
 * clusters, in the guest's order.  All of them have a refcount of 1.  The
 * header is written last, after all else is durable: what was cut short is not
 * an image.
 */

#ifndef CORE_MANAGE_CREATE_H
#define CORE_MANAGE_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/header.h"
#include "storage/storage.h"

/* How much of a new disk is there from the start. */
enum preallocation {
  PREALLOCATION_OFF,
  PREALLOCATION_METADATA, /* all clusters are mapped, to holes */
  PREALLOCATION_FALLOC,   /* and the host has space for them */
  PREALLOCATION_FULL,     /* and they were written, as zeros */
};

struct create_options {
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
  enum storage_locking locking; /* create_file: of files, meanwhile */
};

/* As QEMU's: version 3, clusters of 64 KiB, refcounts of 16 bits. */
#define CREATE_DEFAULTS \
  { .version = 3, .cluster_size = 65536, .refcount_bits = 16 }

/* Make an image in a storage: of a new file, which is empty and grows, or of
 * a block device.  What is there is lost.  Durable on return.  Returns
 * -1 with the error set: EINVAL if there can't be such an image (nothing is
 * changed then), ENOSPC, EIO, ENOMEM.  Spec: Header, Host cluster management,
 * Cluster mapping.
 */
extern int create_image (struct storage *s, const struct create_options *o);

/* An image that was made under a path: which file it is in. */
struct created {
  struct storage *storage; /* open for writing, without locks */
  int dir;                 /* the directory that it is in, and */
  char *name;              /* its name there; NULL: it is a block device */
};

#define CREATED_NOTHING { .dir = -1 }

/* The same under a path, relative to the current directory.  It is made under
 * another name next to it, and gets its own only when it is complete and
 * durable.  What is there already is an error (EEXIST), unless it may be
 * overwritten; it then stays until it is replaced, but on a block device.
 * Others who may write the directory can't have anything written but what was
 * made here.  *made tells which file that is, since another one may be at the
 * path soon; one of the following two is to be called in the end.  Errors
 * also: EAGAIN if another process uses what is to be overwritten.  After an
 * error *made has nothing to be released.
 */
extern int create_file (const char *path, bool overwrite,
                        const struct create_options *o, struct created *made);

/* The image stays.  Does nothing if nothing was made. */
extern void create_release (struct created *made);

/* Remove what create_file has made, unless another file has its name now, or
 * it is on a block device; and release it.
 */
extern void create_undo (struct created *made);

#endif /* CORE_MANAGE_CREATE_H */
