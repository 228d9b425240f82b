/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "storage/nbd.h"
#include "storage/place.h"

/* What is left of a name: see storage_hide_place.  *length: of that. */
static const char *
without_place (const char *name, size_t *length)
{
  const char *authority = storage_nbd_is_uri (name)
    ? strstr (name, "://") + 3 : NULL;
  const size_t all = authority != NULL ? strcspn (authority, "?#")
    : strlen (name);
  const char *start = authority != NULL ? authority : name;
  const char *slash = memrchr (start, '/', all);
  const char *base = slash != NULL ? slash + 1 : start;

  *length = start + all - base;
  if (authority != NULL && (slash == NULL || *length == 0)) {
    *length = strcspn (name, ":");
    return name;
  }
  return base;
}

void
storage_hide_place (struct storage *s)
{
  size_t length;
  const char *base = without_place (s->name, &length);

  /* In place: others have this pointer. */
  memmove (s->name, base, length);
  s->name[length] = '\0';
  if (s->ops->inner != NULL)
    storage_hide_place (s->ops->inner (s));
}
