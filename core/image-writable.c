/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/advice.h"
#include "base/error.h"
#include "image-parts.h"

/* Keep the error just set.  writer_lock held. */
static void
keep_verdict (struct image *im)
{
  struct verdict *v = &im->verdict;

  v->err = error_errno ();
  snprintf (v->message, sizeof v->message, "%s", error_text ());
  v->known = v->err != ENOMEM &&
    storage_stamp (image_storage (im), &v->stamp);
}

/* Whether what is known is about the file as it is now: what sticks, about this
 * file, however it has changed.
 */
static bool
is_about (const struct verdict *v, struct storage *s)
{
  struct storage_stamp now;
  const bool told = storage_stamp (s, &now);

  return v->sticks ? !told || !storage_stamps_of_two (&now, &v->stamp)
    : told && storage_stamps_equal (&now, &v->stamp);
}

/* Whether it is known that the image can't be written: then the error is set.
 * writer_lock held.
 */
static bool
has_verdict (const struct image *im)
{
  const struct verdict *v = &im->verdict;

  if (!v->known || !is_about (v, image_storage (im)))
    return false;
  error_set (v->err, "%s", v->message);
  return true;
}

void
image_verdict (struct image *im, struct verdict *v)
{
  pthread_mutex_lock (&im->writer_lock);
  *v = im->verdict;
  if (!v->known || !is_about (v, image_storage (im))) {
    *v = (struct verdict) { .known = false };
    (void) storage_stamp (image_storage (im), &v->stamp);
  }
  if (im->repair_failed) {
    v->known = v->sticks = true;
    v->err = EIO;
    snprintf (v->message, sizeof v->message, "%s: a repair failed: nothing is "
              "written until this program is restarted",
              image_storage (im)->name);
  }
  pthread_mutex_unlock (&im->writer_lock);
}

/* The permissions that QEMU takes on an image it writes. */
int
image_lock_for_writing (struct image *im)
{
  return storage_make_writable (image_storage (im),
                                STORAGE_CONSISTENT_READ | STORAGE_WRITE |
                                STORAGE_RESIZE,
                                STORAGE_WRITE | STORAGE_RESIZE);
}

/* The same on its data file, which others may write as QEMU has it. */
static int
lock_data_for_writing (const struct layer *l)
{
  return l->data_file == l->tables ? 0
    : storage_make_writable (l->data_file, STORAGE_CONSISTENT_READ |
                             STORAGE_WRITE | STORAGE_RESIZE, STORAGE_RESIZE);
}

int
image_check_may_write (const struct image *im)
{
  struct storage *s = image_storage (im);
  struct storage *data = im->chain.layer[0]->data_file;

  if (im->repair_failed)
    error_set (EIO, "%s: a repair failed: nothing is written until it is "
               "opened again", s->name);
  else if (im->chain.force_share) /* another process may write it */
    error_set (EROFS, "%s: it is shared with its writer, so that it can only "
               "be read", s->name);
  else
    return data != s && storage_check_writable (data) == -1
      ? -1 : storage_check_writable (s);
  return -1;
}

/* Whether it can be read at all.  If not, nothing there is known to be damaged.
 */
static bool
can_be_read (const struct image *im)
{
  struct storage *s = image_storage (im);
  char byte;

  return s->ops->pread (s, &byte, 1, 0) != -1;
}

/* writer_lock held. */
static int
make_writable (struct image *im, const struct writer_options *options)
{
  void *w;

  if (image_check_may_write (im) == -1 || has_verdict (im) ||
      im->kind->check (im, options, false, IMAGE_REPAIR_NONE) == -1 ||
      (im->kind->check_data != NULL && im->kind->check_data (im) == -1))
    return -1;
  /* The locks come last, since they stay; what is looked at before can't
   * change under those of a reader.
   */
  w = im->kind->open_writer (im, options);
  if (w == NULL) {
    /* What is not supported is not repaired, and has advice of its own. */
    if (error_errno () != ENOMEM && error_errno () != ENOTSUP &&
        can_be_read (im))
      advise (ADVICE_REPAIR);
    keep_verdict (im);
    return -1;
  }
  if (lock_data_for_writing (im->chain.layer[0]) == -1 ||
      image_lock_for_writing (im) == -1) {
    (void) im->kind->close_writer (w, false); /* which has nothing to write */
    return -1;
  }
  atomic_store (&im->writer, w);
  return 0;
}

/* --------------------------------------------------------------- repairing */

void
image_forget_tables (struct image *im, unsigned id)
{
  epoch_wait (im->shared.epoch);
  cache_forget_storage (im->shared.cache, id);
}

static void
summarize (const struct image *im, const struct repaired *r, char *summary,
           size_t len)
{
  char name[1024];

  if (r->errors == 0 && r->leaks == 0 && !r->marked)
    return;
  snprintf (summary, len, "%s: repaired: %" PRIu64 " errors and %" PRIu64
            " leaked clusters were found, %" PRIu64 " and %" PRIu64
            " are left",
            error_printable (name, sizeof name, image_storage (im)->name),
            r->errors, r->leaks, r->errors_left, r->leaks_left);
}

