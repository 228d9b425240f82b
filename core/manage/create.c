/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "crypto/luks-new.h"
#include "crypto/secret.h"
#include "manage/create-parts.h"
#include "qcow2/entry.h"

/* Tables and zeros are written in pieces of at most this. */
#define PIECE_BYTES (UINT64_C (1) << 20)

/* A header and its names fit into this; the rest of their cluster is zeros. */
#define HEADER_BYTES 4096

/* The unit that a disk writes entirely or not at all. */
#define SECTOR_BYTES 512

/* The layout after the header's cluster: sizes in clusters, in this order. */
struct layout {
  uint64_t table;  /* refcount table */
  uint64_t blocks; /* refcount blocks */
  uint64_t l1;
  uint64_t l2;     /* tables */
  uint64_t crypto; /* the LUKS header, and all its slots */
  uint64_t data;   /* clusters of the guest */
  uint64_t total;  /* with the header */
};

/* An image that is being made. */
struct creation {
  struct storage *storage;
  const struct create_options *options;
  struct header h;
  struct layout layout;
  uint64_t min_table; /* clusters of the refcount table, at least */
  uint64_t mapped; /* clusters of the guest that tables map from the start */
  struct luks_new *luks; /* NULL: it is not encrypted */
  uint8_t *buf; /* PIECE_BYTES */
};

static inline uint64_t
divide_up (uint64_t a, uint64_t b)
{
  return a / b + (a % b != 0);
}

/* ------------------------------------------------------------------ options */

static bool
is_power_of_two (uint64_t v)
{
  return v != 0 && (v & (v - 1)) == 0;
}

int
create_check_format (const char *name, const struct create_options *o)
{
  const uint64_t min = UINT64_C (1) << QCOW2_MIN_CLUSTER_BITS;
  const uint64_t max = UINT64_C (1) << QCOW2_MAX_CLUSTER_BITS;
  const uint64_t min_extended =
    UINT64_C (1) << QCOW2_MIN_CLUSTER_BITS_EXTENDED_L2;

  if (!is_power_of_two (o->cluster_size) || o->cluster_size < min ||
      o->cluster_size > max)
    error_set (EINVAL, "%s: cluster size %" PRIu64 ": must be a power of two "
               "from 512 to 2M", name, o->cluster_size);
  else if (!is_power_of_two (o->refcount_bits) || o->refcount_bits > 64)
    error_set (EINVAL, "%s: refcounts of %u bits: must be 1, 2, 4, 8, 16, 32 "
               "or 64", name, o->refcount_bits);
  else if (o->version < 3 && o->refcount_bits != 16)
    error_set (EINVAL, "%s: refcounts of %u bits need version 3 (compat=1.1)",
               name, o->refcount_bits);
  else if (o->version < 3 && o->lazy_refcounts)
    error_set (EINVAL, "%s: lazy refcounts need version 3 (compat=1.1)", name);
  else if (o->version < 3 && o->extended_l2)
    error_set (EINVAL, "%s: extended L2 entries need version 3 (compat=1.1)",
               name);
  else if (o->version < 3 && o->compression != COMPRESSION_DEFLATE)
    error_set (EINVAL, "%s: a compression type other than zlib needs version 3 "
               "(compat=1.1)", name);
  else if (o->extended_l2 && o->cluster_size < min_extended)
    error_set (EINVAL, "%s: extended L2 entries need clusters of at least "
               "%" PRIu64 " bytes", name, min_extended);
  else
    return 0;
  return -1;
}

static int
check_backing (const char *name, const struct create_options *o)
{
  if (o->backing == NULL)
    return 0;
  if (strlen (o->backing) > QCOW2_MAX_BACKING_NAME)
    error_set (EINVAL, "%s: a backing file name of %zu bytes: the limit is %d",
               name, strlen (o->backing), QCOW2_MAX_BACKING_NAME);
  else if (o->backing_format == NULL)
    error_set (EINVAL, "%s: the format of its backing file is missing", name);
  else if (o->preallocation != PREALLOCATION_OFF && !o->extended_l2)
    error_set (EINVAL, "%s: clusters that are allocated would hide the backing "
               "file: preallocation needs extended L2 entries there", name);
  else
    return 0;
  return -1;
}

