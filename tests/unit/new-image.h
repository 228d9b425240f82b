/* SPDX-License-Identifier: BSD-3-Clause */

/* New images in memory, and whether they are what was asked for. */

#ifndef UNIT_NEW_IMAGE_H
#define UNIT_NEW_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "manage/create.h"
#include "memory-storage.h"

struct new_image {
  struct memory_disk disk;
  struct memory_control control;
  char what[200]; /* is being made, for messages */
};

/* A storage that holds these bytes; NULL: it is empty. */
extern void new_image_init (struct new_image *n,
                            const struct create_options *o,
                            const void *bytes, uint64_t size);
extern void new_image_free (struct new_image *n);

/* Make it.  Returns what core/ did. */
extern int new_image_create (struct new_image *n,
                             const struct create_options *o);

/* Whether there is something that can be opened. */
extern bool new_image_opens (struct new_image *n);

/* Look at the header, the tables, and the disk, which is written to. */
extern void new_image_check (struct new_image *n,
                             const struct create_options *o);

#define NEW_IMAGE_SECTOR 512

static inline uint64_t
divide_up (uint64_t a, uint64_t b)
{
  return a / b + (a % b != 0);
}

/* The bytes of the disk that one L2 table maps. */
static inline uint64_t
reach (const struct create_options *o)
{
  return o->cluster_size / (o->extended_l2 ? 16 : 8) * o->cluster_size;
}

/* A disk's size, as it is in the header. */
static inline uint64_t
rounded (uint64_t size)
{
  return divide_up (size, NEW_IMAGE_SECTOR) * NEW_IMAGE_SECTOR;
}

#endif /* UNIT_NEW_IMAGE_H */
