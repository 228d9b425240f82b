/* SPDX-License-Identifier: BSD-3-Clause */

/* The reason of the last failure in this thread: one message and an
 * errno.  Functions of core/ that fail return -1 (or NULL) and leave it
 * here; nothing in core/ prints.
 */

#ifndef QCOW2_ERROR_H
#define QCOW2_ERROR_H

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
extern const char *error_message (void); /* valid until the next error_set */
extern bool error_repeated (void);

/* Copy a name that comes from an image or a client to buf, with `?' for
 * each control character, so that it can't forge lines of the log.  Returns
 * buf; what doesn't fit in size (> 0) is cut off.
 */
extern const char *error_printable (char *buf, size_t size, const char *name);

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

#endif /* QCOW2_ERROR_H */
