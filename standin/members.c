/* SPDX-License-Identifier: BSD-3-Clause */

/* QEMU's KEY=VALUE,... */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "standin.h"

void
members_add (struct members *m, const char *what, const char *key,
             const char *value)
{
  unsigned i;

  for (i = 0; i < m->nr; ++i)
    if (strcmp (m->member[i].key, key) == 0)
      die ("%s: '%s' was given twice", what, key);
  m->member = grow (m->member, (m->nr + 1) * sizeof *m->member);
  m->member[m->nr++] = (struct member) {
    .key = format ("%s", key),
    .value = value != NULL ? format ("%s", value) : NULL,
  };
}

/* Copy a value up to a comma that is not followed by another one.  Returns the
 * place of what comes next: after that comma, or the text's end.
 */
static const char *
copy_value (char *to, const char *from)
{
  while (*from != '\0') {
    if (*from == ',' && *++from != ',')
      break;
    *to++ = *from++;
  }
  *to = '\0';
  return from;
}

void
members_parse (struct members *m, const char *what, const char *text,
               const char *first)
{
  char *value = grow (NULL, strlen (text) + 1);

  while (*text != '\0') {
    const size_t n = strcspn (text, "=,");

    if (text[n] == '=') {
      char *key = format ("%.*s", (int) n, text);

      text = copy_value (value, text + n + 1);
      members_add (m, what, key, value);
      free (key);
    }
    else {
      text = copy_value (value, text);
      if (first != NULL)
        members_add (m, what, first, value);
      else
        die ("%s: '%s' has no value", what, value);
    }
    first = NULL;
  }
  free (value);
}

static struct member *
find (const struct members *m, const char *prefix, const char *key)
{
  const size_t n = strlen (prefix);
  unsigned i;

  for (i = 0; i < m->nr; ++i)
    if (strncmp (m->member[i].key, prefix, n) == 0 &&
        strcmp (m->member[i].key + n, key) == 0)
      return &m->member[i];
  return NULL;
}

const char *
members_take (struct members *m, const char *prefix, const char *key)
{
  struct member *found = find (m, prefix, key);

  if (found == NULL || found->value == NULL)
    return NULL;
  found->used = true;
  return found->value;
}

bool
members_take_null (struct members *m, const char *prefix, const char *key)
{
  struct member *found = find (m, prefix, key);

  if (found == NULL || found->value != NULL)
    return false;
  found->used = true;
  return true;
}

bool
members_take_bool (struct members *m, const char *prefix, const char *key,
                   bool otherwise)
{
  const char *value = members_take (m, prefix, key);

  if (value == NULL)
    return otherwise;
  if (strcmp (value, "on") == 0 || strcmp (value, "yes") == 0 ||
      strcmp (value, "true") == 0 || strcmp (value, "y") == 0)
    return true;
  if (strcmp (value, "off") == 0 || strcmp (value, "no") == 0 ||
      strcmp (value, "false") == 0 || strcmp (value, "n") == 0)
    return false;
  die ("'%s%s' expects 'on' or 'off', not '%s'", prefix, key, value);
}

bool
members_have (const struct members *m, const char *prefix)
{
  unsigned i;

  for (i = 0; i < m->nr; ++i)
    if (strncmp (m->member[i].key, prefix, strlen (prefix)) == 0)
      return true;
  return false;
}

void
members_end (const struct members *m, const char *what)
{
  unsigned i;

  for (i = 0; i < m->nr; ++i)
    if (!m->member[i].used)
      die ("%s: '%s%s%s' is not supported", what, m->member[i].key,
           m->member[i].value != NULL ? "=" : "",
           m->member[i].value != NULL ? m->member[i].value : "");
}
