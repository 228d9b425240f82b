/* SPDX-License-Identifier: BSD-3-Clause */

/* An increment: an image of what an NBD export says has changed, with an older
 * copy as its backing file.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image.h"
#include "images.h"
#include "manage/create.h"
#include "qcow2/codec.h"
#include "source.h"
#include "tool.h"

const char tool_increment_usage[] =
  "Usage: " TOOL_NAME " increment URI NEW --backing=FULL [OPTION...]\n"
  "\n"
  "Makes an image of what has changed since a full copy was made, as the extents\n"
  "of an NBD export tell (bitmap/NAME or changed/SNAPSHOT of the plugin).\n"
  "\n"
  "      --backing=FULL       the copy, as the image is to record it: a path\n"
  "                           from its own directory\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           its format (qcow2); again for each below it\n"
  "      --follow=none|beneath|any\n"
  "                           which backing files of that to open (none)\n"
  "      --compress=zlib|zstd store compressed clusters\n"
  "      --resized            the copy's disk may have another size\n"
  "  -p, --progress           print how far it is, on standard error\n"
  "\n"
  "The image gets its name when it is complete and durable; SIGINT leaves nothing.\n";

/* Extents are asked for so many bytes at a time, which an answer need not
 * cover; data is copied in pieces that end at multiples of PIECE.
 */
#define ASKED (UINT64_C (1) << 30)
#define PIECE (UINT64_C (1) << 20)

/* What the new image has is clusters of so many bytes.  One of which parts have
 * changed, or are not told of in one answer, counts as changed: so that what is
 * asked and kept is bounded, however little a server tells at a time.
 */
#define GRAIN (UINT64_C (1) << 16)

enum difference { UNCHANGED, ZEROED, CHANGED };

struct extent {
  uint64_t offset, length;
  bool zero;
};

struct increment {
  const struct tool_options *o;
  struct source *source;
  struct image *image;    /* what is below, and then the new one on it */
  uint64_t below;         /* size of the full copy's disk */
  struct created made;
  char *path;             /* of the new image, for now */

  pthread_mutex_t lock;   /* of all that follows */
  struct extent *extent;  /* that are still to be copied, from first on */
  size_t first, nr, room;
  uint64_t known;         /* extents are known up to here: whole grains */
  uint64_t told;          /* and part of the next, up to here: */
  enum difference part;
  bool out_of_memory;     /* while they were taken */
  struct tool_progress progress;
  int err;                /* of the first that failed; 0: none */
  char why[1024];
};

struct worker {
  struct increment *in;
  unsigned connection;
  pthread_t thread;
};

/* ------------------------------------------------------------------ extents */

/* Know what has become of the range up to end. */
static bool
add_extent (struct increment *in, uint64_t end, enum difference change)
{
  const uint64_t offset = in->known;

  in->known = in->told = end;
  if (change == UNCHANGED)
    return true;
  if (in->nr == in->room) {
    const size_t room = in->room == 0 ? 256 : 2 * in->room;
    struct extent *extent = realloc (in->extent, room * sizeof *extent);

    if (extent == NULL)
      return false;
    in->extent = extent;
    in->room = room;
  }
  in->extent[in->nr++] = (struct extent) {
    offset, end - offset, change == ZEROED,
  };
  return true;
}

/* The end of the grain that is not known yet. */
static uint64_t
grain_end (const struct increment *in)
{
  const uint64_t left = source_size (in->source) - in->known;

  return in->known + (left < GRAIN ? left : GRAIN);
}

/* The range from in->told to end is told of. */
static bool
take_range (struct increment *in, uint64_t end, enum difference change)
{
  uint64_t whole;

  if (in->told > in->known) {
    if (in->part != change)
      in->part = CHANGED;
    if (end < grain_end (in)) {
      in->told = end;
      return true;
    }
    if (!add_extent (in, grain_end (in), in->part))
      return false;
  }
  whole = end == source_size (in->source) ? end : end - end % GRAIN;
  if (whole > in->known && !add_extent (in, whole, change))
    return false;
  in->told = end;
  in->part = change;
  return true;
}

