/* SPDX-License-Identifier: BSD-3-Clause */

/* NBD servers that a test starts: nbdkit on a Unix socket in a folder of its
 * own.
 */

#ifndef UNIT_FAR_SERVER_H
#define UNIT_FAR_SERVER_H

#include <sys/types.h>

struct far_nbdkit {
  char *folder;
  char *uri;
  pid_t pid; /* 0: none */
};

/* False if there is no nbdkit here. */
extern int have_nbdkit (void);

/* Start nbdkit with these arguments, separated by spaces.  It serves when this
 * returns.  Aborts if that fails.
 */
extern void far_start (struct far_nbdkit *s, const char *arguments);

/* The same on the same socket, after far_kill. */
extern void far_start_again (struct far_nbdkit *s, const char *arguments);

/* By SIGKILL. */
extern void far_kill (struct far_nbdkit *s);

/* The server no longer does anything, or goes on. */
extern void far_stop (struct far_nbdkit *s);
extern void far_go_on (struct far_nbdkit *s);

/* End it, if it was not killed, and remove its folder. */
extern void far_end (struct far_nbdkit *s);

#endif /* UNIT_FAR_SERVER_H */
