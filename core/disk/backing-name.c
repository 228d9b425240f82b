/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/backing-name.h"

#define MAX BACKING_NAME_MAX

enum member { DRIVER, FILENAME, FILE_DRIVER, FILE_FILENAME };
#define MEMBERS (FILE_FILENAME + 1)

static const char *const member_name[MEMBERS] = {
  [DRIVER] = "driver",
  [FILENAME] = "filename",
  [FILE_DRIVER] = "file.driver",
  [FILE_FILENAME] = "file.filename",
};

struct parser {
  const char *file, *name; /* for messages */
  const char *at;
  bool has_file; /* a member "file" was met */
  bool has[MEMBERS];
  char value[MEMBERS][MAX + 1];
};

/* ---------------------------------------------------------------- messages */

static int __attribute__ ((__format__ (__printf__, 3, 4)))
refuse (const char *file, const char *name, const char *fmt, ...)
{
  char text[256];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  error_set (EACCES, "%s: its backing file is \"%s\": only plain paths are "
             "ever followed, be they in file: or json:, and %s", file,
             name, text);
  return -1;
}

static int
malformed (const struct parser *p, const char *what)
{
  error_set (EINVAL, "%s: its backing file is \"%s\": at byte %zu of that: %s",
             p->file, p->name,
             (size_t) (p->at - p->name), what);
  return -1;
}

/* --------------------------------------------------------------------- JSON */

/* Step over white space, and return what comes then. */
static char
peek (struct parser *p)
{
  p->at += strspn (p->at, " \t\r\n");
  return *p->at;
}

static int
expect (struct parser *p, char c, const char *what)
{
  if (peek (p) != c)
    return malformed (p, what);
  p->at++;
  return 0;
}

/* The four digits of \uXXXX; -1 if they aren't. */
static int32_t
hex4 (const char *s)
{
  int32_t v = 0;
  unsigned i;

  for (i = 0; i < 4; ++i) {
    const char c = s[i];

    if (c >= '0' && c <= '9')
      v = v << 4 | (c - '0');
    else if ((c | 32) >= 'a' && (c | 32) <= 'f')
      v = v << 4 | ((c | 32) - 'a' + 10);
    else
      return -1; /* also where the name ends */
  }
  return v;
}

static size_t
put_utf8 (char *to, uint32_t c)
{
  size_t n = 0;

  if (c < 0x80) {
    to[n++] = c;
    return n;
  }
  if (c < 0x800)
    to[n++] = 0xc0 | c >> 6;
  else {
    if (c < 0x10000)
      to[n++] = 0xe0 | c >> 12;
    else {
      to[n++] = 0xf0 | c >> 18;
      to[n++] = 0x80 | (c >> 12 & 0x3f);
    }
    to[n++] = 0x80 | (c >> 6 & 0x3f);
  }
  to[n++] = 0x80 | (c & 0x3f);
  return n;
}