/* A source_fn.  What is beyond the full copy has no older state. */
static bool
take_extent (void *opaque, uint64_t length, unsigned flags)
{
  struct increment *in = opaque;
  const uint64_t end = in->told + length;
  const enum difference change = (flags & SOURCE_ZERO) ? ZEROED
    : (flags & SOURCE_HOLE) ? UNCHANGED : CHANGED;
  bool ok = true;

  if (change == UNCHANGED && in->told < in->below && end > in->below)
    ok = take_range (in, in->below, UNCHANGED);
  if (ok)
    ok = take_range (in, end, change == UNCHANGED && end > in->below ? CHANGED
                     : change);
  in->out_of_memory = !ok;
  return ok;
}

static void
show_progress (struct increment *in)
{
  const uint64_t size = source_size (in->source);
  const uint64_t done = in->first < in->nr ? in->extent[in->first].offset
    : in->known;

  tool_show_progress (&in->progress, done, size);
}

/* lock held.  Returns -1 with the error set. */
static int
know_more (struct increment *in, unsigned connection)
{
  const uint64_t left = source_size (in->source) - in->known;
  const uint64_t before = in->known;

  in->first = in->nr = 0;
  in->told = in->known;
  if (source_extents (in->source, connection, left < ASKED ? left : ASKED,
                      in->known, take_extent, in) == -1)
    return -1;
  if (!in->out_of_memory &&
      (in->known > before || add_extent (in, grain_end (in), CHANGED)))
    return 0;
  error_set (ENOMEM, "out of memory");
  return -1;
}

/* The next piece of an extent: all of it if it is zeros.  Returns 0 when there
 * is none, or -1 with the error set.
 */
static int
next_piece (struct increment *in, unsigned connection, struct extent *piece)
{
  int r = 0;

  if (tool_is_stopped ()) {
    error_set (EINTR, "interrupted");
    return -1;
  }
  pthread_mutex_lock (&in->lock);
  while (r == 0 && in->err == 0 && in->first == in->nr &&
         in->known < source_size (in->source))
    r = know_more (in, connection);
  if (r == 0 && in->err == 0 && in->first < in->nr) {
    struct extent *e = &in->extent[in->first];
    const uint64_t most = PIECE - e->offset % PIECE;

    *piece = *e;
    if (!e->zero && piece->length > most)
      piece->length = most;
    e->offset += piece->length;
    e->length -= piece->length;
    if (e->length == 0)
      in->first++;
    r = 1;
  }
  show_progress (in);
  pthread_mutex_unlock (&in->lock);
  return r;
}

/* ------------------------------------------------------------------ copying */

static int
copy_piece (struct increment *in, unsigned connection, void *buf,
            const struct extent *piece)
{
  const struct guest_off at = { piece->offset };

  if (piece->zero)
    return image_zero (in->image, piece->length, at, IMAGE_MAY_TRIM);
  if (source_read (in->source, connection, buf, piece->length, at.v) == -1)
    return -1;
  return image_write (in->image, buf, piece->length, at, 0);
}

static void
note_failure (struct increment *in)
{
  pthread_mutex_lock (&in->lock);
  if (in->err == 0) {
    in->err = error_errno ();
    snprintf (in->why, sizeof in->why, "%s", error_text ());
  }
  pthread_mutex_unlock (&in->lock);
}

static void *
work (void *opaque)
{
  const struct worker *w = opaque;
  void *buf = malloc (PIECE);
  struct extent piece;
  int r = 1;

  if (buf == NULL) {
    error_set (ENOMEM, "out of memory");
    r = -1;
  }
  while (r == 1) {
    r = next_piece (w->in, w->connection, &piece);
    if (r == 1 && copy_piece (w->in, w->connection, buf, &piece) == -1)
      r = -1;
  }
  if (r == -1)
    note_failure (w->in);
  free (buf);
  return NULL;
}

/* A thread for each connection. */
static int
copy (struct increment *in)
{
  struct worker worker[SOURCE_MAX_CONNECTIONS];
  const unsigned nr = source_connections (in->source);
  unsigned i, started;

  for (i = 0; i < nr; ++i)
    worker[i] = (struct worker) { .in = in, .connection = i };
  for (started = 1; started < nr; ++started)
    if (pthread_create (&worker[started].thread, NULL, work,
                        &worker[started]) != 0)
      break;
  work (&worker[0]);
  for (i = 1; i < started; ++i)
    pthread_join (worker[i].thread, NULL);
  if (in->err == 0)
    return 0;
  error_set (in->err, "%s", in->why);
  return -1;
}

