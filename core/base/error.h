/* SPDX-License-Identifier: BSD-3-Clause */

/* The reason for the last failure in this thread: a message and an errno.
 * Functions of core/ that fail set it and return -1 (or NULL); nothing in
 * core/ prints.
 */

#ifndef CORE_BASE_ERROR_H
#define CORE_BASE_ERROR_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Record why the current call fails.  errnum is what the NBD client
 * will see: EIO for damage, EINVAL for a bad request or image at open,
 * ENOMEM, ...  Truncates a very long message.  Any lock may be held.
 */
extern void error_set (int errnum, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Append to the message just set, say what the failed call was for. */
extern void error_append (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* Mark the error just set as reported before, so that it does not flood the
 * log.
 */
extern void error_set_repeated (void);

extern int error_errno (void);
extern bool error_repeated (void);

/* The message, as it may be printed: see error_printable.  Valid until the
 * next error_set or error_message.
 */
extern const char *error_message (void);

/* The message as it was set, unescaped: for setting it again later. */
extern const char *error_text (void);

/* Long enough for two paths of an ordinary length and the words around them. */
#define ERROR_TEXT_BYTES 2048

/* The error that is set, kept while something else is tried that may fail, too.
 */
struct error_kept {
  int errnum;
  bool repeated;
  char text[ERROR_TEXT_BYTES];
};
extern void error_keep (struct error_kept *kept);
extern void error_restore (const struct error_kept *kept);

/* The one place that decides what may be printed.  Names come from images,
 * clients and directories that are not trusted, and must not forge log lines
 * or disguise themselves.  Visible UTF-8 characters are kept.  Each byte of
 * anything else (controls, invisible characters, changes of the writing
 * direction, invalid UTF-8) becomes an escape such as \x9b; a backslash is
 * doubled, so that escapes are unambiguous.
 *
 * error_set, error_append and debug_message take names unescaped: the whole
 * message passes through here before it is shown.
 *
 * error_printable copies name to buf, and returns buf.  What doesn't fit in
 * size (at least 4) is cut off, with `...' at the end.
 */
extern const char *error_printable (char *buf, size_t size, const char *name);

/* The same for the first character of a nonempty name, or its first byte if
 * that is not UTF-8.  out is zero-terminated.  Returns the number of bytes of
 * name that were used.
 */
#define ERROR_ESCAPE_BYTES 17
extern size_t error_escape (char out[ERROR_ESCAPE_BYTES], const char *name);

/* Decode the first character of a name.  Returns its length in bytes, or 0 if
 * it is not UTF-8.
 */
extern size_t error_character (const char *name, uint32_t *code);

extern bool error_is_printable (uint32_t code);

/* Whether a name is not empty and consists of visible UTF-8 characters only. */
extern bool error_is_printable_name (const char *name);

/* Places in an image already reported as damaged.  Bounded: once it is full,
 * every further place counts as reported.  Does its own locking.
 */
#define DAMAGE_PLACES 64

struct damage {
  pthread_mutex_t lock;
  unsigned nr;
  uint64_t place[DAMAGE_PLACES];
};

#define DAMAGE_INIT { .lock = PTHREAD_MUTEX_INITIALIZER }

/* True the first time that this place (a host offset) is reported. */
extern bool damage_is_new (struct damage *d, uint64_t place);

/* Where debug messages and notes go, and which optional ones are wanted.  Set
 * before the first image is opened, and not changed after that.
 */
struct debug_hooks {
  void (*message) (const char *text); /* NULL: nowhere */
  void (*note) (const char *text);    /* NULL: nowhere */
  bool map;                           /* every run a request is split in */
  bool cache;                         /* every miss of the metadata cache */
};

extern struct debug_hooks debug_hooks;

extern void debug_message (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* Tell the user something that is no error, even without -v.  The caller makes
 * sure that it is not repeated.
 */
extern void note_message (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

#endif /* CORE_BASE_ERROR_H */
