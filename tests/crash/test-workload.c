/* SPDX-License-Identifier: BSD-3-Clause */

/* Whether the systematic scripts do what they are for: each kind of request to
 * each kind of cluster, in part and as a whole; and whether among the images
 * is what there can be.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "checker.h"
#include "qcow2/entry.h"
#include "workload.h"

/* A request, but for where it goes to. */
enum { NR_REQUESTS = 9, PART = 0, WHOLE = 1 };

static const struct request requests[NR_REQUESTS] = {
  { .kind = REQUEST_WRITE },
  { .kind = REQUEST_WRITE, .fua = true },
  { .kind = REQUEST_ZERO },
  { .kind = REQUEST_ZERO, .fua = true },
  { .kind = REQUEST_ZERO, .may_trim = true },
  { .kind = REQUEST_ZERO, .may_trim = true, .fua = true },
  { .kind = REQUEST_ZERO, .may_trim = true, .fast = true },
  { .kind = REQUEST_TRIM },
  { .kind = REQUEST_TRIM, .fua = true },
};

static unsigned
request_number (const struct request *r)
{
  unsigned i;

  for (i = 0; i < NR_REQUESTS; ++i) {
    const struct request *x = &requests[i];

    if (r->kind == x->kind && r->fua == x->fua && r->fast == x->fast &&
        r->may_trim == x->may_trim)
      break;
  }
  return i;
}

/* What was done to which kind of cluster. */
static bool done[MADE_STATES][NR_REQUESTS][2];

static void
note_first (const struct made *m, const struct script *s)
{
  const struct request *r = &s->request[0];
  const uint64_t end = r->offset + r->count;
  const unsigned number = s->nr > 0 ? request_number (r) : NR_REQUESTS;
  uint64_t i;

  if (number == NR_REQUESTS)
    return;
  for (i = r->offset / m->cluster_size; i * m->cluster_size < end; ++i) {
    const uint64_t at = i * m->cluster_size;
    const bool whole = r->offset <= at && end >= at + m->cluster_size;

    done[m->state[i]][number][whole ? WHOLE : PART] = true;
  }
}

static uint64_t
test_image (const struct made *m)
{
  const uint64_t nr = script_systematic_nr (m);
  struct script *s = malloc (sizeof *s);
  bool *seen = calloc (nr, sizeof *seen), has[MADE_STATES] = { false };
  unsigned state, i;
  uint64_t n;

  if (s == NULL || seen == NULL)
    abort ();
  memset (done, 0, sizeof done);
  for (n = 0; n < nr; ++n) {
    const uint64_t scattered = script_scattered (m, n);

    CHECK (scattered < nr && !seen[scattered]);
    seen[scattered] = true;
    CHECK (script_systematic (s, m, n));
    note_first (m, s);
  }
  CHECK (!script_systematic (s, m, nr));
  for (n = 0; n < m->nr_clusters; ++n)
    has[m->state[n]] = true;
  for (state = 0; state < MADE_STATES; ++state) {
    for (i = 0; has[state] && i < NR_REQUESTS; ++i) {
      if (!done[state][i][PART] || !done[state][i][WHOLE])
        check_failed (__FILE__, __LINE__, "%s: request %u on a cluster of "
                      "state %u is missing", m->name, i, state);
    }
  }
  free (seen);
  free (s);
  return nr;
}

/* What some image must have, noted as bits. */
static uint64_t versions, sizes, extended_sizes, widths, compressions, states;
static unsigned snapshots, lazy, short_backing, long_backing;
static unsigned shared_compressed;

/* Whether two compressed clusters of the live disk are in one host cluster. */
static bool
shares_compressed (const struct made *m)
{
  const unsigned x = 62 - (m->cluster_bits - 8), bytes = m->extended ? 16 : 8;
  const uint64_t l1 = get_be64 (m->bytes + 40);
  const uint64_t table = get_be64 (m->bytes + l1) & QCOW2_ENTRY_OFFSET_MASK;
  uint64_t last = 0, i, nr = m->cluster_size / bytes;
  bool shares = false;

  for (i = 0; table != 0 && i < nr; ++i) {
    const uint64_t word = get_be64 (m->bytes + table + i * bytes);
    const uint64_t at = word & ((UINT64_C (1) << x) - 1);

    if (!(word & QCOW2_L2_COMPRESSED))
      continue;
    shares |= at >> m->cluster_bits == last;
    last = at >> m->cluster_bits;
  }
  return shares;
}

static void
note_image (const struct made *m)
{
  uint64_t i;

  versions |= UINT64_C (1) << m->version;
  if (m->extended)
    extended_sizes |= m->cluster_size;
  else
    sizes |= m->cluster_size;
  widths |= UINT64_C (1) << m->refcount_order;
  compressions |= UINT64_C (1) << m->compression;
  for (i = 0; i < m->nr_clusters; ++i)
    states |= UINT64_C (1) << m->state[i];
  snapshots += m->nr_snapshots > 0;
  lazy += m->lazy;
  short_backing += m->backing != NULL && m->backing_size < m->disk_size;
  long_backing += m->backing != NULL && m->backing_size > m->disk_size;
  shared_compressed += shares_compressed (m);
}

static void
check_images (void)
{
  CHECK_EQ (versions, 1 << 2 | 1 << 3);
  CHECK_EQ (sizes & (512 | 1024 | 4096 | 65536), 512 | 1024 | 4096 | 65536);
  CHECK_EQ (extended_sizes & (16384 | 65536), 16384 | 65536);
  CHECK_EQ (widths, 0x7f);
  CHECK_EQ (compressions, 1 << COMPRESSION_DEFLATE | 1 << COMPRESSION_ZSTD);
  CHECK_EQ (states, (1 << MADE_STATES) - 1);
  CHECK (snapshots > 0 && lazy > 0);
  CHECK (short_backing > 0 && long_backing > 0);
  CHECK (shared_compressed > 0);
}

int
main (void)
{
  uint64_t scripts = 0;
  unsigned i;

  for (i = 0; made_names[i] != NULL; ++i) {
    struct made m;

    if (!made_image (&m, made_names[i]))
      abort ();
    note_image (&m);
    scripts += test_image (&m);
    made_free (&m);
  }
  check_images ();
  printf ("%u images, %" PRIu64 " systematic scripts\n", i, scripts);
  return check_result ();
}
