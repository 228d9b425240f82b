/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "random.h"
#include "workload.h"

static void
add (struct script *s, const struct made *m, struct request r)
{
  if (s->nr == SCRIPT_MAX)
    return;
  if (request_has_range (&r)) {
    if (r.offset >= m->disk_size)
      return;
    if (r.count > m->disk_size - r.offset)
      r.count = m->disk_size - r.offset;
    if (r.count == 0)
      return;
  }
  s->request[s->nr++] = r;
}

static void
add_write (struct script *s, const struct made *m, uint64_t offset,
           uint64_t count)
{
  add (s, m, (struct request) {
      .kind = REQUEST_WRITE, .offset = offset, .count = count,
    });
}

static void
add_trim (struct script *s, const struct made *m, uint64_t offset,
          uint64_t count)
{
  add (s, m, (struct request) {
      .kind = REQUEST_TRIM, .offset = offset, .count = count,
    });
}

static void
add_zero (struct script *s, const struct made *m, uint64_t offset,
          uint64_t count, bool may_trim)
{
  add (s, m, (struct request) {
      .kind = REQUEST_ZERO, .offset = offset, .count = count,
      .may_trim = may_trim,
    });
}

static void
add_flush (struct script *s)
{
  if (s->nr < SCRIPT_MAX)
    s->request[s->nr++] = (struct request) { .kind = REQUEST_FLUSH };
}

static void
add_reopen (struct script *s)
{
  if (s->nr < SCRIPT_MAX)
    s->request[s->nr++] = (struct request) { .kind = REQUEST_REOPEN };
}

/* A part of a cluster; what a request does is one of these times a kind. */
enum part {
  PART_BYTES,   /* within a sector, or over the edge of two */
  PART_MIDDLE,  /* a sector in the middle */
  PART_HEAD,    /* the first half */
  PART_TAIL,    /* from one and a half sectors on */
  PART_WHOLE,
  PART_AROUND,  /* half of the cluster before it to half of that after it */
  PART_SEVERAL, /* it and the two that follow */
  NR_PARTS
};

static void
part_range (const struct made *m, uint64_t cluster, enum part part,
            uint64_t *offset, uint64_t *count)
{
  const uint64_t size = m->cluster_size;
  const uint64_t at = cluster * size;

  switch (part) {
  case PART_BYTES:
    *offset = at + size / 2 + (size > SECTOR ? SECTOR - 100 : 30);
    *count = 200;
    return;
  case PART_MIDDLE:
    *offset = at + size / 2 / SECTOR * SECTOR;
    *count = SECTOR;
    return;
  case PART_HEAD:
    *offset = at;
    *count = size / 2;
    return;
  case PART_TAIL:
    *offset = at + (size > 2 * SECTOR ? SECTOR + SECTOR / 2 : SECTOR / 2);
    *count = at + size - *offset;
    return;
  case PART_WHOLE:
    *offset = at;
    *count = size;
    return;
  case PART_AROUND:
    *offset = cluster > 0 ? at - size / 2 : at;
    *count = at + size + size / 2 - *offset;
    return;
  case PART_SEVERAL:
  case NR_PARTS:
    *offset = at;
    *count = 3 * size;
    return;
  }
}

static const struct request kinds[] = {
  { .kind = REQUEST_WRITE },
  { .kind = REQUEST_WRITE, .fua = true },
  { .kind = REQUEST_ZERO },
  { .kind = REQUEST_ZERO, .may_trim = true },
  { .kind = REQUEST_TRIM },
  { .kind = REQUEST_ZERO, .may_trim = true, .fua = true },
  { .kind = REQUEST_TRIM, .fua = true },
  { .kind = REQUEST_ZERO, .may_trim = true, .fast = true },
  { .kind = REQUEST_ZERO, .fua = true },
};

#define NR_KINDS (sizeof kinds / sizeof kinds[0])
#define NR_REQUESTS (NR_KINDS * NR_PARTS)

static void
add_request (struct script *s, const struct made *m, uint64_t cluster,
             unsigned number)
{
  struct request r = kinds[number % NR_KINDS];

  part_range (m, cluster, number / NR_KINDS, &r.offset, &r.count);
  add (s, m, r);
}

