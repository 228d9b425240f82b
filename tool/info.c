/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/error.h"
#include "formats.h"
#include "image.h"
#include "images.h"
#include "json.h"
#include "qcow2/bitmaps.h"
#include "qcow2/qcow2.h"
#include "qcow2/snapshot.h"
#include "qed/qed.h"
#include "tool.h"

const char tool_info_usage[] =
  "Usage: " TOOL_NAME " info [OPTION...] IMAGE\n"
  "\n"
  "Prints the header, snapshots, bitmaps and the names of the backing file and\n"
  "the external data file.\n"
  "\n"
  "      --follow=beneath     the backing files, too, as far as they are in\n"
  "                           the image's directory or below it\n"
  "      --follow=any         the backing files, wherever they are\n"
  "      --data-file=PATH     for --follow: the image's external data file\n"
  "      --output=human|json  how to print that (human)\n"
  "  -U, --force-share        even if another process writes the image\n";

/* All of it is read before anything is printed. */
struct info {
  const struct tool_options *options;
  struct storage *storage;
  bool is_qed;           /* it has no snapshots and no bitmaps */
  struct qed_header qed; /* if so, else */
  struct header header;
  const char *backing_name, *backing_format;
  bool is_file;
  uint64_t actual_size; /* bytes of space that the file takes */
  struct snapshots snapshots;
  struct image *image;  /* to show backing files, else NULL */
  struct layer *disk;   /* its live one */
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

/* In human-readable units, as qemu-img does, and in bytes. */
static void
print_size (const struct info *i, const char *name, uint64_t value)
{
  static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB",
                                      "EiB" };
  double shown = value;
  unsigned n;

  if (i->options->json) {
    json_number (name, value);
    return;
  }
  for (n = 0; shown >= 1000 && n < 6; ++n)
    shown /= 1024;
  printf ("%-22s %0.3g %s (%" PRIu64 " bytes)\n", name, shown, unit[n], value);
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
  if (i->options->json) {
    json_string (name, value);
    return;
  }
  printf ("%-22s ", name);
  tool_print_name (value);
  putchar ('\n');
}

struct feature {
  uint64_t bit;
  const char *name;
};

