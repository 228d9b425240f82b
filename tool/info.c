/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "bitmaps.h"
#include "error.h"
#include "image.h"
#include "json.h"
#include "snapshot.h"
#include "tool.h"

struct info {
  const struct tool_options *options;
  struct storage *storage;
  struct header header;
};

/* ------------------------------------------------------------------- fields */

static void
print_number (const struct info *i, const char *name, uint64_t value)
{
  if (i->options->json)
    json_number (name, value);
  else
    printf ("%-22s %" PRIu64 "\n", name, value);
}

static void
print_offset (const struct info *i, const char *name, uint64_t value)
{
  if (i->options->json)
    json_number (name, value);
  else
    printf ("%-22s 0x%" PRIx64 "\n", name, value);
}

static void
print_string (const struct info *i, const char *name, const char *value)
{
  char printable[1100];

  if (i->options->json)
    json_string (name, value);
  else
    printf ("%-22s %s\n", name,
            error_printable (printable, sizeof printable, value));
}

struct feature {
  uint64_t bit;
  const char *name;
};

static const struct feature incompatible[] = {
  { QCOW2_INCOMPAT_DIRTY, "dirty" },
  { QCOW2_INCOMPAT_CORRUPT, "corrupt" },
  { QCOW2_INCOMPAT_COMPRESSION, "compression-type" },
  { QCOW2_INCOMPAT_EXTENDED_L2, "extended-l2" },
  { 0, NULL },
};
static const struct feature compatible[] = {
  { QCOW2_COMPAT_LAZY_REFCOUNTS, "lazy-refcounts" },
  { 0, NULL },
};
static const struct feature autoclear[] = {
  { QCOW2_AUTOCLEAR_BITMAPS, "bitmaps" },
  { QCOW2_AUTOCLEAR_RAW_DATA_FILE, "raw-external-data" },
  { 0, NULL },
};

static void
print_features (const struct info *i, const char *name, uint64_t bits,
                const struct feature *known)
{
  char text[64];
  unsigned bit;

  if (i->options->json)
    json_open (name, '[');
  else
    printf ("%-22s", name);
  for (bit = 0; bit < 64; ++bit) {
    const struct feature *f = known;

    if (!(bits >> bit & 1))
      continue;
    while (f->name != NULL && f->bit != UINT64_C (1) << bit)
      f++;
    snprintf (text, sizeof text, "bit %u", bit);
    if (i->options->json)
      json_string (NULL, f->name != NULL ? f->name : text);
    else
      printf (" %s", f->name != NULL ? f->name : text);
  }
  if (i->options->json)
    json_close (']');
  else
    puts (bits == 0 ? " none" : "");
}

static void
print_header (const struct info *i)
{
  const struct header *h = &i->header;

  print_string (i, "filename", i->options->file);
  print_string (i, "format", "qcow2");
  print_number (i, "file-size", i->storage->size);
  print_number (i, "virtual-size", h->disk_size);
  print_number (i, "version", h->version);
  print_number (i, "header-length", h->header_length);
  print_number (i, "cluster-size", h->cluster_size);
  print_number (i, "subcluster-size", h->subcluster_size);
  print_number (i, "refcount-bits", UINT64_C (1) << h->refcount_order);
  print_string (i, "compression-type",
                h->compression == COMPRESSION_ZSTD ? "zstd" : "deflate");
  print_features (i, "incompatible", h->incompatible, incompatible);
  print_features (i, "compatible", h->compatible, compatible);
  print_features (i, "autoclear", h->autoclear, autoclear);
  print_offset (i, "l1-offset", h->l1_offset.v);
  print_number (i, "l1-entries", h->l1_size);
  print_offset (i, "refcount-table-offset", h->refcount_table_offset.v);
  print_number (i, "refcount-table-clusters", h->refcount_table_clusters);
  print_offset (i, "snapshots-offset", h->snapshots_offset.v);
}

/* -------------------------------------------------------------------- lists */

static void
begin_list (const struct info *i, const char *name)
{
  if (i->options->json)
    json_open (name, '[');
  else
    printf ("%s:\n", name);
}

static void
end_list (const struct info *i)
{
  if (i->options->json)
    json_close (']');
}

static void
print_snapshot (const struct info *i, const struct snapshot *sn)
{
  const time_t t = sn->date_sec;
  char date[32] = "", id[64], name[256];
  struct tm tm;

  if (i->options->json) {
    json_open (NULL, '{');
    json_string ("id", sn->id);
    json_string ("name", sn->name);
    json_number ("date-sec", sn->date_sec);
    json_number ("virtual-size", sn->disk_size);
    json_number ("vm-state-size", sn->vm_state_size);
    json_number ("l1-offset", sn->l1_offset.v);
    json_number ("l1-entries", sn->l1_size);
    json_close ('}');
    return;
  }
  if (gmtime_r (&t, &tm) != NULL)
    strftime (date, sizeof date, "%F %T UTC", &tm);
  printf ("    %s \"%s\", %s, disk %" PRIu64 ", vm state %" PRIu64 "\n",
          error_printable (id, sizeof id, sn->id),
          error_printable (name, sizeof name, sn->name), date,
          sn->disk_size, sn->vm_state_size);
}

