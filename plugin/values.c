/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include <nbdkit-plugin.h>

#include "values.h"

int
value_choose (const char *key, const char *value, const char *const *words,
              const char *accepted)
{
  int i;

  for (i = 0; words[i] != NULL; ++i) {
    if (strcmp (value, words[i]) == 0)
      return i;
  }
  nbdkit_error ("%s=%s: must be %s", key, value, accepted);
  return -1;
}

int
value_parse_bool (const char *key, const char *value, bool *b)
{
  const int r = nbdkit_parse_bool (value);

  if (r == -1) {
    nbdkit_error ("%s=%s: must be true or false", key, value);
    return -1;
  }
  *b = r;
  return 0;
}

int
value_parse_size (const char *key, const char *value, uint64_t *size)
{
  const int64_t r = nbdkit_parse_size (value);

  if (r == -1) {
    nbdkit_error ("%s=%s: must be a size, such as 65536, 64K or 10G", key,
                  value);
    return -1;
  }
  *size = r;
  return 0;
}
