/* SPDX-License-Identifier: BSD-3-Clause */

/* Names such as json:{"driver":"qcow2",...}, which callers make; not those out
 * of images, of which core/disk/backing-name.c accepts less.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

/* Objects within objects, at most. */
#define MAX_DEPTH 32

struct json {
  struct members *members;
  const char *what, *text, *at;
  unsigned depth;
};

static void __attribute__ ((__noreturn__))
malformed (const struct json *j, const char *wanted)
{
  die ("%s: at byte %zu: %s is wanted", j->what, (size_t) (j->at - j->text),
       wanted);
}

/* Step over white space, and return what comes then. */
static char
peek (struct json *j)
{
  j->at += strspn (j->at, " \t\r\n");
  return *j->at;
}

static bool
accept (struct json *j, char c)
{
  if (peek (j) != c)
    return false;
  j->at++;
  return true;
}

static void
expect (struct json *j, char c, const char *wanted)
{
  if (!accept (j, c))
    malformed (j, wanted);
}

static uint32_t
hex4 (struct json *j)
{
  char digits[5] = "";
  char *end;
  uint32_t v;

  if (strspn (j->at, "0123456789abcdefABCDEF") < 4)
    malformed (j, "four hexadecimal digits");
  memcpy (digits, j->at, 4);
  v = strtoul (digits, &end, 16);
  j->at += 4;
  return v;
}

static char *
put_utf8 (char *to, uint32_t c)
{
  unsigned bits = c < 0x80 ? 0 : c < 0x800 ? 6 : c < 0x10000 ? 12 : 18;

  if (bits == 0) {
    *to++ = c;
    return to;
  }
  *to++ = (0xf00 >> (bits / 6 + 1) & 0xff) | c >> bits;
  while (bits > 0) {
    bits -= 6;
    *to++ = 0x80 | (c >> bits & 0x3f);
  }
  return to;
}

/* Behind \u. */
static char *
parse_unicode (struct json *j, char *to)
{
  uint32_t c = hex4 (j), low;

  if (c >= 0xd800 && c < 0xdc00 && j->at[0] == '\\' && j->at[1] == 'u') {
    j->at += 2;
    low = hex4 (j);
    if (low < 0xdc00 || low >= 0xe000)
      malformed (j, "the second half of a surrogate pair");
    c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
  }
  if (c == 0 || (c >= 0xd800 && c < 0xe000))
    malformed (j, "a character that a string can have");
  return put_utf8 (to, c);
}

static char *
parse_escape (struct json *j, char *to)
{
  static const char from[] = "\"\\/'bfnrt";
  static const char means[] = "\"\\/'\b\f\n\r\t";
  const char *found;

  if (*j->at == 'u') {
    j->at++;
    return parse_unicode (j, to);
  }
  found = *j->at != '\0' ? strchr (from, *j->at) : NULL;
  if (found == NULL)
    malformed (j, "an escape");
  *to++ = means[found - from];
  j->at++;
  return to;
}

/* QEMU takes single quotation marks, too. */
static char *
parse_string (struct json *j, const char *wanted)
{
  const char quote = peek (j);
  char *string, *to;

  if (quote != '"' && quote != '\'')
    malformed (j, wanted);
  string = to = grow (NULL, strlen (j->at) + 1);
  j->at++;
  while (*j->at != quote) {
    if ((unsigned char) *j->at < ' ')
      malformed (j, "the end of a string");
    if (*j->at != '\\')
      *to++ = *j->at++;
    else {
      j->at++;
      to = parse_escape (j, to);
    }
  }
  j->at++;
  *to = '\0';
  return string;
}

static void parse_value (struct json *j, const char *key);

/* Behind the brace.  prefix is for its members' keys. */
static void
parse_object (struct json *j, const char *prefix)
{
  if (++j->depth > MAX_DEPTH)
    malformed (j, "less depth");
  if (!accept (j, '}')) {
    do {
      char *name = parse_string (j, "the name of a member");
      char *key = format ("%s%s", prefix, name);

      expect (j, ':', "a colon");
      parse_value (j, key);
      free (key);
      free (name);
    } while (accept (j, ','));
    expect (j, '}', "a comma or the object's end");
  }
  j->depth--;
}

/* A number, true, false or null. */
static void
parse_word (struct json *j, const char *key)
{
  const size_t n = strcspn (j->at, ",}] \t\r\n");
  char *word = format ("%.*s", (int) n, j->at);
  char *end = word;
  const char *value = word;

  if (strcmp (word, "true") == 0)
    value = "on";
  else if (strcmp (word, "false") == 0)
    value = "off";
  else if (strcmp (word, "null") == 0)
    value = NULL;
  else {
    strtod (word, &end);
    if (end == word || *end != '\0')
      malformed (j, "a value");
  }
  members_add (j->members, j->what, key, value);
  j->at += n;
  free (word);
}

static void
parse_value (struct json *j, const char *key)
{
  switch (peek (j)) {
  case '{': {
    char *prefix = format ("%s.", key);

    j->at++;
    parse_object (j, prefix);
    free (prefix);
    break;
  }
  case '"': case '\'': {
    char *string = parse_string (j, "a string");

    members_add (j->members, j->what, key, string);
    free (string);
    break;
  }
  case '[':
    die ("%s: '%s' is a list: that is not supported", j->what, key);
  default:
    parse_word (j, key);
  }
}

void
members_parse_json (struct members *m, const char *what, const char *text)
{
  struct json j = { .members = m, .what = what, .text = text, .at = text };

  expect (&j, '{', "an object");
  parse_object (&j, "");
  if (peek (&j) != '\0')
    malformed (&j, "the end");
}
