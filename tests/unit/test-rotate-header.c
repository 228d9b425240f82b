/* SPDX-License-Identifier: BSD-3-Clause */

/* The refcount table moves while the header's sector is written for a snapshot and its
 * bitmaps: the sector, which was read before, has the table's old place in it.  The
 * thread that moves the table is started just before that is written, and goes on
 * until it waits, or is done.
 */

#include <config.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "check.h"
#include "follow-rig.h"
#include "image-check.h"
#include "qcow2/write/writer-parts.h"

#define BITS 9
#define CLUSTERS 20000 /* more than the refcount table is for */

static struct writer *w;
static struct host_off first_table;
static atomic_bool armed;
static unsigned met;
static pthread_t mover;
static __thread bool is_mover;
static atomic_bool waits, is_over;

extern int __real_pthread_mutex_lock (pthread_mutex_t *m);
extern int __wrap_pthread_mutex_lock (pthread_mutex_t *m);

int
__wrap_pthread_mutex_lock (pthread_mutex_t *m)
{
  if (is_mover && m == &w->writeback.header_lock) {
    if (pthread_mutex_trylock (m) == 0)
      return 0;
    atomic_store (&waits, true);
  }
  return __real_pthread_mutex_lock (m);
}

static void *
mover_main (void *opaque)
{
  struct alloc_clusters got = { .nr = 0 };

  is_mover = true;
  CHECK_OK (alloc_take_contiguous (&w->alloc, CLUSTERS, &got));
  alloc_give_back (&w->alloc, got.host, got.nr);
  atomic_store (&is_over, true);
  return opaque;
}

/* At the start of each call of the storage. */
static void
move_table (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (call->kind != MEMORY_WRITE || call->offset != 0 ||
      call->count != BITMAP_HEADER_SECTOR || !atomic_exchange (&armed, false))
    return;
  met++;
  CHECK_EQ (pthread_create (&mover, NULL, mover_main, NULL), 0);
  while (!atomic_load (&waits) && !atomic_load (&is_over))
    sched_yield ();
}

static struct header
header_of_disk (void)
{
  struct header h;

  CHECK_OK (header_decode ("test", rig.disk.data, UINT64_C (1) << BITS,
                           atomic_load (&rig.disk.size), &h));
  return h;
}

int
main (void)
{
  struct layer *x;

  follow_start (BITS, 0);
  CHECK_OK (image_allow_points (rig.im, 0, UINT64_C (16) << 20));
  rig.control.hook = move_table;
  rig_write (&rig, 0, 4096, 1);
  w = rig.im->writer;
  first_table = header_of_disk ().refcount_table_offset;
  atomic_store (&armed, true);
  x = image_open_disk (rig.im, "take/x?bitmap=n&disable=a");
  CHECK (x != NULL);
  CHECK_EQ (met, 1);
  CHECK_EQ (pthread_join (mover, NULL), 0);

  CHECK (w->alloc.refcounts.table.v != first_table.v);
  CHECK_EQ (header_of_disk ().refcount_table_offset.v,
            w->alloc.refcounts.table.v);
  CHECK_EQ (header_of_disk ().nr_snapshots, 1);
  image_close_disk (x);
  rig_close (&rig);
  rig_free (&rig);
  return check_result ();
}
