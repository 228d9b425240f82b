/* SPDX-License-Identifier: BSD-3-Clause */

/* Advice that follows an error message.  core/ knows when to give it, the
 * program how to word it: a parameter of the plugin is an option of the tool,
 * and some exist in only one of them.
 */

#ifndef CORE_BASE_ADVICE_H
#define CORE_BASE_ADVICE_H

enum advice {
  ADVICE_FOLLOW,         /* files that images name are not opened */
  ADVICE_FOLLOW_DATA,    /* the same of a data file */
  ADVICE_DATA_FILE,      /* nobody says where the image's data file is */
  ADVICE_BENEATH,        /* the named file is outside the allowed directory */
  ADVICE_BACKING_FORMAT, /* the format of a backing file is not recorded */
  ADVICE_SHARE,          /* another process writes the image */
  ADVICE_REPAIR,         /* a repair may make the image writable */
  ADVICE_READ_ONLY,      /* the image can only be read */
  ADVICE_BITMAPS,        /* writing would make bitmaps wrong */
  ADVICE_RAW,            /* the file holds a disk without any image format */
  ADVICE_PASSPHRASE,     /* an encrypted image is to be read */
  ADVICE_BACKING,        /* what an image names can't be opened */
  ADVICE_FLUSH,          /* an NBD server can't flush */
  ADVICE_NO_SPACE,       /* requests fail until there is room */
  ADVICE_NR,
};

/* Set the wording of each: the text that follows a colon, or NULL for none,
 * which is the default.  The strings must outlive all use of core/.  To be
 * called before the first image is opened.
 */
extern void advice_choose (const char *const words[ADVICE_NR]);

/* Add the advice, if there is one, to the error just set. */
extern void advise (enum advice a);

#endif /* CORE_BASE_ADVICE_H */
