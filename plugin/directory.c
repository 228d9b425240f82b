/* SPDX-License-Identifier: BSD-3-Clause */

/* The folder is reached through its descriptor alone: by the time that clients
 * come, the user and the working directory are others, and its name may be,
 * too.  An image is known by its device and inode, so that it is opened once
 * whatever it is called; core/base/registry.h has the order of opening and
 * closing.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/budget.h"
#include "base/error.h"
#include "base/registry.h"
#include "cache/tables.h"
#include "directory.h"
#include "exports.h"
#include "findings.h"
#include "params.h"
#include "served.h"
#include "start.h"
#include "storage/open.h"

/* So many names of a folder are looked at for a list. */
#define MAX_NAMES 32768

/* The least part of cache-size= that an image has. */
#define LEAST_PART 1024

/* An image of the folder.  served is the first member. */
struct one {
  struct served served;
  uint64_t memory; /* of the budget */
  struct registry_key key;
};

static struct directory folder = { .fd = -1 };
static char *real_path;
static struct registry *registry; /* of struct one; NULL: no dir= */
static struct budget budget;      /* of cache-size= */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER; /* the position
                                                               * in folder.fd */

/* -------------------------------------------------------- beginning and end */

/* What could not be written is unknown from then on, and must not be written by
 * the next client, as if nothing had happened (I10).
 */
static void
note_failure (struct verdict *v)
{
  nbdkit_error ("closing: %s", error_message ());
  if (error_errno () == ENOSPC)
    return;
  v->known = v->sticks = true;
  v->err = error_errno ();
  snprintf (v->message, sizeof v->message, "%s (when it was closed: it is not "
            "written until nbdkit is restarted)", error_text ());
}

static void
close_one (void *thing)
{
  struct one *one = thing;
  struct verdict v;

  image_verdict (one->served.image, &v);
  if (image_close (one->served.image) == -1)
    note_failure (&v);
  findings_keep (&one->key, &v);
  budget_give_back (&budget, one->memory);
  free (one);
}

int
directory_begin (void)
{
  const char *dir = params_dir ();
  const uint64_t cache = params_options ()->cache_size;
  const uint64_t least = cache / LEAST_PART;

  folder.fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder.fd != -1)
    folder.real = real_path = realpath (dir, NULL);
  if (real_path == NULL) {
    nbdkit_error ("dir=%s: %m", dir);
    return -1;
  }
  registry = registry_new (close_one);
  if (registry == NULL) {
    nbdkit_error ("%s", error_message ());
    return -1;
  }
  budget_init (&budget, cache,
               least < CACHE_MIN_BYTES ? CACHE_MIN_BYTES : least);
  return 0;
}

void
directory_end (void)
{
  if (registry != NULL) {
    registry_free (registry);
    budget_destroy (&budget);
    findings_free ();
  }
  if (folder.fd != -1)
    close (folder.fd);
  free (real_path);
}

/* ------------------------------------------------------------------ listing */

struct names {
  char **name;
  size_t nr, room;
};

static int
add_name (struct names *n, const char *name)
{
  if (n->nr == n->room) {
    const size_t room = n->room == 0 ? 64 : 2 * n->room;
    char **p = realloc (n->name, room * sizeof *p);

    if (p == NULL)
      return -1;
    n->name = p;
    n->room = room;
  }
  n->name[n->nr] = strdup (name);
  if (n->name[n->nr] == NULL)
    return -1;
  n->nr++;
  return 0;
}

static bool
may_be_image (const struct dirent *d)
{
  return (d->d_type == DT_REG || d->d_type == DT_LNK ||
          d->d_type == DT_UNKNOWN) && error_is_printable_name (d->d_name);
}

/* Returns -1 with errno set. */
static int
add_names (struct names *n, DIR *d)
{
  const struct dirent *e;

  rewinddir (d);
  while (n->nr < MAX_NAMES) {
    errno = 0;
    e = readdir (d);
    if (e == NULL)
      return errno == 0 ? 0 : -1;
    if (may_be_image (e) && add_name (n, e->d_name) == -1)
      return -1;
  }
  nbdkit_debug ("%d names are looked at, and no more", MAX_NAMES);
  return 0;
}

/* list_lock held.  Returns -1 with errno set. */
static int
read_names (struct names *n)
{
  const int fd = fcntl (folder.fd, F_DUPFD_CLOEXEC, 0);
  DIR *d = fd == -1 ? NULL : fdopendir (fd);
  int r, err;

  if (d == NULL) {
    if (fd != -1)
      close (fd);
    return -1;
  }
  r = add_names (n, d);
  err = errno;
  closedir (d);
  errno = err;
  return r;
}

static int
compare_names (const void *a, const void *b)
{
  return strcmp (*(char *const *) a, *(char *const *) b);
}

/* Returns -1 with nbdkit_error called. */
static int
list_images (const struct names *n, struct nbdkit_exports *exports)
{
  unsigned listed = 0;
  size_t i;

  for (i = 0; i < n->nr && listed < MAX_LISTED_EXPORTS; ++i) {
    const char *format = image_recognize (folder.fd, n->name[i]);

    if (format == NULL)
      continue;
    if (nbdkit_add_export (exports, n->name[i], format) == -1)
      return -1;
    listed++;
  }
  return 0;
}

