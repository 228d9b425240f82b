/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/misfits.c: what is remembered, of which file, and how long. */

#include <config.h>

#include "check.h"
#include "qcow2/misfits.h"

static struct misfits misfits = MISFITS_INIT;
static const struct passphrase wrong = { "wrong", 5 }, other = { "other", 5 };

int
main (void)
{
  struct storage_stamp stamp = { .device = 1, .inode = 2, .size = 3 }, s;
  unsigned i;

  check_time_limit (60);
  CHECK (!misfits_has (NULL, &stamp, &wrong));
  misfits_add (NULL, &stamp, &wrong);
  CHECK (!misfits_has (&misfits, &stamp, &wrong));
  misfits_add (&misfits, &stamp, &wrong);
  CHECK (misfits_has (&misfits, &stamp, &wrong));
  CHECK (!misfits_has (&misfits, &stamp, &other));

  /* Another file, and the same one after it has changed. */
  s = stamp;
  s.inode++;
  CHECK (!misfits_has (&misfits, &s, &wrong));
  s = stamp;
  s.modified.tv_nsec++;
  CHECK (!misfits_has (&misfits, &s, &wrong));
  s = stamp;
  s.changed.tv_sec++;
  CHECK (!misfits_has (&misfits, &s, &wrong));

  /* A fixed number of files. */
  for (i = 1; i < MAX_MISFITS; ++i) {
    s = stamp;
    s.inode += i;
    misfits_add (&misfits, &s, &wrong);
    CHECK (misfits_has (&misfits, &stamp, &wrong));
  }
  s.inode++;
  misfits_add (&misfits, &s, &wrong);
  CHECK (!misfits_has (&misfits, &stamp, &wrong));
  CHECK (misfits_has (&misfits, &s, &wrong));
  return check_result ();
}
