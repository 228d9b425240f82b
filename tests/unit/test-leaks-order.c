/* SPDX-License-Identifier: BSD-3-Clause */

/* leaks.c, where requests meet the search at the worst moment: either is held
 * up until the other has come so far.
 */

#include <config.h>

#include <sched.h>
#include <stdlib.h>

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
 * it is opened.  Once.
 */
static struct {
  _Atomic unsigned kinds;
  _Atomic uint64_t from, to;
  _Atomic bool ours;    /* for our own threads, or for the search */
  _Atomic bool reached, open;
} gate;

static void
pass_gate (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (!(call->kind & gate.kinds) || is_ours != gate.ours ||
      call->offset >= gate.to || call->offset + call->count <= gate.from ||
      atomic_exchange (&gate.reached, true))
    return;
  while (!atomic_load (&gate.open))
    sched_yield ();
}

static void
close_gate (bool ours, unsigned kinds, uint64_t from, uint64_t count)
{
  gate.kinds = 0;
  gate.open = gate.reached = false;
  gate.ours = ours;
  gate.from = from;
  gate.to = from + count;
  gate.kinds = kinds;
}

static void
wait_for_gate (void)
{
  while (!atomic_load (&gate.reached))
    sched_yield ();
}

static void
open_gate (void)
{
  atomic_store (&gate.open, true);
}

/* How often the search has looked whether requests have ended, since it saw to
 * it that the reserve is not taken for leaked.
 */
static _Atomic bool reserve_seen;
static _Atomic unsigned looks;

extern void __real_space_not_leaked (struct space *s);
extern void __wrap_space_not_leaked (struct space *s);
extern void __real_epoch_advance (struct epoch *e, uint64_t then);
extern void __wrap_epoch_advance (struct epoch *e, uint64_t then);

void
__wrap_space_not_leaked (struct space *s)
{
  __real_space_not_leaked (s);
  atomic_store (&reserve_seen, true);
}

void
__wrap_epoch_advance (struct epoch *e, uint64_t then)
{
  __real_epoch_advance (e, then);
  if (!is_ours && atomic_load (&reserve_seen))
    atomic_fetch_add (&looks, 1);
}

/* It waits for a request; or, which would be wrong, it does not. */
static void
wait_until_it_waits (void)
{
  while (atomic_load (&looks) < 20 && !image_leaks_are_done (rig.im))
    sched_yield ();
}

static void
wait_until_done (void)
{
  while (!image_leaks_are_done (rig.im))
    sched_yield ();
}

/* -------------------------------------------------------------------- images */

/* Every second of the first clusters has data; there is one leak, as shown by
 * leaks that are gone in the end.  copied: whether the L1 entry says that its
 * table is the disk's alone.
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

/* --------------------------------------------------------------------- tests */

/* While the search is about to read the table, a cluster in there is given up,
 * and used again elsewhere.
 */
static void
test_given_up (void)
{
  uint64_t host;

  start ("given up", true);
  host = rig_host (&rig, 4 * CLUSTER);
  close_gate (false, MEMORY_READ, first_table, CLUSTER);
  image_free_leaks (rig.im);
  wait_for_gate ();
  rig_trim (&rig, 4 * CLUSTER, CLUSTER);
  rig_flush (&rig);
  use_again (host);
  open_gate ();
  wait_until_done ();
  end ();
}

/* A request of another thread, which may fail. */
static struct {
  uint64_t offset;
  int r;
} request;

static void *
request_main (void *opaque)
{
  uint8_t *buf = must_have (malloc (CLUSTER));

  (void) opaque;
  is_ours = true;
  build_pattern (buf, CLUSTER, 77);
  request.r = image_write (rig.im, buf, CLUSTER,
                           (struct guest_off) { request.offset }, 0);
  free (buf);
  return NULL;
}

/* A cluster is given back that had been handed out before the search looked at
 * the reserve.  It is used again while the search is about to read the table.
 */
static void
test_given_back (void)
{
  pthread_t thread;
  uint64_t host;

  start ("given back", true);
  rig_write (&rig, 50 * CLUSTER, CLUSTER, 1); /* has a reserve made */
  host = rig_host (&rig, 50 * CLUSTER) + CLUSTER;
  rig_flush (&rig);
  close_gate (true, MEMORY_WRITE, host, CLUSTER);
  request.offset = 60 * CLUSTER;
  pthread_create (&thread, NULL, request_main, NULL);
  wait_for_gate ();
  image_free_leaks (rig.im);
  wait_until_it_waits ();
  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  open_gate ();
  pthread_join (thread, NULL);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (request.r, (uint64_t) -1);
  wait_until_done ();
  end ();
}

/* Nothing is mapped of what a request that is under way has been given. */
static void
test_under_way (void)
{
  pthread_t thread;
  uint64_t host;

  start ("under way", true);
  rig_write (&rig, 50 * CLUSTER, CLUSTER, 1);
  host = rig_host (&rig, 50 * CLUSTER) + CLUSTER;
  rig_flush (&rig);
  close_gate (true, MEMORY_WRITE, host, CLUSTER);
  request.offset = 60 * CLUSTER;
  pthread_create (&thread, NULL, request_main, NULL);
  wait_for_gate ();
  image_free_leaks (rig.im);
  wait_until_it_waits ();
  open_gate ();
  pthread_join (thread, NULL);
  CHECK_OK (request.r);
  build_pattern (rig.content + request.offset, CLUSTER, 77);
  wait_until_done ();
  CHECK_EQ (rig_host (&rig, request.offset), host);
  end ();
}

/* The table is copied while the search is about to read it, and its cluster is
 * used as something else then.
 */
static void
test_copied (void)
{
  start ("copied", false);
  close_gate (false, MEMORY_READ, first_table, CLUSTER);
  image_free_leaks (rig.im);
  wait_for_gate ();
  rig_write (&rig, 4 * CLUSTER, CLUSTER, 5);
  rig_flush (&rig);
  use_again (first_table);
  rig_zero (&rig, 101 * CLUSTER, (CLUSTERS - 101) * CLUSTER, 0);
  open_gate ();
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
