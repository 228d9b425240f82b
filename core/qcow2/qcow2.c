/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/backing-name.h"
#include "qcow2/compressed.h"
#include "qcow2/disk.h"
#include "qcow2/foreign.h"
#include "qcow2/points.h"
#include "qcow2/qcow2.h"
#include "qcow2/unlock.h"
#include "storage/crypt.h"

_Static_assert (QCOW2_MAX_BACKING_NAME <= BACKING_NAME_MAX,
                "each name that a header has can be parsed");

static void
no_memory (const struct storage *s)
{
  error_set (ENOMEM, "%s: out of memory", s->name);
}

int
qcow2_read_header (struct storage *s, struct header *h)
{
  uint8_t start[QCOW2_HEADER_LENGTH_V2];
  uint8_t *cluster;
  size_t len;
  int r = -1;

  if (storage_read (s, start, sizeof start, (struct host_off) { 0 }) == -1)
    return -1;
  len = header_want (s->name, start, s->size);
  if (len == 0) {
    foreign_explain (s);
    return -1;
  }
  cluster = malloc (len);
  if (cluster == NULL) {
    no_memory (s);
    return -1;
  }
  if (storage_read (s, cluster, len, (struct host_off) { 0 }) == 0)
    r = header_decode (s->name, cluster, len, s->size, h);
  free (cluster);
  return r;
}

static void
debug_header (const struct storage *s, const struct header *h)
{
  debug_message ("%s: qcow2 version %" PRIu32 ", disk %" PRIu64 " bytes, "
                 "clusters of %" PRIu64 " bytes%s%s%s%s%s, %" PRIu32
                 " snapshots%s", s->name, h->version, h->disk_size,
                 h->cluster_size, h->extended_l2 ? ", extended L2" : "",
                 h->raw_data ? ", raw data file" :
                 h->has_data_file ? ", data file" : "",
                 h->compression == COMPRESSION_ZSTD ? ", zstd" : "",
                 h->incompatible & QCOW2_INCOMPAT_DIRTY ? ", dirty" : "",
                 h->incompatible & QCOW2_INCOMPAT_CORRUPT ? ", corrupt" : "",
                 h->nr_snapshots,
                 h->encryption == ENCRYPTION_AES ? ", AES"
                 : h->encryption == ENCRYPTION_LUKS ? ", LUKS" : "");
}

static const struct format_ops aes_format;

/* Data that is encrypted is read through another storage, on that of its file.
 */
static int
put_crypt (struct layer *layer, struct sectors *sectors)
{
  struct storage *s = storage_crypt_new (layer->data_file, sectors);

  if (s == NULL)
    return -1;
  layer->data = s;
  return 0;
}

static int
open_encrypted (struct qcow2_file *f, unsigned id, const struct shared *shared)
{
  const struct header *h = &f->header;
  struct sectors *sectors;

  if (h->encryption == ENCRYPTION_NONE)
    return 0;
  f->layer.encrypted = true;
  if (unlock (f->layer.tables, h, shared->passphrases, id, &f->sectors) == -1)
    return -1;
  if (h->has_data_file)
    return 0;
  sectors = f->sectors;
  f->sectors = NULL;
  return put_crypt (&f->layer, sectors);
}

static struct layer *
qcow2_open (struct storage *storage, unsigned id, struct shared *shared)
{
  struct qcow2_file *f = calloc (1, sizeof *f);
  const struct header *h;

  if (f == NULL) {
    no_memory (storage);
    return NULL;
  }
  h = &f->header;
  f->points = points_new ();
  if (f->points == NULL ||
      qcow2_read_header (storage, &f->header) == -1) {
    points_free (f->points);
    free (f);
    return NULL;
  }
  f->layer.tables = f->layer.data = f->layer.data_file = storage;
  if (open_encrypted (f, id, shared) == -1) {
    points_free (f->points);
    free (f);
    return NULL;
  }
  pthread_mutex_init (&f->damage.lock, NULL);
  f->layer.format = h->encryption == ENCRYPTION_AES ? &aes_format
    : &qcow2_format;
  f->layer.size = h->disk_size;
  f->layer.shared = shared;
  f->layer.damage = &f->damage;
  f->layer.backing_name = h->backing_name;
  f->layer.backing_format = h->backing_format;
  f->layer.data_name = h->has_data_file ? h->data_file_name : NULL;
  f->layer.excludes_backing = h->raw_data;
  f->disk.compression = h->compression;
  map_init (&f->disk.map, h, storage, id, shared->cache, h->l1_offset,
            h->l1_size);
  debug_header (storage, h);
  return &f->layer;
}