/* The n-th cluster in this state; nr_clusters if there are fewer. */
static uint64_t
find_cluster (const struct made *m, enum cluster_state state, unsigned n)
{
  uint64_t i;

  for (i = 0; i < m->nr_clusters; ++i) {
    if (m->state[i] == state && n-- == 0)
      break;
  }
  return i;
}

/* Write to some clusters that take new host clusters: what was freed too
 * early, or is not as it seems, is used by these.
 */
static void
add_allocations (struct script *s, const struct made *m, unsigned nr,
                 unsigned first)
{
  unsigned i;

  for (i = first; i < first + nr; ++i) {
    const uint64_t cluster = find_cluster (m, MADE_UNALLOCATED, 3 * i + 2);
    const uint64_t at = cluster * m->cluster_size;

    if (i % 2 == 0)
      add_write (s, m, at, m->cluster_size);
    else
      add_write (s, m, at + m->cluster_size / 2, m->cluster_size / 2);
  }
}

/* One request, which is then made durable, and the use of what it may have
 * freed.
 */
static void
script_single (struct script *s, const struct made *m, uint64_t cluster,
               unsigned request)
{
  add_request (s, m, cluster, request);
  add_flush (s);
  add_allocations (s, m, 2, 0);
  add_flush (s);
}

/* Requests that have damaged images of others, or that stress one part. */
enum scenario {
  SCENARIO_TRIM_REUSE,
  SCENARIO_TRIM_REUSE_UNFLUSHED,
  SCENARIO_COPY_STORM,
  SCENARIO_ZERO_CYCLE,
  SCENARIO_FILL,
  SCENARIO_FILL_BY_PIECES,
  SCENARIO_FLUSH_STORM,
  SCENARIO_WHOLE_DISK,
  SCENARIO_FAR_TABLES,
  SCENARIO_REOPEN,
  SCENARIO_OVERWRITE,
  SCENARIO_GATHER,
  SCENARIO_PACK,
  SCENARIO_DURABLE,
  SCENARIO_CHURN,
  NR_SCENARIOS
};

static void
trim_reuse (struct script *s, const struct made *m, bool flush)
{
  uint64_t i;
  unsigned n = 0;

  for (i = 0; i < m->nr_clusters && n < 4; ++i) {
    if (m->state[i] == MADE_UNALLOCATED)
      continue;
    add_trim (s, m, i * m->cluster_size, 2 * m->cluster_size);
    if (flush)
      add_flush (s);
    add_allocations (s, m, 2, 2 * n);
    if (flush)
      add_flush (s);
    add_write (s, m, i * m->cluster_size, m->cluster_size);
    n++;
  }
  add_flush (s);
  add_allocations (s, m, 3, 0);
  add_flush (s);
}

/* A sector of each cluster, so that all that can't be written in place is
 * copied; twice, since the second time finds it in place.
 */
static void
copy_storm (struct script *s, const struct made *m)
{
  const uint64_t limit = m->nr_clusters < 20 ? m->nr_clusters : 20;
  unsigned round;
  uint64_t i;

  for (round = 0; round < 2; ++round) {
    for (i = 0; i < limit; ++i)
      add_write (s, m, i * m->cluster_size + m->cluster_size / 4, 200);
    add_flush (s);
  }
}

static void
zero_cycle (struct script *s, const struct made *m)
{
  const uint64_t n = 12 * m->cluster_size;
  unsigned round;

  for (round = 0; round < 2; ++round) {
    add_zero (s, m, round * m->cluster_size / 2, n, round == 1);
    add_flush (s);
    add_write (s, m, m->cluster_size * 3 / 2, 3 * m->cluster_size);
    add_trim (s, m, 0, 2 * m->cluster_size);
    add_write (s, m, m->cluster_size / 2, m->cluster_size);
    add_flush (s);
  }
}

/* Every cluster of the disk that has none, so that all grows. */
static void
fill (struct script *s, const struct made *m, bool by_pieces)
{
  const uint64_t step = by_pieces ? m->cluster_size : 5 * m->cluster_size;
  uint64_t at;
  unsigned n = 0;

  for (at = m->disk_size / 4; at < m->disk_size && n < 60; at += step, ++n) {
    if (by_pieces)
      add_write (s, m, at + m->cluster_size / 2, m->cluster_size / 2);
    else
      add_write (s, m, at, step);
    if (n % 8 == 7)
      add_flush (s);
  }
  add_flush (s);
}

