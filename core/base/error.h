/* SPDX-License-Identifier: BSD-3-Clause */

/* The reason of the last failure in this thread: one message and an
 * errno.  Functions of core/ that fail return -1 (or NULL) and leave it
 * here; nothing in core/ prints.
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

/* Add to the end of the message just set, say for whom it was tried. */
extern void error_append (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* Mark the error just set as one that was reported before, so that the
 * log does not fill with it.
 */
extern void error_set_repeated (void);

extern int error_errno (void);
extern bool error_repeated (void);

/* The message, as it may be printed: see error_printable.  Valid until the
 * next error_set or error_message.
 */
extern const char *error_message (void);

/* The same as it was set, for who is to set it again later. */
extern const char *error_text (void);

/* What may be printed: one place decides.  Names come from images, clients
 * and folders of strangers, and must not forge lines of a log or hide what
 * they are.  Characters of UTF-8 that show as themselves are kept.  Each byte
 * of all others (controls, what is invisible or changes the direction of
 * writing, what is not UTF-8) becomes an escape such as \x9b, and a backslash
 * becomes two, so that neither can be mistaken.
 *
 * error_set, error_append and debug_message take names as they are: all of
 * the message goes through this before anybody sees it.
 *
 * error_printable copies name to buf.  Returns buf; what doesn't fit in size
 * (at least 4) is cut off, and ends in `...'.
 */
extern const char *error_printable (char *buf, size_t size, const char *name);

/* The same for the first character of a name that is not empty, or the first
 * byte, if that is not UTF-8: to out, ended by a zero.  Returns how many bytes
 * of name that was.
 */
#define ERROR_ESCAPE_BYTES 17
extern size_t error_escape (char out[ERROR_ESCAPE_BYTES], const char *name);

/* The first character of a name.  Returns its length in bytes, or 0 if that
 * is not UTF-8.
 */
extern size_t error_character (const char *name, uint32_t *code);

extern bool error_is_printable (uint32_t code);

/* Places in an image already reported as damaged.  Bounded: once it is
 * full every further place counts as reported.  It does its own locking.
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

/* Where verbose messages go, and which optional ones are wanted.  Set
 * before the first image is opened and not changed after that.
 */
struct debug_hooks {
  void (*message) (const char *text); /* NULL: nowhere */
  void (*note) (const char *text);    /* where notes go; NULL: nowhere */
  bool map;                           /* every run a request is split in */
  bool cache;                         /* every miss of the metadata cache */
};

extern struct debug_hooks debug_hooks;

extern void debug_message (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* Have the user know something that is no error, also without -v.  Whoever
 * calls it sees to it that the same is not said many times.
 */
extern void note_message (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

#endif /* CORE_BASE_ERROR_H */
