/* SPDX-License-Identifier: BSD-3-Clause */

/* The parameters about NBD servers that have the image or its backing file. */

#ifndef QCOW2_SERVERS_H
#define QCOW2_SERVERS_H

#include <stdbool.h>

#include "storage/nbd.h"

/* Take one parameter.  Returns 1 if it is one of these, 0 if not, or -1 with
 * nbdkit_error called.
 */
extern int servers_set (const char *key, const char *value);

/* Take a value that must be, or is, the URI of a server, for *uri, which is
 * owned by the caller.  Returns -1 with nbdkit_error called.
 */
extern int servers_set_uri (const char *key, const char *value, char **uri);

/* command=CMD, the first time.  Returns -1 with nbdkit_error called. */
extern int servers_set_command (const char *key, const char *value);

/* All parameters are known.  uris: there is a server that is connected to.
 * Returns -1 with nbdkit_error called.
 */
extern int servers_complete (bool uris);

/* The command that starts a server and its arguments, for
 * chain_options.command; NULL: there is none.
 */
extern char *const *servers_command (void);

extern struct nbd_options servers_options (void);

extern void servers_free (void);

#define SERVERS_HELP                                                    \
  "uri=<NBD-URI>              The image is on an NBD server, instead of in a\n" \
  "                           file; backing= and data-file= likewise.\n"  \
  "command=<CMD>              The image is on an NBD server that is started\n" \
  "                           by this command.\n"                        \
  "arg=<ARG>                  An argument of the command; again for each.\n" \
  "retry=<N>                  Try N times more to connect to a server, a\n" \
  "                           second apart (default: when a connection is\n" \
  "                           lost that was only read from, 5).\n"        \
  "timeout=<SECONDS>          Give a silent server up (default 120).\n"   \
  "connections=<N>            At most so many to a server that allows\n"  \
  "                           several (default 4).\n"                     \
  "unsafe-no-flush=<BOOL>     Write even if a server can't flush (default\n" \
  "                           false).\n"

#endif /* QCOW2_SERVERS_H */