static int
check_data_file (const char *name, const struct create_options *o)
{
  if (o->data_file == NULL && !o->data_file_raw)
    return 0;
  if (o->data_file == NULL)
    error_set (EINVAL, "%s: which external data file shall be raw is not said",
               name);
  else if (o->version < 3)
    error_set (EINVAL, "%s: an external data file needs version 3 (compat=1.1)",
               name);
  else if (strlen (o->data_file) > QCOW2_MAX_DATA_FILE_NAME)
    error_set (EINVAL, "%s: a data file name of %zu bytes: the limit is %d",
               name, strlen (o->data_file), QCOW2_MAX_DATA_FILE_NAME);
  else if (o->data_file_raw && o->backing != NULL)
    error_set (EINVAL, "%s: a raw external data file and a backing file exclude "
               "each other", name);
  else
    return 0;
  return -1;
}

/* Clusters that are mapped to what was never written would decipher to garbage.
 */
static int
check_encryption (const char *name, const struct create_options *o)
{
  if (o->passphrase == NULL)
    return 0;
  if (crypto_library () == NULL)
    error_set (ENOTSUP, "%s: encryption is not supported here", name);
  else if (o->iter_time < 1 || o->iter_time > CREATE_MAX_ITER_TIME)
    error_set (EINVAL, "%s: %u milliseconds for the passphrase: must be from 1 "
               "to %d", name, o->iter_time, CREATE_MAX_ITER_TIME);
  else if (o->data_file_raw)
    error_set (EINVAL, "%s: a raw external data file and encryption exclude "
               "each other", name);
  else if (o->preallocation != PREALLOCATION_OFF)
    error_set (EINVAL, "%s: preallocation and encryption exclude each other: "
               "what is not written yet would read as garbage", name);
  else
    return 0;
  return -1;
}

static int
make_header (struct creation *c)
{
  const struct create_options *o = c->options;
  const char *name = c->storage->name;
  struct header *h = &c->h;

  if (create_check_format (name, o) == -1 || check_backing (name, o) == -1 ||
      check_data_file (name, o) == -1 || check_encryption (name, o) == -1)
    return -1;
  if (o->size > INT64_MAX - 511) {
    error_set (EINVAL, "%s: disk size %" PRIu64 ": the limit is 2^63 - 512",
               name, o->size);
    return -1;
  }
  h->version = o->version;
  h->cluster_size = o->cluster_size;
  h->cluster_bits = __builtin_ctzll (o->cluster_size);
  h->disk_size = (o->size + 511) & ~UINT64_C (511);
  h->extended_l2 = o->extended_l2;
  h->refcount_order = __builtin_ctz (o->refcount_bits);
  h->compression = o->compression;
  if (o->extended_l2)
    h->incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
  if (o->compression != COMPRESSION_DEFLATE)
    h->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
  if (o->data_file != NULL) {
    h->has_data_file = true;
    h->incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    snprintf (h->data_file_name, sizeof h->data_file_name, "%s", o->data_file);
  }
  if (o->data_file_raw) {
    h->raw_data = true;
    h->autoclear |= QCOW2_AUTOCLEAR_RAW_DATA_FILE;
  }
  if (o->passphrase != NULL) {
    h->encryption = ENCRYPTION_LUKS;
    h->crypto_bytes = LUKS_NEW_BYTES;
  }
  if (o->lazy_refcounts)
    h->compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
  if (o->backing != NULL) {
    snprintf (h->backing_name, sizeof h->backing_name, "%s", o->backing);
    snprintf (h->backing_format, sizeof h->backing_format, "%s",
              o->backing_format);
  }
  return 0;
}

/* ------------------------------------------------------------------- layout */

static inline struct host_off
cluster_offset (const struct creation *c, uint64_t cluster)
{
  return (struct host_off) { cluster << c->h.cluster_bits };
}

static inline uint64_t
first_l1 (const struct layout *l)
{
  return 1 + l->table + l->blocks;
}

