/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage on an NBD server, through libnbd: a device of fixed size.  Only what
 * a user names is ever connected to, never what an image names.
 *
 * Nothing of a server is known to be zeros but what it says itself, by
 * base:allocation, or has zeroed on request: there is nothing beyond the end,
 * and a trim promises nothing.
 *
 * A server that makes it known (multi-conn) that a flush on one connection
 * covers what was answered on any other has several, opened as they are
 * needed; any other server has one.
 *
 * No threads are left running, and no locks of other programs are seen: NBD has
 * none.
 */

#ifndef CORE_STORAGE_NBD_H
#define CORE_STORAGE_NBD_H

#include <stdbool.h>

#include "storage/storage.h"

struct nbd_options {
  unsigned connections; /* at most so many; 0: NBD_CONNECTIONS */

  /* A connection that can't be made is tried for again this often, a second
   * later each: when the storage is opened, and after one was lost.  The
   * latter is done only as long as nothing may have been written, and for one
   * timeout in all.
   */
  unsigned opening_retries;
  unsigned retries;

  /* After so many seconds in which a server that owes an answer has sent
   * nothing, the connection is given up; 0: NBD_TIMEOUT.
   */
  unsigned timeout;

  /* Write even if the server can't flush: a power loss there may then cost
   * anything, and ruin the image.
   */
  bool without_flush;
};

#define NBD_CONNECTIONS 4
#define NBD_MAX_CONNECTIONS 16
#define NBD_RETRIES 5
#define NBD_TIMEOUT 120
#define NBD_MAX_TIMEOUT 86400
#define NBD_DEFAULTS { .retries = NBD_RETRIES }

/* Whether a name is such a URI rather than a path. */
extern bool storage_nbd_is_uri (const char *name);

/* Open what is at a URI, for reading.  name is for messages.  Servers with
 * blocks of more than a byte are given whole ones (storage/align.h).  Returns
 * NULL with the error set: ENOTSUP if this was built without libnbd.
 */
extern struct storage *storage_nbd_open (const char *uri,
                                         const struct nbd_options *options,
                                         const char *name);

/* The same of a server that is started for it, by a command: argv as execvp(3)
 * wants it.  It must take a socket that listens from this process (socket
 * activation, see sd_listen_fds(3)), as nbdkit and qemu-nbd do.  There is one
 * connection, which is not made again once it is lost.  The server ends when the
 * storage is closed, or else with the thread that called this.
 */
extern struct storage *storage_nbd_start (char *const *command,
                                          const struct nbd_options *options,
                                          const char *name);

/* The version of libnbd, or NULL if this was built without it. */
extern const char *storage_nbd_library (void);

#endif /* CORE_STORAGE_NBD_H */
