/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <ctype.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "hints.h"

#define MANUAL "see nbdkit-qcow2-plugin(1)"

/* Other programs' names for parameters, and what to use here. */
static const struct {
  const char *key;
  const char *hint;
} others[] = {
#define SNAPSHOT "internal snapshots are exports: clients ask for " \
    "snapshot/NAME, or --filter=exportname makes one the default"
  { "snapshot", SNAPSHOT },
  { "snapshots", SNAPSHOT },
  { "snapshotid", SNAPSHOT },
  { "loadsnapshot", SNAPSHOT },
  { "snapshotload", SNAPSHOT },
  { "export", "clients choose the export: \"\" or snapshot/NAME" },
  { "exportname", "clients choose the export: \"\" or snapshot/NAME" },
#define READ_ONLY "say nbdkit -r"
  { "readonly", READ_ONLY },
  { "ro", READ_ONLY },
  { "readwrite", "that is the default; nbdkit -r serves it read-only" },
  { "rw", "that is the default; nbdkit -r serves it read-only" },
#define FILTER(name) \
    "that is for a filter: nbdkit --filter=" name " qcow2 ..."
  { "partition", FILTER ("partition") },
  { "offset", FILTER ("offset") },
  { "range", FILTER ("offset") },
#define FORMAT "qcow2 and QED are recognized; nbdkit file serves raw disks"
  { "fmt", FORMAT },
  { "driver", FORMAT },
#define FILE_NAME "did you mean file= ?"
  { "image", FILE_NAME },
  { "filename", FILE_NAME },
  { "path", FILE_NAME },
  { "disk", FILE_NAME },
  { "backingfile", "did you mean backing= ?" },
  { "backingfmt", "did you mean backing-format= ?" },
  { "backingfileformat", "did you mean backing-format= ?" },
  { "compression", "did you mean compress= ?" },
  { "compresslevels", "did you mean compress-level= ?" },
  { "cache", "did you mean cache-size= ?" },
  { "prealloc", "did you mean preallocation= ?" },
  { "secret", "did you mean passphrase= ?" },
  { "password", "did you mean passphrase= ?" },
  { "externaldatafile", "did you mean data-file= ?" },
  { "threads", "say nbdkit -t" },
  { "socket", "say nbdkit -U" },
  { "port", "say nbdkit -p" },
};

/* Whether they are equal except for case, hyphens and underscores.  b has a
 * length and no terminator.
 */
static bool
are_alike (const char *a, const char *b, size_t b_len)
{
  const char *end = b + b_len;

  for (;;) {
    while (*a == '-' || *a == '_')
      a++;
    while (b < end && (*b == '-' || *b == '_'))
      b++;
    if (*a == '\0' || b == end)
      return *a == '\0' && b == end;
    if (tolower ((unsigned char) *a++) != tolower ((unsigned char) *b++))
      return false;
  }
}

static bool
is_key_character (char c)
{
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
}

/* Find the parameter that is like this key.  Returns its length, or 0. */
static size_t
find_alike (const char *key, const char *help, const char **found)
{
  const char *line, *next, *p;

  for (line = help; line != NULL; line = next) {
    for (p = line; is_key_character (*p); ++p)
      ;
    if (p > line && *p == '=' && are_alike (key, line, p - line)) {
      *found = line;
      return p - line;
    }
    next = strchr (line, '\n');
    if (next != NULL)
      next++;
  }
  return 0;
}

void
hints_unknown (const char *key, const char *help)
{
  const char *found;
  const size_t n = find_alike (key, help, &found);
  size_t i;

  if (n > 0) {
    nbdkit_error ("unknown parameter '%s': did you mean %.*s= ? (" MANUAL ")",
                  key, (int) n, found);
    return;
  }
  for (i = 0; i < sizeof others / sizeof others[0]; ++i) {
    if (are_alike (key, others[i].key, strlen (others[i].key))) {
      nbdkit_error ("unknown parameter '%s': %s (" MANUAL ")", key,
                    others[i].hint);
      return;
    }
  }
  nbdkit_error ("unknown parameter '%s': " MANUAL ", or nbdkit qcow2 --help",
                key);
}
