/* SPDX-License-Identifier: BSD-3-Clause */

/* What helps against an error.  core/ knows when, and who uses it knows in
 * which words: a parameter of the plugin is an option of the tool, and some
 * are only one's.
 */

#ifndef CORE_BASE_ADVICE_H
#define CORE_BASE_ADVICE_H

enum advice {
  ADVICE_FOLLOW,         /* an image names a file, and may not */
  ADVICE_BENEATH,        /* the file is not where those must be */
  ADVICE_BACKING_FORMAT, /* the format of a backing file is not recorded */
  ADVICE_SHARE,          /* another process writes the image */
  ADVICE_REPAIR,         /* a repair may make it one that can be written */
  ADVICE_READ_ONLY,      /* all that is left is reading it */
  ADVICE_BITMAPS,        /* writing would make bitmaps wrong */
  ADVICE_RAW,            /* it is no image of any format, but a disk */
  ADVICE_NR,
};

/* The words for each: what goes behind a colon, or NULL for none.  They must
 * outlive all use of core/.  To be called before the first image is opened; by
 * default there are none.
 */
extern void advice_choose (const char *const words[ADVICE_NR]);

/* Add the advice, if there is one, to the error just set. */
extern void advise (enum advice a);

#endif /* CORE_BASE_ADVICE_H */
