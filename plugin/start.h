/* SPDX-License-Identifier: BSD-3-Clause */

/* What happens once, before the first client is served. */

#ifndef QCOW2_START_H
#define QCOW2_START_H

struct image;

/* Open what the parameters name, having made it if they say so, and log what
 * the user must know.  Returns -1 with nbdkit_error called.  In either case *im
 * is to be closed by image_close: it is NULL if it could not be opened.
 */
extern int start_open (struct image **im);

/* Of an image that was opened, and is called so in messages: log what the user
 * must know, and apply the parameters.  Returns -1 with nbdkit_error called.
 * Several threads may do that at once.
 */
extern int start_apply (struct image *im, const char *name);

#endif /* QCOW2_START_H */
