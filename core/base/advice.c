/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stddef.h>

#include "base/advice.h"
#include "base/error.h"

static const char *const *chosen;

void
advice_choose (const char *const words[ADVICE_NR])
{
  chosen = words;
}

void
advise (enum advice a)
{
  if (chosen != NULL && chosen[a] != NULL)
    error_append (": %s", chosen[a]);
}
