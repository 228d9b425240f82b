/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "disk/backing-name.h"
#include "qed/qed.h"

_Static_assert (QED_MAX_BACKING_NAME <= BACKING_NAME_MAX,
                "each name that a header has can be parsed");

int
qed_read_header (struct storage *s, struct qed_header *h)
{
  uint8_t bytes[QED_HEADER_BYTES], name[QED_MAX_BACKING_NAME];
  const struct host_off start = { 0 };

  if (storage_read (s, bytes, sizeof bytes, start) == -1 ||
      qed_header_decode (s->name, bytes, s->size, h) == -1)
    return -1;
  if (h->backing_size == 0)
    return 0;
  if (storage_read (s, name, h->backing_size,
                    (struct host_off) { h->backing_offset }) == -1)
    return -1;
  return qed_header_set_backing (s->name, h, name);
}

static struct layer *
qed_open (struct storage *storage, unsigned id, struct shared *shared)
{
  struct qed_file *f = calloc (1, sizeof *f);
  const struct qed_header *h;

  if (f == NULL) {
    error_set (ENOMEM, "%s: out of memory", storage->name);
    return NULL;
  }
  h = &f->header;
  if (qed_read_header (storage, &f->header) == -1) {
    free (f);
    return NULL;
  }
  pthread_mutex_init (&f->damage.lock, NULL);
  f->layer.format = &qed_format;
  f->layer.tables = f->layer.data = f->layer.data_file = storage;
  f->layer.size = h->disk_size;
  f->layer.shared = shared;
  f->layer.damage = &f->damage;
  f->layer.backing_name = h->backing_name;
  f->layer.backing_format = h->features & QED_BACKING_NO_PROBE ? "raw" : "";
  f->disk.map = (struct qed_map) {
    .header = h, .storage = storage, .id = id, .cache = shared->cache,
  };
  debug_message ("%s: QED, disk %" PRIu64 " bytes, clusters of %" PRIu64
                 " bytes, tables of %" PRIu64 " bytes%s", storage->name,
                 h->disk_size, h->cluster_size, h->table_bytes,
                 h->features & QED_NEED_CHECK ? ", to be checked" : "");
  return &f->layer;
}

static int
qed_lookup (const struct layer *layer, struct guest_off offset, uint64_t max,
            struct run *run)
{
  return qed_map_lookup (qed_map (layer), offset, max, run);
}

/* A cluster keeps its place when it is trimmed, and becomes a hole there. */
static int
qed_find_hole (const struct layer *layer, struct run *run, bool *hole)
{
  return storage_extent (layer->data, run->host, run->length, hole,
                         &run->length);
}

static void
qed_close (struct layer *layer)
{
  struct qed_file *f = (struct qed_file *) layer;

  pthread_mutex_destroy (&f->damage.lock);
  free (f);
}

const struct format_ops qed_format = {
  .name = "qed",
  .magic = QED_MAGIC,
  .open = qed_open,
  .lookup = qed_lookup,
  .find_hole = qed_find_hole,
  .close = qed_close,
};