static void
flush_storm (struct script *s, const struct made *m)
{
  unsigned i;

  for (i = 0; i < 12; ++i) {
    add_allocations (s, m, 1, i);
    add_flush (s);
    add_write (s, m, i * m->cluster_size, SECTOR);
    add_flush (s);
  }
}

static void
whole_disk (struct script *s, const struct made *m)
{
  add_zero (s, m, 0, m->disk_size, true);
  add_flush (s);
  add_write (s, m, 0, m->disk_size);
  add_flush (s);
  add_trim (s, m, 0, m->disk_size);
  add_flush (s);
  add_write (s, m, m->cluster_size / 2, m->disk_size / 2);
  add_zero (s, m, 0, m->disk_size, false);
  add_flush (s);
}

/* A little in the reach of each L2 table, more of them than a small cache
 * holds; back and forth, without a flush.
 */
static void
far_tables (struct script *s, const struct made *m)
{
  const uint64_t reach =
    m->cluster_size / (m->extended ? 16 : 8) * m->cluster_size;
  unsigned round;
  uint64_t at;

  for (round = 0; round < 2; ++round) {
    for (at = (round + 7) * m->cluster_size; at < m->disk_size; at += reach)
      add_write (s, m, at, m->cluster_size / 2);
    for (at = 3 * m->cluster_size; at < m->disk_size; at += 2 * reach)
      add_trim (s, m, at, m->cluster_size);
  }
  add_flush (s);
}

static void
reopen (struct script *s, const struct made *m)
{
  add_allocations (s, m, 3, 0);
  add_reopen (s);
  add_trim (s, m, 0, 4 * m->cluster_size);
  add_reopen (s);
  add_write (s, m, m->cluster_size, m->cluster_size);
  add_allocations (s, m, 3, 3);
  add_flush (s);
}

static void
overwrite (struct script *s, const struct made *m)
{
  unsigned i;

  for (i = 0; i < 6; ++i) {
    add_write (s, m, 2 * m->cluster_size + i * 100, m->cluster_size);
    if (i % 3 == 2)
      add_flush (s);
    add_write (s, m, 2 * m->cluster_size, 2 * SECTOR);
  }
}

/* Clusters that are compressed when the last of their pieces comes: in order,
 * and the second time in pieces of each other.
 */
static void
gather (struct script *s, const struct made *m)
{
  const uint64_t quarter = m->cluster_size / 4;
  unsigned i;

  for (i = 0; i < 16; ++i)
    add_write (s, m, m->cluster_size + i * quarter, quarter);
  add_flush (s);
  for (i = 0; i < 32; ++i)
    add_write (s, m, m->cluster_size + i % 8 * 4 * quarter + i / 8 * quarter,
               quarter);
  add_flush (s);
  add_allocations (s, m, 2, 0);
  add_flush (s);
}

/* Compressed clusters share host clusters; these are given up by and by, and
 * used again.
 */
static void
pack (struct script *s, const struct made *m)
{
  unsigned round, i;

  for (round = 0; round < 3; ++round) {
    for (i = 0; i < 6; ++i)
      add_write (s, m, (round + i) * m->cluster_size, m->cluster_size);
    add_flush (s);
    add_trim (s, m, 0, 4 * m->cluster_size);
    add_write (s, m, 5 * m->cluster_size + 100, 100);
    add_flush (s);
  }
  add_write (s, m, 0, 6 * m->cluster_size);
  add_flush (s);
}

/* FUA in place, where the mapping is not durable yet; on each kind of
 * cluster.
 */
static void
durable (struct script *s, const struct made *m)
{
  unsigned state;

  for (state = 0; state < MADE_STATES; ++state) {
    const uint64_t at = find_cluster (m, state, 0) * m->cluster_size;

    add_write (s, m, at, m->cluster_size);
    add (s, m, (struct request) {
        .kind = REQUEST_WRITE, .offset = at + m->cluster_size / 2,
        .count = SECTOR, .fua = true,
      });
  }
}