static inline uint64_t
first_l2 (const struct layout *l)
{
  return first_l1 (l) + l->l1;
}

static inline uint64_t
first_crypto (const struct layout *l)
{
  return first_l2 (l) + l->l2;
}

static inline uint64_t
first_data (const struct layout *l)
{
  return first_crypto (l) + l->crypto;
}

/* Blocks and table cover themselves: iterate until neither grows. */
static void
plan_refcounts (struct creation *c)
{
  struct layout *l = &c->layout;
  const uint64_t in_block = c->h.cluster_size * 8 >> c->h.refcount_order;
  const uint64_t in_table = c->h.cluster_size / sizeof (uint64_t);
  uint64_t blocks, table;

  l->blocks = 1;
  l->table = c->min_table > 1 ? c->min_table : 1;
  for (;;) {
    l->total = first_data (l) + l->data;
    blocks = divide_up (l->total, in_block);
    table = divide_up (blocks, in_table);
    if (blocks <= l->blocks && table <= l->table)
      return;
    if (blocks > l->blocks)
      l->blocks = blocks;
    if (table > l->table)
      l->table = table;
  }
}

static int
too_large (const struct creation *c, const char *what, uint64_t max)
{
  error_set (EINVAL, "%s: disk size %" PRIu64 ": its %s would be larger than "
             "the limit of %" PRIu64 " bytes; larger clusters help",
             c->storage->name, c->h.disk_size, what, max);
  return -1;
}

static int
plan (struct creation *c)
{
  struct header *h = &c->h;
  struct layout *l = &c->layout;
  const uint64_t in_l2 = UINT64_C (1) << (header_l1_shift (h) -
                                          h->cluster_bits);
  uint64_t clusters;

  clusters = divide_up (h->disk_size, h->cluster_size);
  h->l1_size = divide_up (clusters, in_l2);
  if (h->l1_size > QCOW2_MAX_L1_BYTES / sizeof (uint64_t))
    return too_large (c, "L1 table", QCOW2_MAX_L1_BYTES);
  l->l1 = divide_up (h->l1_size * sizeof (uint64_t), h->cluster_size);
  if (c->options->preallocation != PREALLOCATION_OFF || h->raw_data) {
    c->mapped = clusters;
    l->data = h->has_data_file ? 0 : clusters;
    l->l2 = h->l1_size;
  }
  l->crypto = divide_up (h->crypto_bytes, h->cluster_size);
  plan_refcounts (c);
  if (l->table > QCOW2_MAX_REFCOUNT_TABLE_BYTES >> h->cluster_bits)
    return too_large (c, "refcount table", QCOW2_MAX_REFCOUNT_TABLE_BYTES);
  if (l->total > QCOW2_MAX_HOST_SIZE >> h->cluster_bits)
    return too_large (c, "file", QCOW2_MAX_HOST_SIZE);
  h->refcount_table_offset = cluster_offset (c, 1);
  h->refcount_table_clusters = l->table;
  if (l->l1 > 0)
    h->l1_offset = cluster_offset (c, first_l1 (l));
  if (l->crypto > 0)
    h->crypto = cluster_offset (c, first_crypto (l));
  return 0;
}

/* What a disk of this size takes once all of it is written.  False if there is
 * no room for that.
 */
static bool
fits (const struct creation *c, uint64_t size, struct layout *full)
{
  struct create_options o = *c->options;
  struct creation f = { .storage = c->storage, .options = &o, .h = c->h };

  o.preallocation = PREALLOCATION_METADATA;
  f.h.disk_size = size;
  if (plan (&f) == -1)
    return false;
  *full = f.layout;
  return full->total <= c->storage->size >> c->h.cluster_bits;
}

/* All of the disk must find room on a storage of fixed size.  The refcount table
 * is large enough for that from the start: where it grows there are two for a
 * moment.
 */
