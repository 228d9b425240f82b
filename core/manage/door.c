/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "base/advice.h"
#include "base/error.h"
#include "disk/format.h"
#include "manage/door.h"
#include "qcow2/qcow2.h"
#include "qcow2/unlock.h"
#include "storage/crypt.h"

int
door_open (struct storage *s, const struct passphrases *passphrases,
           struct storage **data)
{
  struct sectors *sectors;
  struct header h;

  *data = NULL;
  if (passphrases->image.bytes == NULL)
    return 0;
  if (qcow2_read_header (s, &h) == -1)
    return -1;
  if (h.encryption == ENCRYPTION_NONE) {
    error_set (EINVAL, "%s: a passphrase was given, but the image is not "
               "encrypted", s->name);
    return -1;
  }
  if (unlock (s, &h, passphrases, 0, &sectors) == -1)
    return -1;
  *data = storage_crypt_new (s, sectors);
  return *data == NULL ? -1 : 0;
}

void
door_locked (const struct storage *s, const char *what)
{
  error_set (EACCES, "%s: it is encrypted, and its passphrase is missing, %s",
             s->name, what);
  advise (ADVICE_PASSPHRASE);
}

int
door_check (const struct layer *l, bool encrypted)
{
  if (!l->encrypted)
    return 0;
  if (!encrypted) {
    error_set (ENOTSUP, "%s: it is encrypted, and what is to get its data is not: "
               "it would be there in the clear", l->tables->name);
    return -1;
  }
  if (l->format->read_guest_data != NULL) { /* so it is AES */
    error_set (ENOTSUP, "%s: it is encrypted with AES, where a wrong passphrase "
               "can't be told from the right one, and would ruin the disk: this "
               "does not support that", l->tables->name);
    return -1;
  }
  if (!storage_crypt_is_locked (l->data))
    return 0;
  door_locked (l->tables, "without which its data can't be copied");
  return -1;
}