/* The disk has whole sectors: past the export's end it is not the copy's. */
static int
zero_tail (struct increment *in)
{
  const uint64_t size = source_size (in->source), odd = size % 512;
  const struct guest_off at = { size };

  return odd == 0 ? 0
    : image_zero (in->image, 512 - odd, at, IMAGE_MAY_TRIM);
}

/* ---------------------------------------------------------------- the image */

static void
choose_compression (const struct tool_options *o, struct create_options *c,
                    struct writer_options *w)
{
  if (o->compress == NULL)
    return;
  c->compression = strcmp (o->compress, "zstd") == 0 ? COMPRESSION_ZSTD
    : COMPRESSION_DEFLATE;
  w->compress_level = codec_default_level (c->compression);
}

/* The copy's disk is the one that the export tells the changes of. */
static int
check_full (struct increment *in)
{
  const uint64_t size = (source_size (in->source) + 511) & ~UINT64_C (511);
  bool encrypted, below_is;

  in->below = image_size_below (in->image);
  image_is_encrypted (in->image, &encrypted, &below_is);
  if (below_is) {
    error_set (ENOTSUP, "%s: it is encrypted, and an increment would not be",
               in->o->base);
    return -1;
  }
  if (in->below == size || in->o->resized)
    return 0;
  error_set (EINVAL, "%s: its disk has %" PRIu64 " bytes, and the export %"
             PRIu64 ": it seems to be another disk; --resized says that it is "
             "not", in->o->base, in->below, size);
  return -1;
}

/* Opens what is below, makes the image on it, and opens that. */
static int
make (struct increment *in, struct image_options *options,
      struct create_options *c, const struct writer_options *w)
{
  in->image = image_open_below (options);
  if (in->image == NULL || check_full (in) == -1)
    return -1;
  tool_catch_signals (); /* so that no file is left behind */
  if (create_hidden (in->o->file, c, &in->made) == -1)
    return -1;
  in->path = create_path_from (in->o->file, in->made.name);
  if (in->path == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  options->chain.file = in->path;
  options->chain.made = in->made.storage;
  in->image = image_open_made (in->image, options);
  return in->image == NULL || create_hand_over (&in->made) == -1 ? -1
    : image_make_writable (in->image, w);
}

/* The image is complete, and durable, before it has its name. */
static int
make_and_fill (struct increment *in, struct image_options *options,
               struct create_options *c, const struct writer_options *w)
{
  struct image *im;
  int r;

  if (make (in, options, c, w) == -1 || copy (in) == -1 ||
      zero_tail (in) == -1)
    return -1;
  im = in->image;
  in->image = NULL;
  r = image_close (im);
  return r == -1 ? -1
    : create_publish (&in->made, in->o->file, STORAGE_LOCKING_AUTO);
}

static int
run (struct increment *in, const char *backing)
{
  const struct tool_options *o = in->o;
  const char *format = o->nr_formats > 0 ? o->formats[0] : "qcow2";
  struct create_options c = CREATE_DEFAULTS;
  struct writer_options w = { 0 };
  struct image_options options = tool_image_options (o);

  options.chain.backing = backing;
  options.chain.backing_format = format;
  options.cache_size = IMAGE_DEFAULT_CACHE_SIZE / 4;
  in->source = source_open (o->uri);
  if (in->source == NULL)
    return -1;
  c.size = source_size (in->source);
  c.backing = o->base;
  c.backing_format = format;
  choose_compression (o, &c, &w);
  return make_and_fill (in, &options, &c, &w);
}

int
tool_increment (const struct tool_options *o)
{
  struct increment in = {
    .o = o, .lock = PTHREAD_MUTEX_INITIALIZER, .made = CREATED_NOTHING,
    .progress = { .wanted = o->progress },
  };
  char *backing = create_path_from (o->file, o->base);
  int r = -1;

  if (backing == NULL)
    error_set (ENOMEM, "out of memory");
  else
    r = run (&in, backing);
  if (r == -1)
    (void) tool_failed ();
  (void) image_close (in.image);
  if (r == -1)
    create_undo (&in.made);
  else
    create_release (&in.made);
  source_close (in.source);
  free (in.extent);
  free (in.path);
  free (backing);
  return r == -1 ? TOOL_FAILED : TOOL_OK;
}
