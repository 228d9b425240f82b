/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <ctype.h>
#include <string.h>

#include "tool.h"

/* Its tenths, hundredths and so on of 2^shift, rounded down: to so many digits
 * that this stays exact.
 */
static bool
parse_fraction (const char **text, unsigned shift, uint64_t *bytes)
{
  uint64_t number = 0, scale = 1;
  const char *p = *text;

  for (; isdigit ((unsigned char) *p) && scale < 1000000; ++p) {
    number = number * 10 + (*p - '0');
    scale *= 10;
  }
  *text = p;
  /* Below scale * 2^shift, of which 2^60 is the largest. */
  *bytes = shift < 40 ? (number << shift) / scale
    : (number << 40) / scale << (shift - 40);
  return scale > 1;
}

static bool
find_shift (char suffix, unsigned *shift)
{
  static const char suffixes[] = "BKMGTPE";
  const char *p = strchr (suffixes, toupper ((unsigned char) suffix));

  if (suffix == '\0' || p == NULL)
    return false;
  *shift = (p - suffixes) * 10;
  return true;
}

bool
tool_parse_size (const char *text, uint64_t *size)
{
  const size_t len = strlen (text);
  const char *end = text + len;
  uint64_t number = 0, fraction = 0;
  unsigned shift = 0;

  if (len > 0 && find_shift (text[len - 1], &shift))
    end--;
  if (!isdigit ((unsigned char) *text))
    return false;
  for (; isdigit ((unsigned char) *text); ++text) {
    if (number > (INT64_MAX - 9) / 10)
      return false;
    number = number * 10 + (*text - '0');
  }
  if (*text == '.' && shift > 0) {
    text++;
    if (!parse_fraction (&text, shift, &fraction))
      return false;
  }
  if (text != end || number > (uint64_t) INT64_MAX >> shift)
    return false;
  *size = number << shift;
  if (fraction > INT64_MAX - *size)
    return false;
  *size += fraction;
  return true;
}
