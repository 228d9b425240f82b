/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
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

void
json_string (const char *name, const char *value)
{
  size_t n;

  begin (name);
  putchar ('"');
  for (; *value != '\0'; value += n > 0 ? n : 1) {
    uint32_t c = 0;

    n = error_character (value, &c);
    if (n == 0)
      fputs ("\\ufffd", stdout);
    else if (c > 0xffff && !error_is_printable (c))
      printf ("\\u%04" PRIx32 "\\u%04" PRIx32, 0xd7c0 + (c >> 10),
              0xdc00 + (c & 0x3ff));
    else if (!error_is_printable (c))
      printf ("\\u%04" PRIx32, c);
    else {
      if (c == '"' || c == '\\')
        putchar ('\\');
      fwrite (value, 1, n, stdout);
    }
  }
  putchar ('"');
}
