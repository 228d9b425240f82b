/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

/* Long enough for two paths of an ordinary length and the words around
 * them; thread-local, so that setting an error can't itself fail.
 */
static _Thread_local struct {
  char message[2048];
  int errnum;
  bool repeated;
} last_error;

struct debug_hooks debug_hooks;

void
error_set (int errnum, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (last_error.message, sizeof last_error.message, fmt, ap);
  va_end (ap);
  last_error.errnum = errnum;
  last_error.repeated = false;
}

void
error_append (const char *fmt, ...)
{
  const size_t used = strlen (last_error.message);
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (last_error.message + used, sizeof last_error.message - used,
             fmt, ap);
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
error_message (void)
{
  return last_error.message;
}

bool
error_repeated (void)
{
  return last_error.repeated;
}

const char *
error_printable (char *buf, size_t size, const char *name)
{
  size_t i;

  for (i = 0; name[i] != '\0' && i < size - 1; ++i) {
    const unsigned char c = name[i], next = name[i+1];
    /* U+0080 to U+009F are control characters too. */
    const bool c1 = c == 0xc2 && next >= 0x80 && next < 0xa0;

    buf[i] = c < ' ' || c == 0x7f || c1 ? '?' : name[i];
  }
  buf[i] = '\0';
  return buf;
}

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

void
debug_message (const char *fmt, ...)
{
  char text[2048];
  va_list ap;

  if (debug_hooks.message == NULL)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  debug_hooks.message (text);
}

void
note_message (const char *fmt, ...)
{
  char text[2048];
  va_list ap;

  if (debug_hooks.note == NULL)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  debug_hooks.note (text);
}
