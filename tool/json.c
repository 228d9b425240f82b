/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "json.h"

static unsigned depth;
static bool first = true; /* in the innermost object or array */

static void
begin (const char *name)
{
  if (depth > 0)
    printf ("%s\n%*s", first ? "" : ",", (int) (4 * depth), "");
  if (name != NULL)
    printf ("\"%s\": ", name);
  first = false;
}

void
json_open (const char *name, char bracket)
{
  begin (name);
  putchar (bracket);
  depth++;
  first = true;
}

void
json_close (char bracket)
{
  depth--;
  if (!first)
    printf ("\n%*s", (int) (4 * depth), "");
  putchar (bracket);
  first = false;
  if (depth == 0) {
    putchar ('\n');
    first = true;
  }
}

void
json_number (const char *name, uint64_t value)
{
  begin (name);
  printf ("%" PRIu64, value);
}

void
json_bool (const char *name, bool value)
{
  begin (name);
  fputs (value ? "true" : "false", stdout);
}

/* How many bytes the character takes; 0: it is not proper UTF-8. */
static size_t
character (const unsigned char *p)
{
  const size_t n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2
    : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;
  size_t i;

  for (i = 1; i < n; ++i)
    if (p[i] >> 6 != 2)
      return 0;
  /* Longer than need be, surrogates, and beyond the last. */
  if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] >= 0xa0) ||
      (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] >= 0x90))
    return 0;
  return n;
}

void
json_string (const char *name, const char *value)
{
  const unsigned char *p = (const unsigned char *) value;
  size_t n;

  begin (name);
  putchar ('"');
  for (; *p != '\0'; p += n > 0 ? n : 1) {
    n = character (p);
    if (n == 0)
      fputs ("\\ufffd", stdout);
    else if (*p < ' ' || *p == 0x7f)
      printf ("\\u%04x", *p);
    else {
      if (*p == '"' || *p == '\\')
        putchar ('\\');
      fwrite (p, 1, n, stdout);
    }
  }
  putchar ('"');
}
