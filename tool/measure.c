/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "formats.h"
#include "image.h"
#include "images.h"
#include "json.h"
#include "manage/measure.h"
#include "qcow2/qcow2.h"
#include "qcow2/snapshot.h"
#include "tool.h"

const char tool_measure_usage[] =
  "Usage: " TOOL_NAME " measure [-O qcow2] [-o OPTIONS] [OPTION...] IMAGE\n"
  "       " TOOL_NAME " measure [-O qcow2] [-o OPTIONS] [OPTION...] --size=SIZE\n"
  "\n"
  "Prints how large the file of a new qcow2 image will be: one that is copied from\n"
  "IMAGE, or a disk of SIZE bytes; suffixes k, M, G, T, P and E are powers of 1024.\n"
  "\n"
  "  -o NAME=VALUE,...        how it is made, as qemu-img has it: backing_file,\n"
  "                           backing_fmt, cluster_size, compat, compression_type,\n"
  "                           encrypt.format, extended_l2, lazy_refcounts,\n"
  "                           preallocation, refcount_bits\n"
  "  -f raw|qcow2|qed         the format of IMAGE; only raw has to be told\n"
  "  -l, --snapshot=SNAPSHOT  of IMAGE, this snapshot: an ID, or else a name\n"
  "      --follow=beneath     look into backing files, as far as they are in\n"
  "                           the image's directory or below it\n"
  "      --follow=any         look into backing files, wherever they are\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           the format of the backing file; again for each\n"
  "                           below it\n"
  "      --data-file=PATH     this is the image's external data file\n"
  "      --output=human|json  how to print that (human)\n"
  "  -U, --force-share        even if another process writes the image\n";

/* ----------------------------------------------------------------- options */

/* One of -o; false: the value is none that it can have. */
typedef bool set_fn (struct create_options *c, const char *value);

static bool
set_bool (const char *value, bool *b)
{
  static const char *const names[] = {
    "off", "on", "no", "yes", "false", "true",
  };
  unsigned i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    if (strcmp (value, names[i]) == 0) {
      *b = i % 2 != 0;
      return true;
    }
  }
  return false;
}

/* Of the backing file only that there is one matters, and of a passphrase. */
static bool
set_backing_file (struct create_options *c, const char *value)
{
  (void) value;
  c->backing = "";
  return true;
}

static bool
set_backing_format (struct create_options *c, const char *value)
{
  (void) c;
  return *value != '\0';
}

static bool
set_encryption (struct create_options *c, const char *value)
{
  static const struct passphrase some;

  c->passphrase = &some;
  return strcmp (value, "luks") == 0;
}

static bool
set_cluster_size (struct create_options *c, const char *value)
{
  return tool_parse_size (value, &c->cluster_size);
}

static bool
set_compat (struct create_options *c, const char *value)
{
  c->version = strcmp (value, "0.10") == 0 ? 2 : 3;
  return c->version == 2 || strcmp (value, "1.1") == 0;
}

static bool
set_compression (struct create_options *c, const char *value)
{
  const bool zstd = strcmp (value, "zstd") == 0;

  c->compression = zstd ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE;
  return zstd || strcmp (value, "zlib") == 0;
}

static bool
set_extended_l2 (struct create_options *c, const char *value)
{
  return set_bool (value, &c->extended_l2);
}

static bool
set_lazy_refcounts (struct create_options *c, const char *value)
{
  return set_bool (value, &c->lazy_refcounts);
}

static bool
set_preallocation (struct create_options *c, const char *value)
{
  return tool_parse_preallocation (value, &c->preallocation);
}

static bool
set_refcount_bits (struct create_options *c, const char *value)
{
  char *end;
  const unsigned long n = strtoul (value, &end, 10);

  c->refcount_bits = n;
  return end != value && *end == '\0' && n <= 64;
}

static const struct {
  const char *name;
  set_fn *set;
} features[] = {
  { "backing_file", set_backing_file },
  { "backing_fmt", set_backing_format },
  { "cluster_size", set_cluster_size },
  { "compat", set_compat },
  { "compression_type", set_compression },
  { "encrypt.format", set_encryption },
  { "extended_l2", set_extended_l2 },
  { "lazy_refcounts", set_lazy_refcounts },
  { "preallocation", set_preallocation },
  { "refcount_bits", set_refcount_bits },
};

static void
set_feature (struct create_options *c, char *text)
{
  char *value = strchr (text, '=');
  unsigned i;

  if (value == NULL)
    tool_wrong ("measure: -o takes NAME=VALUE, not ", text);
  *value++ = '\0';
  for (i = 0; i < sizeof features / sizeof features[0]; ++i) {
    if (strcmp (text, features[i].name) != 0)
      continue;
    if (!features[i].set (c, value))
      tool_wrong ("measure: -o has no such value of ", text);
    return;
  }
  tool_wrong ("measure: -o has no option ", text);
}

/* They are separated by commas; two of them are one in a value. */
static void
parse_features (const struct tool_options *o, struct create_options *c)
{
  char *copy = strdup (o->features != NULL ? o->features : "");
  const char *p = copy;
  char *text = copy, *end = copy;

  if (copy == NULL)
    tool_wrong ("out of ", "memory");
  while (*p != '\0') {
    if (*p == ',' && *++p != ',') {
      *end = '\0';
      set_feature (c, text);
      text = end = copy + (p - copy);
    }
    else
      *end++ = *p++;
  }
  *end = '\0';
  if (end > text)
    set_feature (c, text);
  free (copy);
}

