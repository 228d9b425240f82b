/* SPDX-License-Identifier: BSD-3-Clause */

/* The gate through which files are opened that an image names, for its backing
 * file or its data file.
 */

#ifndef CORE_DISK_NAME_GATE_H
#define CORE_DISK_NAME_GATE_H

#include "storage/storage.h"

/* Which files an image may make us open: backing files, and data files. */
enum follow {
  FOLLOW_NONE,
  FOLLOW_BENEATH, /* those under its own directory */
  FOLLOW_ANY,     /* any path on the host: see disk/backing-name.h */
};

/* A directory that is open, for a program that can't open it again, or must
 * not: its name may lead elsewhere by now.  The descriptor is the owner's.
 */
struct directory {
  int fd;
  const char *real; /* its real path, when it was opened */
};

/* Where names are looked up: a directory, and for FOLLOW_BENEATH what
 * is needed to stay below it.
 */
struct name_gate {
  enum follow follow;
  char *root;      /* the directory, as the user named it */
  char *root_real; /* its real path; FOLLOW_BENEATH only */
  int fd;          /* of root; FOLLOW_BENEATH or a struct directory, else -1 */
};

/* Open the gate at the directory of this path, which is open already unless dir
 * is NULL.  There is none if it is the URI of an NBD server, or empty: then only
 * absolute paths lead anywhere.  Returns -1 with the error set.
 */
extern int name_gate_open (struct name_gate *g, enum follow follow,
                           const char *path, const struct directory *dir);
extern void name_gate_close (struct name_gate *g);

/* Open a path that is relative to the gate's directory, or absolute.  Returns
 * NULL with the error set: EACCES if FOLLOW_BENEATH forbids it.  Whether names
 * may be followed at all is the caller's to see to.
 */
extern struct storage *name_gate_open_path (const struct name_gate *g,
                                            const char *path);

#endif /* CORE_DISK_NAME_GATE_H */
