/* SPDX-License-Identifier: BSD-3-Clause */

/* LUKS enciphers data by its place in the file: what moves is deciphered where it
 * was, and enciphered for where it goes.  Tables and compressed data are in the
 * clear, as in QEMU, and move as they are; so does what no entry reads, the
 * clusters below zeros.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/compact-parts.h"
#include "qcow2/entry.h"

static int
no_memory (const struct compact *c)
{
  error_set (ENOMEM, "%s: out of memory", c->e.storage->name);
  return -1;
}

/* These clusters have something of this kind. */
static int
mark (struct compact *c, uint64_t first, uint64_t nr, enum compact_kind kind)
{
  uint64_t i;

  for (i = first; i < first + nr; ++i) {
    const struct compact_move *m = compact_find_move (c, i);
    uint8_t *k = m == NULL ? NULL : &c->kind[m - c->move];

    if (k == NULL)
      continue;
    *k |= kind;
    if (*k == (COMPACT_AS_IT_IS | COMPACT_ENCIPHERED)) {
      error_set (EIO, "%s: damaged: the cluster at offset 0x%" PRIx64 " is in use "
                 "for data both compressed and enciphered", c->e.storage->name,
                 i << c->e.header.cluster_bits);
      return -1;
    }
  }
  return 0;
}

static int
mark_entry (struct compact *c, const struct l2_entry *e)
{
  const unsigned bits = c->e.header.cluster_bits;
  const uint64_t first = e->host.v >> bits;

  switch (e->kind) {
  case CLUSTER_STANDARD:
    return mark (c, first, 1, COMPACT_ENCIPHERED);
  case CLUSTER_SUBCLUSTERS:
    return e->allocated == 0 ? 0 : mark (c, first, 1, COMPACT_ENCIPHERED);
  case CLUSTER_COMPRESSED:
    return mark (c, first,
                 ((e->host.v + e->compressed_size - 1) >> bits) - first + 1,
                 COMPACT_AS_IT_IS);
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
  case CLUSTER_INVALID: /* the check has found none */
    break;
  }
  return 0;
}

static int
mark_table (struct compact *c, const uint64_t *words)
{
  const unsigned step = c->e.format.extended_l2 ? 2 : 1;
  const uint64_t nr = c->e.header.cluster_size / sizeof *words;
  uint64_t i;

  for (i = 0; i < nr; i += step) {
    const struct l2_entry e =
      entry_decode_l2 (&c->e.format, be64toh (words[i]),
                       step == 2 ? be64toh (words[i + 1]) : 0);

    if (mark_entry (c, &e) == -1)
      return -1;
  }
  return 0;
}

int
compact_find_enciphered (struct compact *c)
{
  uint64_t *words;
  size_t i;
  int r = 0;

  if (c->e.header.encryption != ENCRYPTION_LUKS || c->nr_moves == 0)
    return 0;
  c->kind = calloc (c->nr_moves, sizeof c->kind[0]);
  words = malloc (c->e.header.cluster_size);
  if (c->kind == NULL || words == NULL)
    r = no_memory (c);
  for (i = 0; r == 0 && i < c->nr_l2; ++i) {
    r = storage_read (c->e.storage, words, c->e.header.cluster_size,
                      (struct host_off) { c->l2[i].table });
    if (r == 0)
      r = mark_table (c, words);
  }
  free (words);
  return r;
}

struct storage *
compact_door (const struct compact *c, size_t i)
{
  return c->kind != NULL && c->kind[i] == COMPACT_ENCIPHERED
    ? c->options->data : c->e.storage;
}