/* Half of the disk again and again, so that the reserve is used up and filled
 * with what was freed.
 */
static void
churn (struct script *s, const struct made *m)
{
  const uint64_t half = m->nr_clusters / 2 * m->cluster_size;
  unsigned i;

  for (i = 0; i < 8; ++i) {
    add_write (s, m, 0, half);
    if (i % 3 == 0)
      add_flush (s);
    add_trim (s, m, 0, half);
    if (i % 2 == 0)
      add_flush (s);
    add_write (s, m, half + i * m->cluster_size, m->cluster_size / 2);
  }
  add_flush (s);
}

static void
script_scenario (struct script *s, const struct made *m, enum scenario n)
{
  switch (n) {
  case SCENARIO_TRIM_REUSE:
    trim_reuse (s, m, true);
    return;
  case SCENARIO_TRIM_REUSE_UNFLUSHED:
    trim_reuse (s, m, false);
    return;
  case SCENARIO_COPY_STORM:
    copy_storm (s, m);
    return;
  case SCENARIO_ZERO_CYCLE:
    zero_cycle (s, m);
    return;
  case SCENARIO_FILL:
    fill (s, m, false);
    return;
  case SCENARIO_FILL_BY_PIECES:
    fill (s, m, true);
    return;
  case SCENARIO_FLUSH_STORM:
    flush_storm (s, m);
    return;
  case SCENARIO_WHOLE_DISK:
    if (m->disk_size <= 4 << 20)
      whole_disk (s, m);
    return;
  case SCENARIO_FAR_TABLES:
    far_tables (s, m);
    return;
  case SCENARIO_REOPEN:
    reopen (s, m);
    return;
  case SCENARIO_OVERWRITE:
    overwrite (s, m);
    return;
  case SCENARIO_GATHER:
    if (m->zip)
      gather (s, m);
    return;
  case SCENARIO_PACK:
    if (m->zip)
      pack (s, m);
    return;
  case SCENARIO_DURABLE:
    durable (s, m);
    return;
  case SCENARIO_CHURN:
    if (m->disk_size <= 4 << 20)
      churn (s, m);
    return;
  case NR_SCENARIOS:
    return;
  }
}

uint64_t
script_systematic_nr (const struct made *m)
{
  uint64_t nr = NR_SCENARIOS;
  unsigned state;

  for (state = 0; state < MADE_STATES; ++state) {
    if (find_cluster (m, state, 0) < m->nr_clusters)
      nr += NR_REQUESTS;
  }
  return nr;
}

bool
script_systematic (struct script *s, const struct made *m, uint64_t number)
{
  unsigned state;

  s->nr = 0;
  if (number < NR_SCENARIOS) {
    script_scenario (s, m, number);
    return true;
  }
  number -= NR_SCENARIOS;
  for (state = 0; state < MADE_STATES; ++state) {
    const uint64_t beside = find_cluster (m, state, 0);
    const uint64_t apart = find_cluster (m, state, 1);

    if (beside == m->nr_clusters)
      continue;
    if (number < NR_REQUESTS) {
      script_single (s, m, apart < m->nr_clusters && number % 2 ? apart
                     : beside, number);
      return true;
    }
    number -= NR_REQUESTS;
  }
  return false;
}

static uint64_t
name_hash (const struct made *m)
{
  uint64_t hash = 0;
  const char *p;

  for (p = m->name; *p != '\0'; ++p)
    hash = mix (hash + *p);
  return hash >> 40;
}

/* i of n as a place among n, so that the first few are from all over. */
static uint64_t
scatter (uint64_t i, uint64_t n)
{
  uint64_t step = n * 5 / 8 | 1, a, b, t;

  for (;; step += 2) {
    for (a = step, b = n; b != 0; t = a % b, a = b, b = t)
      ;
    if (a == 1)
      return i % n * step % n;
  }
}

/* Every other one is a scenario at first; each image begins elsewhere. */
uint64_t
script_scattered (const struct made *m, uint64_t number)
{
  const uint64_t requests = script_systematic_nr (m) - NR_SCENARIOS;
  const uint64_t shift = name_hash (m);

  if (number < 2 * NR_SCENARIOS && number % 2 == 0)
    return (number / 2 + shift) % NR_SCENARIOS;
  number -= number < 2 * NR_SCENARIOS ? number / 2 + 1 : NR_SCENARIOS;
  return NR_SCENARIOS + scatter (number + shift, requests);
}