static void
check_words (const struct tool_options *o)
{
  if (o->new_format != NULL && strcmp (o->new_format, "qcow2") != 0)
    tool_wrong ("measure: -O must be ", "qcow2");
  if ((o->file == NULL) == (o->new_size == NULL))
    tool_wrong ("measure: wanted is ", "either an image or --size");
  if (o->format != NULL && strcmp (o->format, "raw") == 0 && o->of != NULL)
    tool_wrong ("measure: raw files have ", "no snapshots");
}

/* ------------------------------------------------------------------ source */

/* The disk is as large as that of the source. */
static int
begin (struct measure *m, struct create_options *c, uint64_t size)
{
  c->size = size;
  return measure_begin (m, c);
}

/* The name of the export that is the snapshot wanted, in text. */
static int
name_disk (const struct tool_options *o, const struct header *h,
           struct storage *s, char *text, size_t len)
{
  const struct snapshot *found = NULL;
  struct snapshots t;
  char name[1024];
  uint32_t i;

  *text = '\0';
  if (o->of == NULL)
    return 0;
  if (snapshots_read (&t, h, s) == -1)
    return -1;
  for (i = 0; found == NULL && i < t.nr; ++i)
    if (strcmp (t.snapshot[i].id, o->of) == 0)
      found = &t.snapshot[i];
  for (i = 0; found == NULL && i < t.nr; ++i)
    if (strcmp (t.snapshot[i].name, o->of) == 0)
      found = &t.snapshot[i];
  if (found != NULL && found->label != NULL)
    snprintf (text, len, IMAGE_SNAPSHOT_PREFIX "%s", found->label);
  else
    error_set (ENOENT, "%s: %s", error_printable (name, sizeof name, o->file),
               found == NULL ? "it has no such snapshot"
               : "others have the same name and ID as this snapshot");
  snapshots_free (&t);
  return *text != '\0' ? 0 : -1;
}

static int
measure_export (const struct tool_options *o, struct create_options *c,
                struct measure *m, const char *name)
{
  const struct image_options options = tool_image_options (o);
  struct image *im = image_open (&options);
  struct layer *disk = im != NULL ? image_open_disk (im, name) : NULL;
  const int r = disk == NULL || begin (m, c, disk->size) == -1 ? -1
    : measure_disk (m, disk);

  image_close_disk (disk);
  (void) image_close (im); /* it was only read */
  return r;
}

static int
measure_image (const struct tool_options *o, struct create_options *c,
               struct measure *m, struct storage *s)
{
  const struct format_ops *format =
    format_recognize (all_formats, &qcow2_format, s);
  char name[sizeof IMAGE_SNAPSHOT_PREFIX + UINT16_MAX];
  struct header h;

  if (format == NULL || tool_check_format (o, format->name) == -1)
    return -1;
  if (format != &qcow2_format) {
    if (o->of == NULL)
      return measure_export (o, c, m, "");
    error_set (ENOTSUP, "%s: only qcow2 images have snapshots", o->file);
    return -1;
  }
  return qcow2_read_header (s, &h) == -1 ||
    name_disk (o, &h, s, name, sizeof name) == -1 ||
    measure_export (o, c, m, name) == -1 ? -1 : measure_bitmaps (m, s, &h);
}

static int
measure_source (const struct tool_options *o, struct create_options *c,
                struct measure *m)
{
  struct storage *s = tool_open (o, false);
  int r = -1;

  if (s == NULL)
    return -1;
  if (o->format == NULL || strcmp (o->format, "raw") != 0)
    r = measure_image (o, c, m, s);
  else if (begin (m, c, s->size) == 0)
    r = measure_raw (m, s);
  storage_close (s);
  return r;
}

static int
measure_size (const struct tool_options *o, struct create_options *c,
              struct measure *m)
{
  uint64_t size;

  if (!tool_parse_size (o->new_size, &size))
    tool_wrong ("measure: --size must be in bytes, ",
                "or with a suffix k, M, G, T, P or E");
  return begin (m, c, size);
}

/* ------------------------------------------------------------------ result */

static void
print (const struct tool_options *o, const struct measure *m)
{
  if (!o->json) {
    printf ("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
            measure_required (m), measure_full (m));
    if (m->has_bitmaps)
      printf ("bitmaps size: %" PRIu64 "\n", measure_of_bitmaps (m));
    return;
  }
  json_open (NULL, '{');
  if (m->has_bitmaps)
    json_number ("bitmaps", measure_of_bitmaps (m));
  json_number ("required", measure_required (m));
  json_number ("fully-allocated", measure_full (m));
  json_close ('}');
}

int
tool_measure (const struct tool_options *o)
{
  struct create_options c = CREATE_DEFAULTS;
  struct measure m;
  int r;

  check_words (o);
  parse_features (o, &c);
  r = o->file != NULL ? measure_source (o, &c, &m) : measure_size (o, &c, &m);
  if (r == -1)
    return tool_failed ();
  print (o, &m);
  return TOOL_OK;
}
