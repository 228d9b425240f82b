/* SPDX-License-Identifier: BSD-3-Clause */

/* A writer whose layer has two doors: tables and data are two storages in memory,
 * and it is noted what these are asked for.  One at a time.
 */

#ifndef UNIT_DOORS_RIG_H
#define UNIT_DOORS_RIG_H

#include "bare-writer.h"
#include "build.h"

#define SECTOR 512
#define DATA_BYTES (UINT64_C (16) << 20)
#define GARBAGE 0xe5
#define BASE 0xba /* what a backing file is full of */
#define CLUSTERS 40

struct form {
  const char *what;
  unsigned version, bits;
  bool extended, backing, garbage; /* in data that were never written */
  unsigned compress_level;
  bool data_file, raw; /* an external one, and it is a raw image */
  bool enciphered, fixed; /* holes are not zeros; a device */
};

/* What the storages are asked for that changes them, in order. */
#define MAX_EVENTS 10000

struct event {
  bool data; /* else tables */
  struct memory_call call;
};

struct doors {
  const struct form *form;
  struct memory_disk disk[2]; /* tables, data */
  struct memory_control control[2];
  struct bare_writer bare;
  struct event event[MAX_EVENTS];
  size_t nr_events;
  uint64_t size;      /* of the guest's disk */
  uint8_t *content;   /* that it should have */
  bool others_append; /* to the data file, when it is made longer */
};
extern struct doors doors;

/* Open an image of nothing but an empty L2 table for writing. */
extern void doors_start (const struct form *f);

/* Close it, and see that all of it is on the storages. */
extern void doors_end (void);

/* Open it for reading; and for writing, with what it reads as, once something was
 * changed on the storages.
 */
extern void doors_open (void);
extern void doors_open_again (void);

/* Requests that go well, to the model as well. */
extern void doors_write (uint64_t offset, uint64_t count, uint64_t seed,
                         unsigned flags);
extern void doors_zero (uint64_t offset, uint64_t count, unsigned flags);

/* What is read is what it should be. */
extern void doors_compare (void);

/* What the guest wrote is not among the tables, and nothing is among the data
 * but that, and what it was filled up with.
 */
extern void doors_check (void);

/* A raw data file is the disk, byte by byte; any data file holds what is mapped
 * where the guest has it.
 */
extern void doors_check_data_file (void);

/* How large a data file may be: as the disk is, or as it was at first.  One that
 * is enciphered also holds what the disk's end cuts off of its last cluster.
 */
extern uint64_t doors_data_limit (void);

/* Where the entry of the first cluster is. */
extern uint64_t doors_first_entry (void);

/* The guest's offset of a cluster. */
static inline uint64_t
cluster (uint64_t nr)
{
  return nr << doors.form->bits;
}

#endif /* UNIT_DOORS_RIG_H */
