/* SPDX-License-Identifier: BSD-3-Clause */

/* What may be printed of names that come from images, clients and folders. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"

static const struct {
  const char *name;
  const char *printed;
} names[] = {
  /* As it is. */
  { "", "" },
  { "disk.qcow2", "disk.qcow2" },
  { " ~!\"'%s", " ~!\"'%s" },
  { "\xc2\xa0\xc3\xa4", "\xc2\xa0\xc3\xa4" },            /* U+00A0, U+00E4 */
  { "\xe6\x9c\x88", "\xe6\x9c\x88" },                    /* U+6708 */
  { "\xd7\x9f\xd8\xb4", "\xd7\x9f\xd8\xb4" },            /* right to left */
  { "\xe2\x80\x8c\xe2\x80\x8d", "\xe2\x80\x8c\xe2\x80\x8d" }, /* joiners */
  { "\xf0\x9f\x92\xbe", "\xf0\x9f\x92\xbe" },            /* U+1F4BE */
  { "\xef\xbf\xbd", "\xef\xbf\xbd" },                    /* U+FFFD */
  { "\xee\x80\x80", "\xee\x80\x80" },                    /* private use */

  /* C0, DEL. */
  { "a\nb", "a\\x0a" "b" },
  { "\x01\x1b[31m\x1f", "\\x01\\x1b[31m\\x1f" },
  { "\t\r", "\\x09\\x0d" },
  { "\x7f", "\\x7f" },
  /* C1, as bytes and as characters. */
  { "\x80\x9b" "31m\x9f", "\\x80\\x9b" "31m\\x9f" },
  { "\xc2\x80\xc2\x9b\xc2\x9f", "\\xc2\\x80\\xc2\\x9b\\xc2\\x9f" },
  /* Soft hyphen; those that turn the direction. */
  { "\xc2\xad", "\\xc2\\xad" },
  { "\xd8\x9c", "\\xd8\\x9c" },                          /* U+061C */
  { "\xe2\x80\x8e", "\\xe2\\x80\\x8e" },                 /* U+200E */
  { "\xe2\x80\x8f", "\\xe2\\x80\\x8f" },
  { "\xe2\x80\xaa", "\\xe2\\x80\\xaa" },                 /* U+202A */
  { "gnp\xe2\x80\xae.2wocq", "gnp\\xe2\\x80\\xae.2wocq" }, /* U+202E */
  { "\xe2\x81\xa6\xe2\x81\xa9",
    "\\xe2\\x81\\xa6\\xe2\\x81\\xa9" },                  /* U+2066, U+2069 */
  /* Separators of lines and paragraphs, and what shows nothing. */
  { "\xe2\x80\xa8\xe2\x80\xa9", "\\xe2\\x80\\xa8\\xe2\\x80\\xa9" },
  { "\xe2\x80\x8b", "\\xe2\\x80\\x8b" },                 /* U+200B */
  { "\xe1\xa0\x8e", "\\xe1\\xa0\\x8e" },                 /* U+180E */
  { "\xef\xbb\xbf", "\\xef\\xbb\\xbf" },                 /* U+FEFF */
  { "\xef\xbf\xb9", "\\xef\\xbf\\xb9" },                 /* U+FFF9 */
  { "\xf3\xa0\x81\x81", "\\xf3\\xa0\\x81\\x81" },        /* U+E0041 */
  { "\xef\xbf\xbf", "\\xef\\xbf\\xbf" },                 /* U+FFFF */
  { "\xf4\x8f\xbf\xbe", "\\xf4\\x8f\\xbf\\xbe" },        /* U+10FFFE */
  { "\xef\xb7\x90", "\\xef\\xb7\\x90" },                 /* U+FDD0 */

  /* Not UTF-8: cut off, longer than need be, surrogates, too large. */
  { "\xff\xfe", "\\xff\\xfe" },
  { "a\xc3", "a\\xc3" },
  { "\xc3" "a", "\\xc3" "a" },
  { "\xe2\x82", "\\xe2\\x82" },
  { "\xf0\x9f\x92" "x", "\\xf0\\x9f\\x92x" },
  { "\xc0\x8a", "\\xc0\\x8a" },
  { "\xc1\xbf", "\\xc1\\xbf" },
  { "\xe0\x80\x8a", "\\xe0\\x80\\x8a" },
  { "\xf0\x80\x80\x8a", "\\xf0\\x80\\x80\\x8a" },
  { "\xed\xa0\x80", "\\xed\\xa0\\x80" },
  { "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" },
  { "\xf8\x88\x80\x80\x80", "\\xf8\\x88\\x80\\x80\\x80" },

  /* One that looks like an escape is no escape. */
  { "\\x9b", "\\\\x9b" },
  { "\\", "\\\\" },
};

