/* SPDX-License-Identifier: BSD-3-Clause */

/* What is in a sector: contents that tell where they come from, so that a
 * sector which shows something else says whose it is.
 */

#ifndef CRASH_CONTENT_H
#define CRASH_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SECTOR 512
#define SECTOR_WORDS (SECTOR / 8)

#define CONTENT_MAGIC UINT64_C (0x5ec7043a11d0f00d)

/* Who gave a sector its content. */
enum content_class {
  CONTENT_INITIAL = 'I',  /* the disk as it was made */
  CONTENT_SNAPSHOT = 'S', /* in a snapshot, and not in the disk */
  CONTENT_BACKING = 'B',
  CONTENT_GARBAGE = 'G',  /* in a free host cluster */
  CONTENT_WRITTEN = 'W',
};

/* A stamp is made of the class, the number of the request (or of the
 * snapshot) and that of the sector.
 */
static inline uint64_t
content_stamp (enum content_class class, uint64_t request, uint64_t sector)
{
  return (uint64_t) class << 56 | (request & 0xffffff) << 32 |
    (sector & 0xffffffff);
}

static inline uint64_t
content_mix (uint64_t x)
{
  x = (x ^ x >> 32) * UINT64_C (0xd6e8feb86659fd93);
  return x ^ x >> 32;
}

/* Half of it compresses. */
static inline void
content_fill (void *sector, uint64_t stamp)
{
  uint64_t w[SECTOR_WORDS];
  unsigned i;

  w[0] = CONTENT_MAGIC;
  w[1] = stamp;
  for (i = 2; i < SECTOR_WORDS; ++i)
    w[i] = i % 4 < 2 ? content_mix (stamp * SECTOR_WORDS + i) : stamp;
  memcpy (sector, w, sizeof w);
}

/* count bytes, whole sectors, of the disk (or host) from sector first on. */
static inline void
content_fill_many (void *buf, uint64_t count, enum content_class class,
                   uint64_t request, uint64_t first)
{
  uint64_t i;

  for (i = 0; i < count / SECTOR; ++i)
    content_fill ((uint8_t *) buf + i * SECTOR,
                  content_stamp (class, request, first + i));
}

/* 64 bits that stand for a sector's content. */
static inline uint64_t
content_hash (const void *sector)
{
  const uint64_t k = UINT64_C (0x9fb21c651e98df25);
  uint64_t w[SECTOR_WORDS], h[4] = { 1, 2, 3, 4 };
  unsigned i;

  memcpy (w, sector, sizeof w);
  for (i = 0; i < SECTOR_WORDS; i += 4) {
    h[0] = (h[0] ^ w[i]) * k, h[0] ^= h[0] >> 29;
    h[1] = (h[1] ^ w[i + 1]) * k, h[1] ^= h[1] >> 29;
    h[2] = (h[2] ^ w[i + 2]) * k, h[2] ^= h[2] >> 29;
    h[3] = (h[3] ^ w[i + 3]) * k, h[3] ^= h[3] >> 29;
  }
  return ((h[0] * k ^ h[1]) * k ^ h[2]) * k ^ h[3];
}

static inline bool
content_is_zero (const void *bytes, size_t count)
{
  const uint8_t *p = bytes;

  return count == 0 || (p[0] == 0 && memcmp (p, p + 1, count - 1) == 0);
}

/* Say in words what a sector holds. */
extern const char *content_name (const void *sector, char *buf, size_t size);

#endif /* CRASH_CONTENT_H */
