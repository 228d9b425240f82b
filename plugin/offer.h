/* SPDX-License-Identifier: BSD-3-Clause */

/* What clients are offered: all exports by their own names, or one of them by
 * a name that the user chooses; and how many clients at once.
 */

#ifndef QCOW2_OFFER_H
#define QCOW2_OFFER_H

#include <stdbool.h>

/* Take a parameter.  Returns 1, 0 if it is none of these, or -1 with
 * nbdkit_error called.
 */
extern int offer_set (const char *key, const char *value);

/* What the export that a client asks for is called in core/image.h; NULL if the
 * client may not have it, with nbdkit_error called.
 */
extern const char *offer_find (const char *asked);

/* If there is one export only: core's name for it, and *name for clients.  Else
 * NULL.
 */
extern const char *offer_only (const char **name);

/* Before a client is served: wait until it is one of at most clients=N.  Returns
 * -1, with nbdkit_error called, if nbdkit ends or the client is gone meanwhile;
 * after 0, offer_leave is called when it has left.
 */
extern int offer_enter (void);
extern void offer_leave (void);

/* Several connections at once make sense. */
extern bool offer_several (void);

#define OFFER_HELP                                                        \
  "only=<EXPORT>              Offer this export alone.\n"                 \
  "export-name=<NAME>         Call it so; then the default for only= is the\n" \
  "                           live disk.\n"                               \
  "clients=<N>                At most N clients at once (default 0: any\n" \
  "                           number); others wait.\n"

#endif /* QCOW2_OFFER_H */
