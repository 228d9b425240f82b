/* SPDX-License-Identifier: BSD-3-Clause */

/* The list of exports. */

#ifndef QCOW2_EXPORTS_H
#define QCOW2_EXPORTS_H

/* nbdkit refuses to list more; those beyond can still be opened. */
#define MAX_LISTED_EXPORTS 10000

struct image;
struct nbdkit_exports;

/* Add what the image has, or the only export that is offered.  Returns -1 with
 * nbdkit_error called.
 */
extern int exports_list (struct image *im, struct nbdkit_exports *exports);

#endif /* QCOW2_EXPORTS_H */
