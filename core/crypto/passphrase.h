/* SPDX-License-Identifier: BSD-3-Clause */

/* The passphrases of an image and its backing files, as their user gives them:
 * any bytes, which whoever has made them wipes once the files are open (I15).
 */

#ifndef CORE_CRYPTO_PASSPHRASE_H
#define CORE_CRYPTO_PASSPHRASE_H

#include <stdbool.h>
#include <stddef.h>

struct misfits;

struct passphrase {
  const void *bytes; /* NULL: none */
  size_t count;
};

struct passphrases {
  struct passphrase image;

  /* Of the backing files from the first on down, encrypted or not.  Those below
   * the last have that of the last; without any they have that of the image.
   */
  const struct passphrase *backing;
  unsigned nr_backing;

  /* None is needed, since no data is to be read: encrypted data can't be. */
  bool locked;

  /* Remembers which of them fit which file not, while they are in memory; NULL:
   * nobody does.  See qcow2/misfits.h.
   */
  struct misfits *misfits;
};

/* The one of the file that is so many below the image. */
static inline struct passphrase
passphrase_of (const struct passphrases *p, unsigned depth)
{
  if (depth == 0 || p->nr_backing == 0)
    return p->image;
  return p->backing[(depth <= p->nr_backing ? depth : p->nr_backing) - 1];
}

#endif /* CORE_CRYPTO_PASSPHRASE_H */