void
script_pair (struct script *s, const struct made *m, uint64_t seed)
{
  uint64_t random = mix (seed + 77);
  uint64_t cluster;

  s->nr = 0;
  do
    cluster = find_cluster (m, random_below (&random, MADE_STATES),
                            random_below (&random, 2));
  while (cluster == m->nr_clusters);
  add_request (s, m, cluster, random_below (&random, NR_REQUESTS));
  if (random_below (&random, 2) == 0)
    add_flush (s);
  if (random_below (&random, 3) == 0)
    add_allocations (s, m, 1, 5);
  add_request (s, m, cluster, random_below (&random, NR_REQUESTS));
  if (random_below (&random, 2) == 0)
    add_flush (s);
  add_allocations (s, m, 2, 0);
  add_flush (s);
}

/* A range: often of whole clusters, often near where things are. */
static void
random_range (const struct made *m, struct request *r, uint64_t *random)
{
  const uint64_t near = m->nr_clusters < 30 ? m->nr_clusters : 30;
  const uint64_t clusters =
    random_below (random, 3) == 0 ? m->nr_clusters : near;
  const uint64_t unit = m->subcluster_size;

  r->offset = random_below (random, clusters) * m->cluster_size;
  r->count = (1 + random_below (random, 3)) * m->cluster_size;
  switch (random_below (random, 6)) {
  case 0: /* whole clusters */
    return;
  case 1: /* bytes */
    r->offset += random_below (random, m->cluster_size);
    r->count = 1 + random_below (random, r->count);
    return;
  case 2: /* subclusters */
    r->offset += random_below (random, m->cluster_size / unit) * unit;
    r->count = (1 + random_below (random, 4)) * unit;
    return;
  case 3: /* many clusters */
    r->count = (1 + random_below (random, 12)) * m->cluster_size;
    return;
  default: /* sectors */
    r->offset += random_below (random, m->cluster_size / SECTOR) * SECTOR;
    r->count = (1 + random_below (random, 4)) * SECTOR;
    return;
  }
}

static struct request
random_request (const struct made *m, uint64_t *random)
{
  const unsigned n = random_below (random, 100);
  struct request r = { .kind = REQUEST_WRITE };

  if (n < 12) {
    r.kind = REQUEST_FLUSH;
    return r;
  }
  if (n < 13) {
    r.kind = REQUEST_REOPEN;
    return r;
  }
  if (n < 28)
    r.kind = REQUEST_TRIM;
  else if (n < 48)
    r.kind = REQUEST_ZERO;
  r.may_trim = r.kind == REQUEST_ZERO && random_below (random, 2) == 0;
  r.fast = r.may_trim && random_below (random, 5) == 0;
  r.fua = random_below (random, 12) == 0;
  random_range (m, &r, random);
  return r;
}

void
script_random (struct script *s, const struct made *m, uint64_t seed,
               unsigned nr)
{
  uint64_t random = mix (seed + 1);
  unsigned i;

  s->nr = 0;
  for (i = 0; i < nr; ++i)
    add (s, m, random_request (m, &random));
}

void
script_churn (struct script *s, const struct made *m, uint64_t seed,
              unsigned nr)
{
  const uint64_t near = m->nr_clusters < 64 ? m->nr_clusters : 64;
  uint64_t random = mix (seed + 5);
  unsigned i;

  s->nr = 0;
  for (i = 0; i < nr; ++i) {
    const uint64_t at = random_below (&random, near) * m->cluster_size;
    const uint64_t count = (1 + random_below (&random, 16)) * m->cluster_size;
    const unsigned n = random_below (&random, 100);

    if (n < 40)
      add_write (s, m, at, count);
    else if (n < 70)
      add_trim (s, m, at, count);
    else if (n < 90)
      add_write (s, m, at + random_below (&random, m->cluster_size / SECTOR)
                 * SECTOR, SECTOR);
    else
      add_flush (s);
  }
}