/* writer_lock held. */
static int
repair (struct image *im, enum image_repair mode, char *summary, size_t len)
{
  struct storage *s = image_storage (im);
  struct repaired r = { 0 };

  if (image_check_may_write (im) == -1 || has_verdict (im) ||
      image_lock_for_writing (im) == -1)
    return -1;
  image_points_fail (im); /* it may change what the disk has */
  if (im->kind->repair (im, mode, &r) == -1) {
    /* What can be read now may not be on the disk. */
    im->repair_failed = true;
    return -1;
  }
  summarize (im, &r, summary, len);
  /* Leaks that a repair keeps are for somebody to look at: the search, which
   * can't tell them from others, must not free them at once.
   */
  if (r.leaks_left > 0)
    im->leaks_begun = true;
  if (r.errors_left == 0)
    return 0;
  error_set (EIO, "%s: %" PRIu64 " errors are left after a repair%s%s: it is "
             "not written", s->name, r.errors_left,
             r.why_not != NULL ? ", since " : "",
             r.why_not != NULL ? r.why_not : "");
  advise (r.advice);
  keep_verdict (im);
  return -1;
}

/* writer_lock held. */
static int
mend (struct image *im)
{
  if (im->kind->mend == NULL || im->kind->mend (im) == 0)
    return 0;
  im->repair_failed = true;
  return -1;
}

int
image_repair (struct image *im, enum image_repair mode, char *summary,
              size_t len)
{
  int r = 0;

  summary[0] = '\0';
  pthread_mutex_lock (&im->writer_lock);
  if (im->verdict.sticks && has_verdict (im))
    r = -1;
  else if (im->writer == NULL && !im->repaired &&
      im->kind->is_to_be_repaired (im, mode)) {
    r = repair (im, mode, summary, len);
    im->repaired = r == 0;
  }
  else if (im->writer == NULL && !im->repaired && !im->counted &&
           mode != IMAGE_REPAIR_NONE) {
    r = mend (im);
    im->counted = r == 0;
  }
  pthread_mutex_unlock (&im->writer_lock);
  return r;
}

/* ------------------------------------------------------------ made writable */

int
image_look_ahead (struct image *im, enum image_repair mode,
                  const struct writer_options *options)
{
  const bool repaired = im->kind->is_to_be_repaired (im, mode);
  int r;

  pthread_mutex_lock (&im->writer_lock);
  r = image_check_may_write (im);
  pthread_mutex_unlock (&im->writer_lock);
  if (r == -1) /* a server that can't flush has clients refused */
    return error_errno () == ENOTSUP ? -1 : 0;
  r = im->kind->check (im, options, repaired, mode);
  /* The repair may fix what is damaged. */
  return r == -1 && repaired && error_errno () != ENOTSUP ? 0 : r;
}

int
image_make_writable (struct image *im, const struct writer_options *options)
{
  int r = 0;

  pthread_mutex_lock (&im->writer_lock);
  if (im->writer == NULL)
    r = make_writable (im, options);
  pthread_mutex_unlock (&im->writer_lock);
  return r;
}

/* writer_lock held. */
static void
find_leaks (struct image *im)
{
  if (im->leaks_begun)
    return;
  if (im->leaks_suspended) {
    im->leaks_wanted = true;
    return;
  }
  if (im->kind->find_leaks != NULL)
    im->leaks = im->kind->find_leaks (im);
  im->leaks_begun = true;
}

void
image_free_leaks (struct image *im)
{
  pthread_mutex_lock (&im->writer_lock);
  if (im->writer != NULL)
    find_leaks (im);
  pthread_mutex_unlock (&im->writer_lock);
}

/* A search can't tell what a new snapshot has from leaks, before the header leads
 * to it.  One that is stopped starts over after that.
 */
void
image_suspend_leaks (struct image *im)
{
  pthread_mutex_lock (&im->writer_lock);
  im->leaks_suspended = true;
  if (im->leaks != NULL && !leaks_have_ended (im->leaks)) {
    if (leaks_stop (im->leaks))
      im->no_leaks = true;
    else {
      im->leaks_begun = false;
      im->leaks_wanted = true;
    }
    im->leaks = NULL;
  }
  pthread_mutex_unlock (&im->writer_lock);
}

void
image_resume_leaks (struct image *im)
{
  pthread_mutex_lock (&im->writer_lock);
  im->leaks_suspended = false;
  if (im->leaks_wanted)
    find_leaks (im);
  im->leaks_wanted = false;
  pthread_mutex_unlock (&im->writer_lock);
}

bool
image_leaks_are_done (struct image *im)
{
  bool done;

  pthread_mutex_lock (&im->writer_lock);
  done = !im->leaks_wanted &&
    (im->leaks == NULL || leaks_have_ended (im->leaks));
  pthread_mutex_unlock (&im->writer_lock);
  return done;
}