static int
print_snapshots (struct info *i)
{
  struct snapshots t;
  uint32_t n;

  if (snapshots_read (&t, &i->header, i->storage) == -1)
    return -1;
  begin_list (i, "snapshots");
  for (n = 0; n < t.nr; ++n)
    print_snapshot (i, &t.snapshot[n]);
  end_list (i);
  snapshots_free (&t);
  return 0;
}

static int
print_bitmap (void *opaque, const struct bitmap_info *b)
{
  const struct info *i = opaque;
  char name[1100];

  if (i->options->json) {
    json_open (NULL, '{');
    json_string ("name", b->name);
    json_number ("granularity", b->granularity);
    json_bool ("in-use", b->in_use);
    json_bool ("auto", b->automatic);
    json_close ('}');
  }
  else
    printf ("    \"%s\", granularity %" PRIu64 "%s%s\n",
            error_printable (name, sizeof name, b->name), b->granularity,
            b->in_use ? ", in use" : "", b->automatic ? ", auto" : "");
  return 0;
}

static int
print_bitmaps (struct info *i)
{
  int r;

  begin_list (i, "bitmaps");
  r = bitmaps_list (i->storage, &i->header, print_bitmap, i);
  end_list (i);
  return r;
}

/* ------------------------------------------------------------------ backing */

static void
print_layer (const struct info *i, const struct layer *l)
{
  const char *format = l->format == LAYER_RAW ? "raw" : "qcow2";
  char name[1100];

  if (i->options->json) {
    json_open (NULL, '{');
    json_string ("filename", l->storage->name);
    json_string ("format", format);
    json_number ("virtual-size", l->size);
    json_close ('}');
  }
  else
    printf ("    %s (%s, %" PRIu64 " bytes)\n",
            error_printable (name, sizeof name, l->storage->name), format,
            l->size);
}

/* What lies below the image, each file opened. */
static int
print_chain (const struct info *i)
{
  const struct tool_options *o = i->options;
  const struct image_options options = {
    .chain = {
      .file = o->file,
      .follow = o->follow,
      .backing_format = o->formats[0],
      .lower_formats = o->nr_formats > 1 ? o->formats + 1 : NULL,
      .force_share = o->force_share,
    },
    .cache_size = IMAGE_DEFAULT_CACHE_SIZE / 8,
  };
  struct image *im = image_open (&options);
  const struct layer *l;
  struct layer *disk;

  if (im == NULL)
    return -1;
  disk = image_open_disk (im, "");
  if (disk == NULL) {
    image_close (im);
    return -1;
  }
  begin_list (i, "backing-chain");
  for (l = disk->backing; l != NULL; l = l->backing)
    print_layer (i, l);
  end_list (i);
  image_close_disk (disk);
  image_close (im);
  return 0;
}

static int
print_backing (const struct info *i)
{
  if (i->header.backing_name[0] == '\0')
    return 0;
  print_string (i, "backing-filename", i->header.backing_name);
  print_string (i, "backing-format", i->header.backing_format);
  return i->options->follow == FOLLOW_NONE ? 0 : print_chain (i);
}

/* -------------------------------------------------------------------- whole */

static int
read_header (struct info *i)
{
  uint8_t start[QCOW2_HEADER_LENGTH_V3] = { 0 };
  const struct host_off zero = { 0 };
  struct storage *s = i->storage;
  uint8_t *buf;
  size_t len;
  int r = -1;

  if (storage_read (s, start, sizeof start, zero) == -1)
    return -1;
  len = header_want (s->name, start, s->size);
  if (len == 0)
    return -1;
  buf = malloc (len);
  if (buf == NULL)
    error_set (ENOMEM, "out of memory");
  else if (storage_read (s, buf, len, zero) == 0)
    r = header_decode (s->name, buf, len, s->size, &i->header);
  free (buf);
  return r;
}

static int
print_info (struct info *i)
{
  int r;

  if (i->options->json)
    json_open (NULL, '{');
  print_header (i);
  r = print_backing (i);
  if (r == 0)
    r = print_snapshots (i);
  if (r == 0)
    r = print_bitmaps (i);
  if (i->options->json)
    json_close ('}');
  return r;
}

int
tool_info (const struct tool_options *o)
{
  struct info i = { .options = o, .storage = tool_open (o, false) };
  int r;

  if (i.storage == NULL)
    return tool_failed ();
  r = read_header (&i);
  if (r == 0)
    r = print_info (&i);
  storage_close (i.storage);
  return r == -1 ? tool_failed () : TOOL_OK;
}
