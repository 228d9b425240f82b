/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "corpus.h"

struct builder b;

FILE *
corpus_create (const char *folder, const char *target, const char *name)
{
  char path[256];
  FILE *f;

  mkdir (folder, 0777);
  snprintf (path, sizeof path, "%s/%s", folder, target);
  mkdir (path, 0777);
  snprintf (path, sizeof path, "%s/%s/%s", folder, target, name);
  f = fopen (path, "w");
  if (f == NULL) {
    perror (path);
    exit (1);
  }
  return f;
}

void
corpus_put (FILE *f, const void *data, size_t size)
{
  if (fwrite (data, 1, size, f) != size) {
    perror ("write");
    exit (1);
  }
}

void
corpus_end (FILE *f)
{
  if (fclose (f) != 0) {
    perror ("write");
    exit (1);
  }
}

void
corpus_save_in (const char *folder, const char *target, const char *name)
{
  FILE *f = corpus_create (folder, target, name);

  corpus_put (f, b.data, b.size);
  corpus_end (f);
  build_free (&b);
}

void
corpus_save (const char *target, const char *name)
{
  corpus_save_in ("corpus", target, name);
}

void
corpus_compressed (uint64_t cluster, uint64_t seed)
{
  uint8_t *plain = malloc (b.cluster_size);

  if (plain == NULL)
    abort ();
  build_pattern (plain, b.cluster_size, seed);
  build_compressed (&b, cluster, plain, 20);
  free (plain);
}

void
corpus_extension (uint64_t at, uint32_t type, uint32_t len, const char *data)
{
  put_be32 (b.data + at, type);
  put_be32 (b.data + at + 4, len);
  memcpy (b.data + at + 8, data, len);
}

void
corpus_sound (unsigned order)
{
  if (b.version == 3)
    build_order (&b, order);
  if (order < 2)
    b.max_sharing = 1;
}

void
corpus_some_clusters (void)
{
  unsigned i;

  build_l2_place (&b, 0);
  for (i = 0; i < 4; ++i)
    build_entry (&b, 2 * i, build_data (&b, i + 1),
                 b.extended ? UINT32_MAX >> i : 0);
  corpus_compressed (1, 5);
  corpus_compressed (3, 6);
  if (b.version == 3 && !b.extended) {
    build_entry (&b, 5, 1, 0);
    build_entry (&b, 7, build_data (&b, 9) | 1, 0);
  }
  else if (b.extended)
    build_entry (&b, 5, 0, UINT64_C (0xf0f0f00000000000));
}

void
corpus_bitmap (void)
{
  uint8_t data[QCOW2_EXT_BITMAPS_BYTES] = { 0 };
  const uint64_t bits = build_clusters (&b, 1);
  const uint64_t table = build_clusters (&b, 1);
  const uint64_t directory = build_clusters (&b, 1);

  put_be64 (b.data + table, bits);
  put_be64 (b.data + directory, table);
  put_be32 (b.data + directory + 8, 1);
  b.data[directory + 16] = 1;
  b.data[directory + 17] = 16;
  put_be16 (b.data + directory + 18, 4);
  memcpy (b.data + directory + 24, "name", 4);
  put_be32 (data, 1);
  put_be64 (data + 8, 32);
  put_be64 (data + 16, directory);
  corpus_extension (112, QCOW2_EXT_BITMAPS, sizeof data, (char *) data);
  put_be64 (b.data + 88, QCOW2_AUTOCLEAR_BITMAPS);
}
