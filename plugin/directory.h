/* SPDX-License-Identifier: BSD-3-Clause */

/* dir=: each image of a folder is an export by its file's name, and its
 * snapshots and bitmaps are NAME/snapshot/... and NAME/bitmap/....  An image is
 * open while it has clients.
 *
 * All functions but those that begin and end may be called by several threads
 * at once.
 */

#ifndef QCOW2_DIRECTORY_H
#define QCOW2_DIRECTORY_H

struct nbdkit_exports;
struct served;

/* Open the folder of dir=, before the user and the working directory change.
 * Returns -1 with nbdkit_error called.
 */
extern int directory_begin (void);

/* There are no clients any more: close what is still open, and the folder. */
extern void directory_end (void);

/* Add the names of files that are images.  Returns -1 with nbdkit_error called.
 */
extern int directory_list (struct nbdkit_exports *exports);

/* The image of an export, which is opened for its first client, and in *export
 * what core/image.h calls the export.  Returns NULL with nbdkit_error called.
 */
extern struct served *directory_take (const char *asked, const char **export);

/* The client, whose disk is closed, has left.  An image that was its last one's
 * has been closed when this returns.
 */
extern void directory_give_back (struct served *served);

#endif /* QCOW2_DIRECTORY_H */
