/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/leaks.c, where requests meet the search at the worst moment:
 * either is held up until the other has come so far.
 */

#include <config.h>

#include <sched.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "image-check.h"
#include "must-have.h"
#include "rig.h"

#define CLUSTER UINT64_C (4096)
#define CLUSTERS 512 /* one L2 table has them all */

static struct rig rig;

/* ------------------------------------------------------------- what happens */

/* The threads that are the test's own; all others are the search's. */
static _Thread_local bool is_ours;

/* A call of these kinds within this range of the file stops at the gate until
 * it is opened.  Once.  One is for our own threads, and one for the search.
 */
enum side { SEARCH, OURS };

static struct gate {
  _Atomic unsigned kinds;
  _Atomic uint64_t from, to;
  _Atomic bool reached, open;
} gates[2];

static void
pass_gate (void *opaque, const struct memory_call *call)
{
  struct gate *g = &gates[is_ours ? OURS : SEARCH];

  (void) opaque;
  if (!(call->kind & g->kinds) || call->offset >= g->to ||
      call->offset + call->count <= g->from ||
      atomic_exchange (&g->reached, true))
    return;
  while (!atomic_load (&g->open))
    sched_yield ();
}

static void
close_gate (enum side side, unsigned kinds, uint64_t from, uint64_t count)
{
  struct gate *g = &gates[side];

  g->kinds = 0;
  g->open = g->reached = false;
  g->from = from;
  g->to = from + count;
  g->kinds = kinds;
}

static void
wait_for_gate (enum side side)
{
  while (!atomic_load (&gates[side].reached))
    sched_yield ();
}

static void
open_gate (enum side side)
{
  atomic_store (&gates[side].open, true);
}

/* How often the search has looked whether requests have ended, since it saw to
 * it that the reserve is not taken for leaked.
 */
static _Atomic bool reserve_seen;
static _Atomic unsigned looks;

extern void __real_alloc_not_leaked (struct alloc *s);
extern void __wrap_alloc_not_leaked (struct alloc *s);
extern void __real_epoch_advance (struct epoch *e, uint64_t then);
extern void __wrap_epoch_advance (struct epoch *e, uint64_t then);

void
__wrap_alloc_not_leaked (struct alloc *s)
{
  __real_alloc_not_leaked (s);
  atomic_store (&reserve_seen, true);
}

void
__wrap_epoch_advance (struct epoch *e, uint64_t then)
{
  __real_epoch_advance (e, then);
  if (!is_ours && atomic_load (&reserve_seen))
    atomic_fetch_add (&looks, 1);
}

/* It waits for a request; or, which would be wrong, it does not, and is through
 * or at its gate.
 */
static void
wait_until_it_waits (void)
{
  while (atomic_load (&looks) < 20 && !image_leaks_are_done (rig.im) &&
         !atomic_load (&gates[SEARCH].reached))
    sched_yield ();
}

static void
wait_until_done (void)
{
  while (!image_leaks_are_done (rig.im))
    sched_yield ();
}

/* ------------------------------------------------------------------ images */

/* Every second of the first clusters has data.  copied: whether the L1 entry
 * says that its table is the disk's alone.
 */
static uint64_t first_table;

static void
start (const char *what, bool copied)
{
  struct builder b;
  uint64_t i;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, CLUSTERS * CLUSTER);
  for (i = 0; i < 20; i += 2)
    build_entry (&b, i, build_data (&b, i + 1), 0);
  build_finish (&b);
  first_table = get_be64 (b.data + b.l1_offset) & QCOW2_ENTRY_OFFSET_MASK;
  if (!copied)
    b.data[b.l1_offset] &= 0x7f;
  rig_init (&rig, what, &b);
  build_free (&b);
  rig.control.hook = pass_gate;
  rig.cache_size = 1 << 20; /* never crowded: nothing else starts one */
  memset (gates, 0, sizeof gates);
  reserve_seen = false;
  looks = 0;
  rig_open (&rig);
}

