/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that commands open with their backing files. */

#ifndef QCOW2_TOOL_IMAGES_H
#define QCOW2_TOOL_IMAGES_H

#include "image.h"

struct tool_options;

/* How an image is opened, by the options that say so: without passphrases, so
 * that the data of an encrypted one can't be read unless the caller adds them.
 */
extern struct image_options tool_image_options (const struct tool_options *o);

/* Whether an image's format is what -f says.  Returns -1 with the error set. */
extern int tool_check_image_format (const struct tool_options *o,
                                    const struct image *im);

#endif /* QCOW2_TOOL_IMAGES_H */
