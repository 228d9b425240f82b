/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/bitmap-directory.h"

/* QEMU's default granularity is a cluster, within these. */
#define DEFAULT_MIN_BITS 12
#define DEFAULT_MAX_BITS 16

/* ------------------------------------------------------------- a new bitmap */

static int
choose_granularity (const char *image, const struct header *h, uint64_t wanted,
                    unsigned *bits)
{
  *bits = h->cluster_bits;
  if (*bits < DEFAULT_MIN_BITS)
    *bits = DEFAULT_MIN_BITS;
  if (*bits > DEFAULT_MAX_BITS)
    *bits = DEFAULT_MAX_BITS;
  if (wanted == 0)
    return 0;
  if ((wanted & (wanted - 1)) != 0 ||
      wanted < UINT64_C (1) << QCOW2_MIN_BITMAP_GRANULARITY_BITS ||
      wanted > UINT64_C (1) << QCOW2_MAX_BITMAP_GRANULARITY_BITS) {
    error_set (EINVAL, "%s: the granularity of a bitmap, %" PRIu64 ", must be a "
               "power of 2 from %d to %" PRIu64, image, wanted,
               1 << QCOW2_MIN_BITMAP_GRANULARITY_BITS,
               UINT64_C (1) << QCOW2_MAX_BITMAP_GRANULARITY_BITS);
    return -1;
  }
  *bits = __builtin_ctzll (wanted);
  return 0;
}

int
bitmap_check_new (const char *image, const struct header *h, const char *name,
                  uint64_t granularity, unsigned *bits)
{
  const size_t length = strlen (name);

  if (h->version < 3)
    error_set (ENOTSUP, "%s: version 2 images can't have bitmaps", image);
  else if (length == 0 || length > QCOW2_MAX_BITMAP_NAME)
    error_set (EINVAL, "%s: the name of a bitmap must have from 1 to %d bytes",
               image, QCOW2_MAX_BITMAP_NAME);
  else
    return choose_granularity (image, h, granularity, bits);
  return -1;
}

int
bitmap_count_parts (const char *image, const struct header *h, uint64_t size,
                    unsigned granularity_bits, uint32_t *nr)
{
  const uint64_t parts =
    bitmap_nr_parts (bitmap_nr_bits (size, granularity_bits), h->cluster_bits);

  if (parts > QCOW2_MAX_BITMAP_BYTES / h->cluster_size)
    error_set (ENOTSUP, "%s: the bits of a bitmap, in bytes (a larger "
               "granularity needs fewer) would be more than the limit of %"
               PRIu64, image, QCOW2_MAX_BITMAP_BYTES);
  else if (parts == 0)
    error_set (ENOTSUP, "%s: a disk of 0 bytes can't have bitmaps", image);
  else {
    *nr = parts;
    return 0;
  }
  return -1;
}

static inline size_t
padded (uint64_t bytes)
{
  return (bytes + 7) / 8 * 8;
}

size_t
bitmap_entry_bytes (const char *name)
{
  return padded (QCOW2_BITMAP_ENTRY_SIZE + strlen (name));
}

void
bitmap_entry_encode (uint8_t *entry, const char *name,
                     unsigned granularity_bits)
{
  put_be32 (entry + QCOW2_BITMAP_FIELD_FLAGS, QCOW2_BITMAP_AUTO);
  entry[QCOW2_BITMAP_FIELD_TYPE] = QCOW2_BITMAP_DIRTY_TRACKING;
  entry[QCOW2_BITMAP_FIELD_GRANULARITY] = granularity_bits;
  put_be16 (entry + QCOW2_BITMAP_FIELD_NAME_SIZE, strlen (name));
  memcpy (entry + QCOW2_BITMAP_ENTRY_SIZE, name, strlen (name));
}

/* ------------------------------------------------------------ the directory */