static int
qcow2_lookup (const struct layer *layer, struct guest_off offset, uint64_t max,
              struct run *run)
{
  return map_lookup (qcow2_map (layer), offset, max, run);
}

static int
qcow2_set_data (struct layer *layer, struct storage *data)
{
  struct qcow2_file *f = qcow2_file (layer);
  struct sectors *sectors = f->sectors;

  layer->data = layer->data_file = data;
  map_set_data (&f->disk.map, data);
  f->sectors = NULL;
  return layer->encrypted ? put_crypt (layer, sectors) : 0;
}

/* A data file may have its own holes: a raw one has all clusters mapped.  What
 * is mapped behind the end that is known is data: others may have put some
 * there meanwhile, and a copy without that would lose it.
 */
static int
qcow2_find_hole (const struct layer *layer, struct run *run, bool *hole)
{
  const uint64_t end = atomic_load (&layer->data_file->size);

  *hole = false;
  if (!qcow2_map (layer)->format.data_file || run->host.v >= end)
    return 0;
  if (run->length > end - run->host.v)
    run->length = end - run->host.v;
  return storage_extent (layer->data, run->host, run->length, hole,
                         &run->length);
}

static bool
qcow2_warning (const struct layer *layer, char *text, size_t len)
{
  const struct header *h = &((const struct qcow2_file *) layer)->header;

  if (h->l1_missing == 0)
    return false;
  snprintf (text, len, "%s: the L1 table at offset 0x%" PRIx64 " ends %" PRIu64
            " bytes beyond the end of the file: what is missing is read as not "
            "allocated", layer->tables->name, h->l1_offset.v, h->l1_missing);
  return true;
}

static void
qcow2_close (struct layer *layer)
{
  struct qcow2_file *f = qcow2_file (layer);

  pthread_mutex_destroy (&f->damage.lock);
  sectors_free (f->sectors);
  points_free (f->points);
  free (f);
}

const struct format_ops qcow2_format = {
  .name = "qcow2",
  .magic = "QFI\xfb",
  .open = qcow2_open,
  .lookup = qcow2_lookup,
  .read_compressed = compressed_read,
  .find_hole = qcow2_find_hole,
  .set_data = qcow2_set_data,
  .warning = qcow2_warning,
  .close = qcow2_close,
};

/* ----------------------------------------------------------------- with AES */

/* Sectors are enciphered by where the guest sees them. */
static int
aes_lookup (const struct layer *layer, struct guest_off offset, uint64_t max,
            struct run *run)
{
  const int r = map_lookup (qcow2_map (layer), offset, max, run);

  if (r == 0 && run->kind == RUN_DATA)
    run->kind = RUN_GUEST_DATA;
  return r;
}

static int
aes_read (const struct layer *layer, const struct run *run, void *buf,
          struct guest_off offset)
{
  struct crypt_view view;

  storage_crypt_view (&view, layer->data, offset.v - run->host.v);
  return storage_read (&view.storage, buf, run->length, run->host);
}

static const struct format_ops aes_format = {
  .name = "qcow2",
  .open = qcow2_open,
  .lookup = aes_lookup,
  .read_compressed = compressed_read,
  .read_guest_data = aes_read,
  .set_data = qcow2_set_data,
  .warning = qcow2_warning,
  .close = qcow2_close,
};