int
directory_list (struct nbdkit_exports *exports)
{
  struct names n = { .nr = 0 };
  int r;

  pthread_mutex_lock (&list_lock);
  r = read_names (&n);
  pthread_mutex_unlock (&list_lock);
  if (r == -1)
    nbdkit_error ("reading the folder: %m");
  else if (n.nr > 0) {
    qsort (n.name, n.nr, sizeof n.name[0], compare_names);
    r = list_images (&n, exports);
  }
  while (n.nr > 0)
    free (n.name[--n.nr]);
  free (n.name);
  return r;
}

/* ------------------------------------------------------------------ opening */

struct opening {
  char *path; /* for messages, and for names in the image */
  struct storage *storage; /* NULL once it is used */
  struct registry_key key;
};

/* Returns NULL with nbdkit_error called. */
static struct image *
open_image (struct opening *o, uint64_t memory)
{
  struct image_options options = *params_options ();
  struct verdict verdict;
  struct image *im;

  options.chain.file = o->path;
  options.chain.opened = o->storage;
  options.chain.directory = &folder;
  options.cache_size = options.check_memory = memory;
  options.cluster_memory = memory / 2;
  findings_look_up (&o->key, &verdict);
  options.verdict = &verdict;
  /* Whoever had it before may have written it since it was opened here. */
  storage_see_size (o->storage);
  o->storage = NULL;
  im = image_open (&options);
  if (im == NULL) {
    nbdkit_error ("%s", error_message ());
    return NULL;
  }
  if (start_apply (im, o->path) == 0) {
    image_hide_places (im);
    return im;
  }
  error_set (EINVAL, "%s: a parameter is not for it", o->path);
  (void) image_close (im); /* nothing was written */
  return NULL;
}

/* A registry_open_fn, which also calls nbdkit_error. */
static void *
open_one (void *opaque)
{
  struct opening *o = opaque;
  struct one *one = calloc (1, sizeof *one);

  if (one == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  one->memory = budget_take (&budget);
  if (one->memory == 0) {
    error_set (ENOMEM, "%s: so many images are open that cache-size= has no "
               "part left for it", o->path);
    nbdkit_error ("%s", error_message ());
    free (one);
    return NULL;
  }
  one->key = o->key;
  atomic_flag_clear (&one->served.noted);
  one->served.image = open_image (o, one->memory);
  if (one->served.image != NULL)
    return one;
  budget_give_back (&budget, one->memory);
  free (one);
  return NULL;
}

/* The name of the file, and the export of it, in the name that a client asks
 * for.  Returns -1 if there can be no such file.
 */
static int
split (const char *asked, char name[NAME_MAX + 1], const char **export)
{
  const size_t length = strcspn (asked, "/");

  *export = asked + length;
  if (length == 0 || length > NAME_MAX || strcmp (*export, "/") == 0)
    return -1;
  memcpy (name, asked, length);
  name[length] = '\0';
  if (**export == '/')
    ++*export;
  return 0;
}

/* The file, for reading.  Returns NULL with the error set. */
static struct storage *
open_file (const char *name, const char *path)
{
  struct storage *s = storage_open_regular (folder.fd, name, path);
  const int err = error_errno ();

  if (s == NULL) /* for the client, too */
    error_set (err, "%s: %s", name,
               err == EXDEV ? "it leads out of the folder"
               : err == EINVAL ? "not a regular file" : strerror (err));
  return s;
}

static struct one *
take (struct opening *o)
{
  struct storage_identity id = { .kind = NULL };
  struct one *one;

  o->storage->ops->identify (o->storage, &id);
  o->key = (struct registry_key) { { id.number[0], id.number[1] } };
  one = registry_take (registry, &o->key, open_one, o);
  storage_close (o->storage);
  return one;
}

/* What clients may see, which is the last that is said: nbdkit >= 1.42 sends
 * them that.
 */
static void
say_no (const char *name, int err)
{
  error_set (err, "%s: it can't be opened: the server's log has the reason",
             name);
  nbdkit_error ("%s", error_message ());
  nbdkit_set_error (err);
}

struct served *
directory_take (const char *asked, const char **export)
{
  struct opening o = { .path = NULL };
  char name[NAME_MAX + 1];
  struct one *one = NULL;

  if (split (asked, name, export) == -1) {
    error_set (ENOENT, "there is no export \"%.256s\": they are called NAME, "
               "NAME/snapshot/... and NAME/bitmap/..., by their files' names",
               asked);
    nbdkit_error ("%s", error_message ());
    nbdkit_set_error (ENOENT);
    return NULL;
  }
  if (asprintf (&o.path, "%s/%s", real_path, name) == -1) {
    nbdkit_error ("out of memory");
    nbdkit_set_error (ENOMEM);
    return NULL;
  }
  o.storage = open_file (name, o.path);
  if (o.storage == NULL) {
    nbdkit_error ("%s", error_message ());
    nbdkit_set_error (error_errno ());
  }
  else {
    one = take (&o);
    if (one == NULL)
      say_no (name, error_errno ());
  }
  free (o.path);
  return one == NULL ? NULL : &one->served;
}

void
directory_give_back (struct served *served)
{
  registry_give_back (registry, served);
}
