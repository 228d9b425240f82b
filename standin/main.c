/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

void
die (const char *fmt, ...)
{
  va_list ap;

  fprintf (stderr, "%s: ", program_invocation_short_name);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fputc ('\n', stderr);
  exit (EXIT_FAILURE);
}

void *
grow (void *p, size_t bytes)
{
  p = realloc (p, bytes);
  if (p == NULL)
    die ("out of memory");
  return p;
}

char *
format (const char *fmt, ...)
{
  char *text;
  va_list ap;

  va_start (ap, fmt);
  if (vasprintf (&text, fmt, ap) == -1)
    die ("out of memory");
  va_end (ap);
  return text;
}

int
main (int argc, char *argv[])
{
  struct request r;
  struct disk d;
  struct arguments a = { 0 };

  request_parse (&r, argc, argv);
  disk_parse (&d, &r);
  disk_look (&d, &r);
  command_build (&a, &r, &d);
  run (&a, &r);
}