/* Behind the \u.  What it makes is never longer than itself. */
static int
parse_unicode (struct parser *p, char *to, size_t *n)
{
  int32_t c = hex4 (p->at), low;

  if (c == -1)
    return malformed (p, "four hexadecimal digits are wanted");
  p->at += 4;
  if (c >= 0xd800 && c < 0xdc00 && p->at[0] == '\\' && p->at[1] == 'u') {
    low = hex4 (p->at + 2);
    if (low >= 0xdc00 && low < 0xe000) {
      p->at += 6;
      c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
  }
  if (c == 0 || (c >= 0xd800 && c < 0xe000))
    return malformed (p, "this is no character of a path");
  *n += put_utf8 (to + *n, c);
  return 0;
}

static int
parse_escape (struct parser *p, char *to, size_t *n)
{
  static const char from[] = "\"\\/'bfnrt";
  static const char means[] = "\"\\/'\b\f\n\r\t";
  const char *found;

  if (*p->at == 'u') {
    p->at++;
    return parse_unicode (p, to, n);
  }
  found = *p->at != '\0' ? strchr (from, *p->at) : NULL;
  if (found == NULL)
    return malformed (p, "there is no such escape");
  to[(*n)++] = means[found - from];
  p->at++;
  return 0;
}

/* A string is shorter than the name that it is in. */
static int
parse_string (struct parser *p, char to[MAX + 1], const char *what)
{
  const char quote = peek (p);
  size_t n = 0;

  if (quote != '"' && quote != '\'')
    return malformed (p, what);
  p->at++;
  while (*p->at != quote) {
    if ((unsigned char) *p->at < ' ') /* or the name's end */
      return malformed (p, "a string does not end, or has a control character");
    if (*p->at != '\\')
      to[n++] = *p->at++;
    else {
      p->at++;
      if (parse_escape (p, to, &n) == -1)
        return -1;
    }
  }
  p->at++;
  to[n] = '\0';
  return 0;
}

static int
parse_value (struct parser *p, const char *key)
{
  unsigned i;

  for (i = 0; i < MEMBERS; ++i)
    if (strcmp (key, member_name[i]) == 0)
      break;
  if (i == MEMBERS)
    return refuse (p->file, p->name, "\"%s\" is more than that",
                   key);
  if (p->has[i])
    return malformed (p, "this was said before");
  p->has[i] = true;
  return parse_string (p, p->value[i], "a string is wanted");
}

/* The object that p is at.  prefix is for its members' names: "" or "file.",
 * which has no objects in it.
 */
static int
parse_object (struct parser *p, const char *prefix)
{
  char key[MAX + sizeof "file."];
  const size_t n = strlen (prefix);

  memcpy (key, prefix, n);
  if (expect (p, '{', "an object is wanted") == -1)
    return -1;
  if (peek (p) == '}') {
    p->at++;
    return 0;
  }
  for (;;) {
    int r;

    if (parse_string (p, key + n, "the name of a member is wanted") == -1 ||
        expect (p, ':', "a colon is wanted") == -1)
      return -1;
    if (n == 0 && strcmp (key, "file") == 0) {
      if (p->has_file)
        return malformed (p, "this was said before");
      p->has_file = true;
      r = parse_object (p, "file.");
    }
    else
      r = parse_value (p, key);
    if (r == -1)
      return -1;
    if (peek (p) == '}') {
      p->at++;
      return 0;
    }
    if (expect (p, ',', "a comma or the object's end is wanted") == -1)
      return -1;
  }
}

/* ------------------------------------------------------------------ meaning */

/* What the members mean together: as QEMU takes them. */
static int
find_path (struct parser *p, struct backing_name *b)
{
  const char *driver = p->has[DRIVER] ? p->value[DRIVER] : NULL;
  const bool is_file = driver != NULL && strcmp (driver, "file") == 0;
  const enum member path = is_file ? FILENAME : FILE_FILENAME;

  if (is_file || (driver != NULL && strcmp (driver, "raw") == 0))
    b->format = "raw";
  else if (driver != NULL && strcmp (driver, "qcow2") == 0)
    b->format = "qcow2";
  else if (driver != NULL)
    return refuse (p->file, p->name, "the driver \"%s\" is not qcow2, raw or "
                   "file", driver);
  if (p->has[FILE_DRIVER] && strcmp (p->value[FILE_DRIVER], "file") != 0)
    return refuse (p->file, p->name, "the driver \"%s\" is not file",
                   p->value[FILE_DRIVER]);
  if (!p->has[path] || (is_file && p->has[FILE_DRIVER]) ||
      p->has[is_file ? FILE_FILENAME : FILENAME])
    return refuse (p->file, p->name, "here the path must be in \"%s\" alone",
                   member_name[path]);
  memcpy (b->path, p->value[path], sizeof b->path);
  return 0;
}

static int
parse_json (const char *file, const char *name, struct backing_name *b)
{
  struct parser p = {
    .file = file, .name = name, .at = name + strlen ("json:"),
  };

  if (parse_object (&p, "") == -1)
    return -1;
  if (peek (&p) != '\0')
    return malformed (&p, "something follows the object");
  return find_path (&p, b);
}

int
backing_name_parse (const char *file, const char *name,
                    struct backing_name *b)
{
  const size_t n = strcspn (name, ":/");
  const char *path = name;

  b->format = NULL;
  if (strncmp (name, "json:", 5) == 0) {
    if (parse_json (file, name, b) == -1)
      return -1;
  }
  else {
    /* QEMU takes a name for a protocol if it has a colon before the first
     * slash.
     */
    if (strncmp (name, "file:", 5) == 0)
      path += 5;
    else if (name[n] == ':')
      return refuse (file, name, "not protocols");
    snprintf (b->path, sizeof b->path, "%s", path);
  }
  if (b->path[0] != '\0')
    return 0;
  return refuse (file, name, "this one is empty");
}
