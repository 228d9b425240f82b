/* SPDX-License-Identifier: BSD-3-Clause */

/* Scripts as text. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workload.h"

static char
letter (const struct request *r)
{
  switch (r->kind) {
  case REQUEST_WRITE:
    return 'w';
  case REQUEST_ZERO:
    return r->fast ? 'q' : r->may_trim ? 'y' : 'z';
  case REQUEST_TRIM:
    return 't';
  case REQUEST_FLUSH:
    return 'f';
  case REQUEST_REOPEN:
    return 'o';
  case REQUEST_TAKE:
    return 'p';
  case REQUEST_END:
    return 'e';
  case REQUEST_SNAPSHOT:
    return 's';
  }
  abort ();
}

bool
script_format (const struct script *s, char *buf, size_t size)
{
  size_t n = 0;
  unsigned i;

  buf[0] = '\0';
  for (i = 0; i < s->nr && n < size; ++i) {
    const struct request *r = &s->request[i];

    n += snprintf (buf + n, size - n, "%s%c%s", i > 0 ? "," : "", letter (r),
                   r->fua ? "!" : "");
    if (request_has_range (r) && n < size)
      n += snprintf (buf + n, size - n, "%" PRIu64 "+%" PRIu64, r->offset,
                     r->count);
    if (r->kind == REQUEST_END && n < size)
      n += snprintf (buf + n, size - n, "%" PRIu64, r->offset);
  }
  return n < size;
}

static bool
parse_request (struct request *r, char **text)
{
  static const char letters[] = "wzyqtfopes";
  char *p = *text;

  memset (r, 0, sizeof *r);
  switch (*p) {
  case 'w':
    r->kind = REQUEST_WRITE;
    break;
  case 'q':
  case 'y':
  case 'z':
    r->kind = REQUEST_ZERO;
    r->fast = *p == 'q';
    r->may_trim = *p != 'z';
    break;
  case 't':
    r->kind = REQUEST_TRIM;
    break;
  case 'f':
    r->kind = REQUEST_FLUSH;
    break;
  case 'o':
    r->kind = REQUEST_REOPEN;
    break;
  case 'p':
    r->kind = REQUEST_TAKE;
    break;
  case 'e':
    r->kind = REQUEST_END;
    break;
  case 's':
    r->kind = REQUEST_SNAPSHOT;
    break;
  }
  if (*p == '\0' || strchr (letters, *p++) == NULL)
    return false;
  if (*p == '!')
    r->fua = true, p++;
  if (request_has_range (r)) {
    r->offset = strtoull (p, &p, 0);
    if (*p++ != '+')
      return false;
    r->count = strtoull (p, &p, 0);
  }
  if (r->kind == REQUEST_END)
    r->offset = strtoull (p, &p, 0);
  *text = p;
  return true;
}

bool
script_parse (struct script *s, const char *text)
{
  char *p = (char *) text;

  s->nr = 0;
  while (s->nr < SCRIPT_MAX && parse_request (&s->request[s->nr], &p)) {
    s->nr++;
    if (*p == '\0')
      return true;
    if (*p++ != ',')
      return false;
  }
  return false;
}
