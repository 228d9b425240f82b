/* SPDX-License-Identifier: BSD-3-Clause */

/* Advice is in the words of who uses core/, or there is none. */

#include <config.h>

#include <errno.h>

#include "base/advice.h"
#include "check.h"

static const char *const words[ADVICE_NR] = {
  [ADVICE_SHARE] = "say please",
};

int
main (void)
{
  check_time_limit (100);

  error_set (EAGAIN, "image: locked");
  advise (ADVICE_SHARE);
  CHECK_STR (error_message (), "image: locked");

  advice_choose (words);
  advise (ADVICE_SHARE);
  CHECK_STR (error_message (), "image: locked: say please");
  CHECK_EQ (error_errno (), EAGAIN);

  error_set (EACCES, "image: no");
  advise (ADVICE_FOLLOW);
  CHECK_STR (error_message (), "image: no");
  return check_result ();
}