static int
plan_to_fit (struct creation *c)
{
  uint64_t low = 0, high = c->h.disk_size / SECTOR_BYTES;
  struct layout full;

  if (fits (c, c->h.disk_size, &full)) {
    c->min_table = full.table;
    return plan (c);
  }
  while (high - low > 1) { /* high does not fit */
    const uint64_t middle = low + (high - low) / 2;

    if (fits (c, middle * SECTOR_BYTES, &full))
      low = middle;
    else
      high = middle;
  }
  if (low > 0)
    error_set (ENOSPC, "%s: there is no room for a disk of %" PRIu64 " bytes: "
               "size=%" PRIu64 " would fit", c->storage->name, c->h.disk_size,
               low * SECTOR_BYTES);
  else
    error_set (ENOSPC, "%s: %" PRIu64 " bytes are too few for an image",
               c->storage->name, c->storage->size);
  return -1;
}

/* ------------------------------------------------------------------ writing */

/* The i-th word of a table, in the host's byte order. */
typedef uint64_t (*word_fn) (const struct creation *c, uint64_t i);

/* Write nr words from this cluster on. */
static int
write_words (struct creation *c, uint64_t cluster, uint64_t nr, word_fn word)
{
  const uint64_t in_piece = PIECE_BYTES / sizeof (uint64_t);
  struct host_off at = cluster_offset (c, cluster);
  uint64_t i, done;

  for (done = 0; done < nr; done += i) {
    for (i = 0; i < in_piece && done + i < nr; ++i)
      put_be64 (c->buf + i * sizeof (uint64_t), word (c, done + i));
    if (storage_write (c->storage, c->buf, i * sizeof (uint64_t), at) == -1)
      return -1;
    at.v += i * sizeof (uint64_t);
  }
  return 0;
}

static uint64_t
refcount_table_word (const struct creation *c, uint64_t i)
{
  return cluster_offset (c, 1 + c->layout.table + i).v;
}

/* Refcounts are 1 up to the last cluster. */
static uint64_t
refcount_word (const struct creation *c, uint64_t i)
{
  const unsigned order = c->h.refcount_order;
  const uint64_t in_word = 64 >> order;
  const uint64_t first = i * in_word;
  uint64_t word = 0, j;

  for (j = 0; j < in_word && first + j < c->layout.total; ++j)
    word = entry_put_refcount (order, word, j, 1);
  return word;
}

static uint64_t
l1_word (const struct creation *c, uint64_t i)
{
  return cluster_offset (c, first_l2 (&c->layout) + i).v | QCOW2_ENTRY_COPIED;
}

static uint64_t
l2_word (const struct creation *c, uint64_t i)
{
  const uint64_t data = c->h.has_data_file ? 0 : first_data (&c->layout);

  if (!c->h.extended_l2)
    return cluster_offset (c, data + i).v | QCOW2_ENTRY_COPIED;
  /* No subcluster is allocated: they read as zeros, or as the backing file.
   * But what a raw data file has is the disk's.
   */
  return i % 2 != 0 ? (c->h.raw_data ? UINT32_MAX : 0)
    : cluster_offset (c, data + i / 2).v | QCOW2_ENTRY_COPIED;
}

static int
write_tables (struct creation *c)
{
  const struct layout *l = &c->layout;
  const uint64_t in_word = 64 >> c->h.refcount_order;
  const unsigned l2_words = c->h.extended_l2 ? 2 : 1;

  if (write_words (c, 1, l->blocks, refcount_table_word) == -1 ||
      write_words (c, 1 + l->table, divide_up (l->total, in_word),
                   refcount_word) == -1)
    return -1;
  if (l->l2 == 0) /* the L1 table is zeros */
    return 0;
  if (write_words (c, first_l1 (l), c->h.l1_size, l1_word) == -1)
    return -1;
  return write_words (c, first_l2 (l), c->mapped * l2_words, l2_word);
}

/* Make the LUKS header, if there is to be one, before anything is changed. */
static int
make_luks (struct creation *c)
{
  if (c->layout.crypto == 0)
    return 0;
  c->luks = secret_new (sizeof *c->luks);
  if (c->luks == NULL)
    return -1;
  if (luks_make (c->options->passphrase, c->options->iter_time, c->luks) == 0)
    return 0;
  error_append (" (%s, for a LUKS header)", c->storage->name);
  return -1;
}

