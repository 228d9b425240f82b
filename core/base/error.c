/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* Escaping makes a text at most four times as long. */
#define PRINTABLE_BYTES (4 * ERROR_TEXT_BYTES)

/* Thread-local, so that setting an error can't itself fail. */
static _Thread_local struct error_kept last_error;
static _Thread_local char last_printable[PRINTABLE_BYTES];

struct debug_hooks debug_hooks;

/* Text that doesn't fit ends in `...'. */
static void __attribute__ ((__format__ (__printf__, 3, 0)))
format (char *buf, size_t size, const char *fmt, va_list ap)
{
  static const char cut[] = "...";

  if (vsnprintf (buf, size, fmt, ap) >= (int) size && size >= sizeof cut)
    memcpy (buf + size - sizeof cut, cut, sizeof cut);
}

void
error_set (int errnum, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  format (last_error.text, sizeof last_error.text, fmt, ap);
  va_end (ap);
  last_error.errnum = errnum;
  last_error.repeated = false;
}

void
error_append (const char *fmt, ...)
{
  const size_t used = strlen (last_error.text);
  va_list ap;

  va_start (ap, fmt);
  format (last_error.text + used, sizeof last_error.text - used, fmt, ap);
  va_end (ap);
}

void
error_set_repeated (void)
{
  last_error.repeated = true;
}

int
error_errno (void)
{
  return last_error.errnum;
}

const char *
error_text (void)
{
  return last_error.text;
}

const char *
error_message (void)
{
  return error_printable (last_printable, sizeof last_printable,
                          last_error.text);
}

bool
error_repeated (void)
{
  return last_error.repeated;
}

void
error_keep (struct error_kept *kept)
{
  *kept = last_error;
}

void
error_restore (const struct error_kept *kept)
{
  last_error = *kept;
}

/* --------------------------------------------------- what may be printed */

size_t
error_character (const char *name, uint32_t *code)
{
  const unsigned char *p = (const unsigned char *) name;
  uint32_t c, least;
  size_t n, i;

  if (*p < 0x80)
    n = 1, c = *p, least = 0;
  else if (*p >> 5 == 6)
    n = 2, c = *p & 0x1f, least = 0x80;
  else if (*p >> 4 == 14)
    n = 3, c = *p & 0x0f, least = 0x800;
  else if (*p >> 3 == 30)
    n = 4, c = *p & 0x07, least = 0x10000;
  else
    return 0;
  for (i = 1; i < n; ++i) {
    if (p[i] >> 6 != 2) /* also at the end */
      return 0;
    c = c << 6 | (p[i] & 0x3f);
  }
  if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
    return 0;
  *code = c;
  return n;
}

bool
error_is_printable (uint32_t code)
{
  /* Controls, and characters that are invisible, start a line, or reverse the
   * order of what follows.  The joiners U+200C and U+200D are not here:
   * names in some scripts need them.
   */
  static const struct {
    uint32_t first, last;
  } hidden[] = {
    { 0, 0x1f }, { 0x7f, 0x9f }, { 0xad, 0xad }, { 0x61c, 0x61c },
    { 0x180e, 0x180e }, { 0x200b, 0x200b }, { 0x200e, 0x200f },
    { 0x2028, 0x202e }, { 0x2060, 0x206f }, { 0xfdd0, 0xfdef },
    { 0xfeff, 0xfeff }, { 0xfff9, 0xfffb }, { 0xe0000, 0xe0fff },
  };
  size_t i;

  for (i = 0; i < sizeof hidden / sizeof hidden[0]; ++i)
    if (code >= hidden[i].first && code <= hidden[i].last)
      return false;
  return (code & 0xfffe) != 0xfffe; /* never a character */
}

bool
error_is_printable_name (const char *name)
{
  if (*name == '\0')
    return false;
  while (*name != '\0') {
    uint32_t code;
    const size_t n = error_character (name, &code);

    if (n == 0 || !error_is_printable (code))
      return false;
    name += n;
  }
  return true;
}

size_t
error_escape (char out[ERROR_ESCAPE_BYTES], const char *name)
{
  uint32_t code = 0;
  size_t n = error_character (name, &code), i;
  const bool plain = n > 0 && code != '\\' && error_is_printable (code);

  if (n == 0)
    n = 1;
  if (plain) {
    memcpy (out, name, n);
    out[n] = '\0';
  }
  else if (code == '\\')
    strcpy (out, "\\\\");
  else {
    for (i = 0; i < n; ++i)
      sprintf (out + 4 * i, "\\x%02x", (unsigned char) name[i]);
  }
  return n;
}

const char *
error_printable (char *buf, size_t size, const char *name)
{
  size_t used = 0, cut = 0;

  while (*name != '\0') {
    char one[ERROR_ESCAPE_BYTES];
    const size_t n = error_escape (one, name), len = strlen (one);

    if (len >= size - used) {
      used = cut;
      snprintf (buf + used, size - used, "...");
      return buf;
    }
    memcpy (buf + used, one, len);
    used += len;
    name += n;
    if (used + sizeof "..." <= size)
      cut = used;
  }
  buf[used] = '\0';
  return buf;
}

/* ------------------------------------------------------------------ damage */

bool
damage_is_new (struct damage *d, uint64_t place)
{
  bool is_new = false;
  unsigned i;

  pthread_mutex_lock (&d->lock);
  for (i = 0; i < d->nr && d->place[i] != place; ++i)
    ;
  if (i == d->nr && d->nr < DAMAGE_PLACES) {
    d->place[d->nr++] = place;
    is_new = true;
  }
  pthread_mutex_unlock (&d->lock);
  return is_new;
}

/* -------------------------------------------------------- what is no error */

static void __attribute__ ((__format__ (__printf__, 2, 0)))
tell (void (*hook) (const char *text), const char *fmt, va_list ap)
{
  char text[ERROR_TEXT_BYTES], printable[PRINTABLE_BYTES];

  if (hook == NULL)
    return;
  format (text, sizeof text, fmt, ap);
  hook (error_printable (printable, sizeof printable, text));
}

void
debug_message (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  tell (debug_hooks.message, fmt, ap);
  va_end (ap);
}

void
note_message (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  tell (debug_hooks.note, fmt, ap);
  va_end (ap);
}