static void
test_table (void)
{
  char buf[256];
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    CHECK (error_printable (buf, sizeof buf, names[i].name) == buf);
    CHECK_STR (buf, names[i].printed);
  }
}

/* Each character: it is kept or not, and what is printed is UTF-8 of
 * characters that may be.
 */
static void
test_all_characters (void)
{
  uint32_t c, code;
  unsigned kept = 0;

  for (c = 1; c <= 0x10ffff; ++c) {
    char name[5] = "", buf[32];
    const char *p;
    size_t n = 0;

    if (c < 0x80)
      name[n++] = c;
    else {
      if (c < 0x800)
        name[n++] = 0xc0 | c >> 6;
      else {
        if (c < 0x10000)
          name[n++] = 0xe0 | c >> 12;
        else {
          name[n++] = 0xf0 | c >> 18;
          name[n++] = 0x80 | (c >> 12 & 0x3f);
        }
        name[n++] = 0x80 | (c >> 6 & 0x3f);
      }
      name[n++] = 0x80 | (c & 0x3f);
    }
    error_printable (buf, sizeof buf, name);
    if (c >= 0xd800 && c < 0xe000)
      CHECK_EQ (error_character (name, &code), 0);
    else {
      CHECK_EQ (error_character (name, &code), n);
      CHECK_EQ (code, c);
    }
    for (p = buf; *p != '\0'; p += n) {
      n = error_character (p, &code);
      CHECK (n > 0 && error_is_printable (code));
      if (n == 0)
        break;
    }
    kept += strcmp (name, buf) == 0;
  }
  /* Of 1112063: the controls, the hidden ones, and the backslash are not. */
  CHECK (kept > 1107000 && kept < 1112063 - 65 - 66 - 1);
}

/* What doesn't fit ends in dots, and no escape or character is cut. */
static void
test_cut (void)
{
  static const struct {
    size_t size;
    const char *name;
    const char *printed;
  } cuts[] = {
    { 4, "abc", "abc" },
    { 4, "abcd", "..." },
    { 8, "abcdefg", "abcdefg" },
    { 8, "abcdefgh", "abcd..." },
    { 9, "abc\nd", "abc\\x0a" "d" },
    { 9, "abc\ndx", "abc..." },
    { 9, "\n\n", "\\x0a\\x0a" },
    { 9, "\n\nx", "\\x0a..." },
    { 8, "abc\xe6\x9c\x88xyz", "abc..." },
    { 8, "a\xe6\x9c\x88xyz", "a\xe6\x9c\x88xyz" },
  };
  char buf[16];
  size_t i;

  for (i = 0; i < sizeof cuts / sizeof cuts[0]; ++i) {
    memset (buf, 'z', sizeof buf);
    error_printable (buf, cuts[i].size, cuts[i].name);
    CHECK_STR (buf, cuts[i].printed);
    CHECK_EQ (buf[cuts[i].size], 'z');
  }
}

static char *seen;

static void
take_message (const char *text)
{
  free (seen);
  seen = strdup (text);
}

/* Whoever sets an error with a name need not think of it. */
static void
test_messages (void)
{
  char longest[1024], longer[8000];

  error_set (EIO, "%s: \"%s\"", "a\x1b[31m", "b\xc2\x9b\\");
  CHECK_STR (error_message (), "a\\x1b[31m: \"b\\xc2\\x9b\\\\\"");
  error_append (" (of %s)", "c\n");
  CHECK_STR (error_message (), "a\\x1b[31m: \"b\\xc2\\x9b\\\\\" (of c\\x0a)");

  /* Set again it does not get longer. */
  error_set (EIO, "name\\");
  snprintf (longest, sizeof longest, "%s", error_text ());
  error_set (EIO, "%s", longest);
  CHECK_STR (error_message (), "name\\\\");

  /* The longest name of an image, all escapes, leaves room for the rest. */
  memset (longest, '\n', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  error_set (EIO, "%s: what is to be done", longest);
  CHECK_HAS (error_message (), "\\x0a\\x0a: what is to be done");

  memset (longer, '\x80', sizeof longer - 1);
  longer[sizeof longer - 1] = '\0';
  error_set (EIO, "%s", longer);
  CHECK_HAS (error_message (), "\\x80\\x80...");

  debug_hooks.message = take_message;
  debug_message ("%s", "\xe2\x80\xae");
  debug_hooks.message = NULL;
  CHECK_STR (seen, "\\xe2\\x80\\xae");
  free (seen);
}

int
main (void)
{
  check_time_limit (100);
  test_table ();
  test_all_characters ();
  test_cut ();
  test_messages ();
  return check_result ();
}