/* Those slots that are not used stay zeros. */
static int
write_luks (struct creation *c)
{
  const struct host_off header = c->h.crypto;
  const struct host_off material = { header.v + LUKS_NEW_MATERIAL };

  if (c->luks == NULL)
    return 0;
  return storage_write (c->storage, c->luks->header, sizeof c->luks->header,
                        header) == -1 ? -1
    : storage_write (c->storage, c->luks->material, sizeof c->luks->material,
                     material);
}

int
create_zeros (struct storage *s, struct host_off at, uint64_t count)
{
  static const uint8_t zeros[1 << 16];

  while (count > 0) {
    const uint64_t n = count < sizeof zeros ? count : sizeof zeros;

    if (storage_write (s, zeros, n, at) == -1)
      return -1;
    at.v += n;
    count -= n;
  }
  return 0;
}

static int
preallocate (struct creation *c)
{
  const struct host_off at = cluster_offset (c, first_data (&c->layout));
  const uint64_t bytes = c->layout.data << c->h.cluster_bits;
  bool done; /* or as well as the storage can */

  if (bytes == 0)
    return 0;
  switch (c->options->preallocation) {
  case PREALLOCATION_OFF:
  case PREALLOCATION_METADATA:
    break;
  case PREALLOCATION_FALLOC:
    return storage_allocate (c->storage, at, bytes, &done);
  case PREALLOCATION_FULL:
    return create_zeros (c->storage, at, bytes);
  }
  return 0;
}

/* Resize the storage, and make it read as zeros.  The header goes first, so
 * that it is no image while it is neither the old nor the new one.
 */
static int
clear (struct creation *c)
{
  const uint64_t old_size = atomic_load (&c->storage->size);
  const uint64_t bytes = c->layout.total << c->h.cluster_bits;
  const struct host_off start = { 0 };
  const uint64_t old = old_size < bytes ? old_size : bytes;

  if (old_size < bytes && storage_resize (c->storage, bytes) == -1)
    return -1;
  if (old == 0)
    return 0;
  if (storage_zero (c->storage, start, SECTOR_BYTES, false) == -1 ||
      storage_flush (c->storage) == -1)
    return -1;
  return storage_zero (c->storage, start, old, true);
}

/* The header's first sector is written last, see manage/create.h: if a power
 * cut left only that one, there would be an image that lacks the names in the
 * others.
 */
static int
write_image (struct creation *c, const uint8_t *header, uint64_t len)
{
  const struct host_off start = { 0 }, second = { SECTOR_BYTES };

  if (clear (c) == -1 || write_tables (c) == -1 || write_luks (c) == -1 ||
      preallocate (c) == -1 ||
      storage_write (c->storage, header + SECTOR_BYTES, len - SECTOR_BYTES,
                     second) == -1 ||
      storage_flush (c->storage) == -1 ||
      storage_write (c->storage, header, SECTOR_BYTES, start) == -1)
    return -1;
  return storage_flush (c->storage);
}

int
create_image (struct storage *s, const struct create_options *o)
{
  struct creation c = { .storage = s, .options = o };
  uint8_t header[HEADER_BYTES] = { 0 };
  uint64_t len;
  int r = -1;

  if (o->format == CREATE_QED && o->passphrase != NULL) {
    error_set (EINVAL, "%s: QED images can't be encrypted", s->name);
    return -1;
  }
  if (o->format == CREATE_QED)
    return create_qed (s, o);
  if (make_header (&c) == -1 || plan (&c) == -1 ||
      (o->must_fit && plan_to_fit (&c) == -1))
    return -1;
  len = c.h.cluster_size < HEADER_BYTES ? c.h.cluster_size : HEADER_BYTES;
  if (header_encode (s->name, &c.h, header, len) == -1)
    return -1;
  c.buf = malloc (PIECE_BYTES);
  if (c.buf == NULL)
    error_set (ENOMEM, "%s: out of memory", s->name);
  else if (make_luks (&c) == 0)
    r = write_image (&c, header, len);
  secret_free (c.luks, sizeof *c.luks);
  free (c.buf);
  return r;
}