static const struct feature incompatible[] = {
  { QCOW2_INCOMPAT_DIRTY, "dirty" },
  { QCOW2_INCOMPAT_CORRUPT, "corrupt" },
  { QCOW2_INCOMPAT_DATA_FILE, "external-data-file" },
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

static const struct feature qed_features[] = {
  { QED_BACKING_FILE, "backing-file" },
  { QED_NEED_CHECK, "need-check" },
  { QED_BACKING_NO_PROBE, "backing-format-no-probe" },
  { 0, NULL },
};
static const struct feature qed_unknown[] = { { 0, NULL } };

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
print_sizes (const struct info *i, const char *format, uint64_t disk_size)
{
  print_string (i, "filename", i->options->file);
  print_string (i, "format", format);
  print_size (i, "virtual-size", disk_size);
  if (i->is_file)
    print_size (i, "actual-size", i->actual_size);
  print_size (i, "file-size", i->storage->size);
}

static void
print_qed_header (const struct info *i)
{
  const struct qed_header *h = &i->qed;

  print_sizes (i, "qed", h->disk_size);
  print_size (i, "cluster-size", h->cluster_size);
  print_number (i, "table-size", h->table_bytes / h->cluster_size);
  print_number (i, "header-size", h->header_bytes / h->cluster_size);
  print_features (i, "incompatible", h->features, qed_features);
  print_features (i, "compatible", h->compatible, qed_unknown);
  print_features (i, "autoclear", h->autoclear, qed_unknown);
  print_offset (i, "l1-offset", h->l1_offset.v);
  print_number (i, "l1-entries", h->table_entries);
}

static void
print_header (const struct info *i)
{
  const struct header *h = &i->header;

  print_sizes (i, "qcow2", h->disk_size);
  print_number (i, "version", h->version);
  print_number (i, "header-length", h->header_length);
  print_size (i, "cluster-size", h->cluster_size);
  print_size (i, "subcluster-size", h->subcluster_size);
  print_number (i, "refcount-bits", UINT64_C (1) << h->refcount_order);
  print_string (i, "compression-type",
                h->compression == COMPRESSION_ZSTD ? "zstd" : "deflate");
  print_string (i, "encryption",
                h->encryption == ENCRYPTION_LUKS ? "LUKS"
                : h->encryption == ENCRYPTION_AES ? "AES" : "none");
  if (h->encryption == ENCRYPTION_LUKS) {
    print_offset (i, "luks-header-offset", h->crypto.v);
    print_size (i, "luks-header-size", h->crypto_bytes);
  }
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
  char date[32] = "";
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
  fputs ("    ", stdout);
  tool_print_name (sn->id);
  fputs (" \"", stdout);
  tool_print_name (sn->name);
  printf ("\", %s, disk %" PRIu64 ", vm state %" PRIu64 "\n", date,
          sn->disk_size, sn->vm_state_size);
}

static void
print_snapshots (const struct info *i)
{
  uint32_t n;

  begin_list (i, "snapshots");
  for (n = 0; n < i->snapshots.nr; ++n)
    print_snapshot (i, &i->snapshots.snapshot[n]);
  end_list (i);
}

static int
print_bitmap (void *opaque, const struct bitmap_info *b)
{
  const struct info *i = opaque;

  if (!i->options->json)
    fputs ("    ", stdout);
  tool_print_bitmap (b, i->options->json);
  return 0;
}

static int
ignore_bitmap (void *opaque, const struct bitmap_info *b)
{
  (void) opaque, (void) b;
  return 0;
}

static int
print_bitmaps (const struct info *i)
{
  int r;

  begin_list (i, "bitmaps");
  r = bitmaps_list (i->storage, &i->header, print_bitmap, (void *) i);
  end_list (i);
  return r;
}

/* ------------------------------------------------------------------ backing */

static void
print_layer (const struct info *i, const struct layer *l)
{
  const char *format = l->format->name;

  if (i->options->json) {
    json_open (NULL, '{');
    json_string ("filename", l->tables->name);
    json_string ("format", format);
    json_number ("virtual-size", l->size);
    json_close ('}');
    return;
  }
  fputs ("    ", stdout);
  tool_print_name (l->tables->name);
  printf (" (%s, %" PRIu64 " bytes)\n", format, l->size);
}

/* Open the files of the backing chain. */
static int
open_chain (struct info *i)
{
  const struct tool_options *o = i->options;
  const struct image_options options = tool_image_options (i->options);

  if ((i->backing_name[0] == '\0' && !i->header.has_data_file) ||
      (o->follow == FOLLOW_NONE && o->data_file == NULL))
    return 0;
  i->image = image_open (&options);
  if (i->image != NULL)
    i->disk = image_open_disk (i->image, "");
  return i->disk != NULL ? 0 : -1;
}

static void
print_data_file (const struct info *i)
{
  if (!i->header.has_data_file)
    return;
  print_string (i, "data-file", i->header.data_file_name);
  if (i->options->json)
    json_bool ("data-file-raw", i->header.raw_data);
  else
    print_string (i, "data-file-raw", i->header.raw_data ? "yes" : "no");
  if (i->disk != NULL)
    print_string (i, "data-file-opened", i->disk->data->name);
}

static void
print_backing (const struct info *i)
{
  const struct layer *l;

  if (i->backing_name[0] == '\0')
    return;
  print_string (i, "backing-filename", i->backing_name);
  print_string (i, "backing-format", i->backing_format);
  if (i->disk == NULL || i->disk->backing == NULL)
    return;
  begin_list (i, "backing-chain");
  for (l = i->disk->backing; l != NULL; l = l->backing)
    print_layer (i, l);
  end_list (i);
}

/* -------------------------------------------------------------------- whole */

static int
look_at_file (struct info *i)
{
  struct stat st;

  i->is_file = !storage_nbd_is_uri (i->options->file);
  if (!i->is_file) /* a server does not tell how much space that takes */
    return 0;
  if (stat (i->options->file, &st) == -1) {
    error_set (errno, "%s: %s", i->options->file, strerror (errno));
    return -1;
  }
  i->actual_size = st.st_blocks * UINT64_C (512);
  return 0;
}

static int
read_qed (struct info *i)
{
  if (qed_read_header (i->storage, &i->qed) == -1 || look_at_file (i) == -1)
    return -1;
  i->backing_name = i->qed.backing_name;
  i->backing_format = i->qed.features & QED_BACKING_NO_PROBE ? "raw" : "";
  return open_chain (i);
}

static int
read_all (struct info *i)
{
  const struct format_ops *format =
    format_recognize (all_formats, &qcow2_format, i->storage);

  if (format == NULL ||
      tool_check_format (i->options, format->name) == -1)
    return -1;
  i->is_qed = format == &qed_format;
  if (i->is_qed)
    return read_qed (i);
  i->backing_name = i->header.backing_name;
  i->backing_format = i->header.backing_format;
  if (qcow2_read_header (i->storage, &i->header) == -1 ||
      look_at_file (i) == -1 ||
      snapshots_read (&i->snapshots, &i->header, i->storage) == -1 ||
      bitmaps_list (i->storage, &i->header, ignore_bitmap, NULL) == -1)
    return -1;
  return open_chain (i);
}

static int
print_info (const struct info *i)
{
  int r = 0;

  if (i->options->json)
    json_open (NULL, '{');
  if (i->is_qed)
    print_qed_header (i);
  else {
    print_header (i);
    print_data_file (i);
  }
  print_backing (i);
  if (!i->is_qed) {
    print_snapshots (i);
    r = print_bitmaps (i);
  }
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
  r = read_all (&i);
  if (r == 0)
    r = print_info (&i);
  if (r == -1)
    (void) tool_failed ();
  image_close_disk (i.disk);
  (void) image_close (i.image); /* it was only read */
  snapshots_free (&i.snapshots);
  storage_close (i.storage);
  return r == -1 ? TOOL_FAILED : TOOL_OK;
}