int
bitmap_directory_check (const char *image, uint32_t nr, uint64_t bytes)
{
  if (nr > QCOW2_MAX_BITMAPS)
    error_set (ENOTSUP, "%s: it has %d bitmaps, and can't have more", image,
               QCOW2_MAX_BITMAPS);
  else if (bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
    error_set (ENOTSUP, "%s: the bitmap directory would have %" PRIu64 " bytes, "
               "more than %" PRIu64, image, bytes,
               QCOW2_MAX_BITMAP_DIRECTORY_BYTES);
  else
    return 0;
  return -1;
}

static int
no_memory (const char *image)
{
  error_set (ENOMEM, "%s: out of memory", image);
  return -1;
}

static int
has_changed (const char *image, const struct bitmap_info *b)
{
  error_set (EIO, "%s: the bitmap directory entry at offset 0x%" PRIx64
             " changed while it was read", image, b->place.v);
  return -1;
}

/* The entry as it is in here; NULL: it is another one. */
static uint8_t *
find_entry (const struct bitmap_directory *d, const struct bitmap_info *b)
{
  uint8_t *p = d->bytes + (b->place.v - d->old.v);

  return memcmp (p, b->entry, sizeof b->entry) == 0 ? p : NULL;
}

struct reading {
  struct bitmap_directory *d;
  const char *image;
};

/* bitmaps_list's.  Only of an entry that is still the same it is known that it ends
 * before the directory does.
 */
static int
note_entry (void *opaque, const struct bitmap_info *b)
{
  const struct reading *r = opaque;
  const uint8_t *p = find_entry (r->d, b);

  if (p == NULL)
    return has_changed (r->image, b);
  r->d->size = p - r->d->bytes +
    padded (QCOW2_BITMAP_ENTRY_SIZE +
            (uint64_t) get_be32 (p + QCOW2_BITMAP_FIELD_EXTRA_SIZE) +
            get_be16 (p + QCOW2_BITMAP_FIELD_NAME_SIZE));
  r->d->nr++;
  return 0;
}

int
bitmap_directory_read (struct bitmap_directory *d, struct storage *s,
                       const struct header *h)
{
  struct reading r = { d, s->name };
  const bool any = (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) &&
    h->nr_bitmaps > 0;
  int ret = -1;

  *d = (struct bitmap_directory) { .nr = 0 };
  if (!any)
    return 0;
  if (h->bitmap_directory_size <= QCOW2_MAX_BITMAP_DIRECTORY_BYTES) {
    d->old = h->bitmap_directory;
    d->old_bytes = h->bitmap_directory_size;
  }
  d->bytes = calloc (1, d->old_bytes + 1);
  if (d->bytes == NULL)
    return no_memory (s->name);
  if (storage_read (s, d->bytes, d->old_bytes, h->bitmap_directory) == 0)
    ret = bitmaps_list (s, h, note_entry, &r); /* which says what is too large */
  if (ret == -1)
    bitmap_directory_free (d);
  return ret;
}

void
bitmap_directory_free (struct bitmap_directory *d)
{
  free (d->bytes);
  d->bytes = NULL;
}

int
bitmap_directory_disable (struct bitmap_directory *d, const char *image,
                          const struct bitmap_info *b)
{
  uint8_t *p = d->bytes == NULL ? NULL : find_entry (d, b);

  if (p == NULL)
    return has_changed (image, b);
  p += QCOW2_BITMAP_FIELD_FLAGS;
  put_be32 (p, get_be32 (p) & ~QCOW2_BITMAP_AUTO);
  return 0;
}

int
bitmap_directory_append (struct bitmap_directory *d, const char *image,
                         const char *name, unsigned granularity_bits)
{
  const size_t bytes = bitmap_entry_bytes (name);
  uint8_t *p;

  if (bitmap_directory_check (image, d->nr + 1, d->size + bytes) == -1)
    return -1;
  p = realloc (d->bytes, d->size + bytes);
  if (p == NULL)
    return no_memory (image);
  d->bytes = p;
  memset (p + d->size, 0, bytes);
  bitmap_entry_encode (p + d->size, name, granularity_bits);
  d->size += bytes;
  d->nr++;
  return 0;
}

void
bitmap_directory_set_table (struct bitmap_directory *d, const char *name,
                            struct host_off table, uint32_t nr)
{
  uint8_t *p = d->bytes + d->size - bitmap_entry_bytes (name);

  put_be64 (p + QCOW2_BITMAP_FIELD_TABLE, table.v);
  put_be32 (p + QCOW2_BITMAP_FIELD_TABLE_SIZE, nr);
}