static void
end (void)
{
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

/* Write to clusters that have nothing, until one gets that host cluster.
 * Backwards, so that none are set apart for those that follow.
 */
static void
use_again (uint64_t host)
{
  uint64_t i;

  for (i = CLUSTERS - 1; i > 100; --i) {
    rig_write (&rig, i * CLUSTER, CLUSTER, i);
    if (rig_host (&rig, i * CLUSTER) == host)
      return;
  }
  check_failed (__FILE__, __LINE__, "%s: the cluster was not used again",
                rig.what);
}

/* ------------------------------------------------------------------- tests */

/* While the search is about to read the table, a cluster in there is given up,
 * and used again elsewhere.
 */
static void
test_given_up (void)
{
  uint64_t host;

  start ("given up", true);
  host = rig_host (&rig, 4 * CLUSTER);
  close_gate (SEARCH, MEMORY_READ, first_table, CLUSTER);
  image_free_leaks (rig.im);
  wait_for_gate (SEARCH);
  rig_trim (&rig, 4 * CLUSTER, CLUSTER);
  rig_flush (&rig);
  use_again (host);
  open_gate (SEARCH);
  wait_until_done ();
  end ();
}

/* A write of another thread. */
static int request_result;
#define REQUEST (60 * CLUSTER)

static void *
request_main (void *opaque)
{
  uint8_t *buf = must_have (malloc (CLUSTER));

  (void) opaque;
  is_ours = true;
  build_pattern (buf, CLUSTER, 77);
  request_result = image_write (rig.im, buf, CLUSTER,
                                (struct guest_off) { REQUEST }, 0);
  free (buf);
  return NULL;
}

/* It is held up with a cluster in its hands, while the search goes on as far as
 * it may.  Returns that cluster.
 */
static uint64_t
hold_up (pthread_t *thread)
{
  uint64_t host;

  rig_write (&rig, 50 * CLUSTER, CLUSTER, 1); /* which has a reserve made */
  host = rig_host (&rig, 50 * CLUSTER) + CLUSTER;
  rig_flush (&rig);
  close_gate (OURS, MEMORY_WRITE, host, CLUSTER);
  pthread_create (thread, NULL, request_main, NULL);
  wait_for_gate (OURS);
  image_free_leaks (rig.im);
  wait_until_it_waits ();
  return host;
}

/* What it had is given back, and used again while the search is about to read
 * the table.
 */
static void
test_given_back (void)
{
  pthread_t thread;
  uint64_t host;

  start ("given back", true);
  close_gate (SEARCH, MEMORY_READ, first_table, CLUSTER);
  host = hold_up (&thread);
  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  open_gate (OURS);
  pthread_join (thread, NULL);
  CHECK_EQ (request_result, (uint64_t) -1);
  wait_for_gate (SEARCH);
  use_again (host);
  open_gate (SEARCH);
  wait_until_done ();
  end ();
}

/* Nothing is mapped of it yet. */
static void
test_under_way (void)
{
  pthread_t thread;
  uint64_t host;

  start ("under way", true);
  host = hold_up (&thread);
  open_gate (OURS);
  pthread_join (thread, NULL);
  CHECK_OK (request_result);
  build_pattern (rig.content + REQUEST, CLUSTER, 77);
  wait_until_done ();
  CHECK_EQ (rig_host (&rig, REQUEST), host);
  end ();
}

/* The table is copied while the search is about to read it, which finds zeros
 * in its place.
 */
static void
test_copied (void)
{
  start ("copied", false);
  close_gate (SEARCH, MEMORY_READ, first_table, CLUSTER);
  image_free_leaks (rig.im);
  wait_for_gate (SEARCH);
  rig_write (&rig, 4 * CLUSTER, CLUSTER, 5);
  rig_flush (&rig);
  open_gate (SEARCH);
  wait_until_done ();
  end ();
}

int
main (void)
{
  is_ours = true;
  check_time_limit (100);
  test_given_up ();
  test_given_back ();
  test_under_way ();
  test_copied ();
  return check_result ();
}
