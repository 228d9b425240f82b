/* SPDX-License-Identifier: BSD-3-Clause */

/* Snapshots that can't be made, when much was done for them already: all of that is
 * taken back, while one thing or another fails, or other clients do what they may.
 * The image is dirty then, or it is as it should be, with refcounts and COPIED flags
 * that agree (K6).
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "../crash/checker.h"
#include "base/bytes.h"
#include "check.h"
#include "image.h"
#include "no-memory.h"
#include "qcow2/l2-range.h"
#include "qcow2/write/take-parts.h"
#include "rig.h"

/* Of a cluster each: tables of the disk, which has twice as many slices of its
 * refcounts and tables as there are in the cache.
 */
#define BITS 9
#define PER_TABLE 64
#define TABLES 20
#define CLUSTERS (TABLES * PER_TABLE)

static struct rig rig;

/* What happens while a take is undone; all zeros: nothing. */
struct events {
  /* This storage call fails, and maybe all later ones. */
  unsigned kinds;
  uint64_t call;
  int err;
  bool ever_after;

  unsigned allocation; /* this one fails */

  /* Somebody flushes before that slice is given up: so there are two lists. */
  unsigned flush_at;

  /* A reader is slow, so that nothing is lowered before all is given up.  Then this
   * read fails of those that lower refcounts, and the first allocation.
   */
  uint64_t slow_read;
  bool slow_allocation;

  /* Before the flush that is waited for another one finds no space, and has this
   * allocation fail; then a reader is slow.
   */
  bool before_flush;
  unsigned before_allocation;
};

static struct events events;
static struct check_result undone; /* the image right after that */
static struct writer *undoing; /* NULL: nothing is undone */
static unsigned given_up, looks;
static bool tables_given_up, is_reading, flush_failed;
static unsigned token; /* of the slow reader */

/* The call of l2_range_read that fails while a take goes on; 0: none. */
static unsigned unreadable, reads;

/* --------------------------------------------------------------------- events */

static void
start_reading (void)
{
  if (is_reading)
    return;
  token = epoch_enter (undoing->disk->shared->epoch);
  is_reading = true;
}

static void
end_reading (void)
{
  if (is_reading)
    epoch_leave (undoing->disk->shared->epoch, token);
  is_reading = false;
}

static void
fail_allocation (unsigned nr)
{
  memory_calls = 0;
  memory_fail_at = nr;
  memory_armed = nr > 0;
}

extern void __real_take_undo (struct take *t);
extern void __wrap_take_undo (struct take *t);
extern int __real_writeback_free (struct writeback *c, const struct freed *freed,
                                  unsigned nr);
extern int __wrap_writeback_free (struct writeback *c, const struct freed *freed,
                                  unsigned nr);
extern int __real_writer_flush (struct writer *w);
extern int __wrap_writer_flush (struct writer *w);
extern bool __real_alloc_has_reclaimed (struct alloc *s, uint64_t batch);
extern bool __wrap_alloc_has_reclaimed (struct alloc *s, uint64_t batch);
extern int __real_l2_range_read (const struct map *m, struct host_off place,
                                 uint64_t nr, uint64_t *words);
extern int __wrap_l2_range_read (const struct map *m, struct host_off place,
                                 uint64_t nr, uint64_t *words);

void
__wrap_take_undo (struct take *t)
{
  undoing = t->w;
  given_up = looks = 0;
  tables_given_up = flush_failed = false;
  if (events.slow_read > 0)
    start_reading ();
  if (events.call > 0)
    (events.ever_after ? memory_fail_ever_after : memory_fail)
      (&rig.control, events.kinds, events.call, events.err);
  fail_allocation (events.allocation);
  __real_take_undo (t);
  memory_armed = false;
  check_image (rig.disk.data, atomic_load (&rig.disk.size), 0, &undone);
  end_reading ();
  undoing = NULL;
}

/* Between two slices, where nothing is held. */
int
__wrap_writeback_free (struct writeback *c, const struct freed *freed, unsigned nr)
{
  if (undoing != NULL && nr > 0 && freed->is_table)
    tables_given_up = true;
  if (undoing != NULL && ++given_up == events.flush_at)
    (void) writeback_flush (c);
  return __real_writeback_free (c, freed, nr);
}

static void
flush_in_vain (struct writer *w)
{
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  fail_allocation (events.before_allocation);
  if (writeback_flush (&w->writeback) == -1)
    flush_failed = true;
  memory_armed = false;
  memory_fail_no_more (&rig.control);
}

int
__wrap_writer_flush (struct writer *w)
{
  if (w == undoing && events.before_flush && tables_given_up && !flush_failed) {
    flush_in_vain (w);
    start_reading ();
  }
  return __real_writer_flush (w);
}

bool
__wrap_alloc_has_reclaimed (struct alloc *s, uint64_t batch)
{
  bool r;

  looks++;
  if (undoing != NULL && events.slow_read > 0 && looks == 1) {
    end_reading ();
    memory_fail (&rig.control, MEMORY_READ, events.slow_read, EIO);
    fail_allocation (events.slow_allocation);
  }
  if (undoing != NULL && looks == 2)
    end_reading ();
  r = __real_alloc_has_reclaimed (s, batch);
  if (events.slow_allocation)
    memory_armed = false;
  return r;
}

int
__wrap_l2_range_read (const struct map *m, struct host_off place, uint64_t nr,
                      uint64_t *words)
{
  if (unreadable == 0 || ++reads != unreadable)
    return __real_l2_range_read (m, place, nr, words);
  error_set (EIO, "unreadable");
  return -1;
}

/* ---------------------------------------------------------------------- images */

/* An extension that nobody knows, and which stays. */
static const uint8_t extension[16] = { 0x7e, 0x57, 0xab, 0x1e, 0, 0, 0, 8, 1, 2, 3,
                                       4, 5, 6, 7, 8 };

static uint64_t
extension_place (unsigned version)
{
  return version == 2 ? 72 : 112;
}

/* The refcount of a guest's cluster is as large as it can be. */
static void
saturate (struct builder *b, uint64_t cluster)
{
  const uint64_t place = build_l2_place (b, cluster);
  const uint64_t host = (get_be64 (b->data + place) & QCOW2_ENTRY_OFFSET_MASK)
    >> BITS;
  const unsigned bytes = (1U << b->order) / 8;
  const uint64_t per_block = b->cluster_size / bytes;
  const uint64_t block = get_be64 (b->data + get_be64 (b->data + 48) +
                                   8 * (host / per_block));

  put_be64 (b->data + place, host << BITS);
  memset (b->data + block + host % per_block * bytes, 0xff, bytes);
}

/* All of the disk is mapped.  The refcounts of its first table are in two slices. */
static void
build (struct builder *b, unsigned version, uint64_t saturated)
{
  uint64_t i;

  build_start (b, version, BITS, false, COMPRESSION_DEFLATE, CLUSTERS << BITS);
  if (version >= 3)
    build_order (b, 6);
  memcpy (b->data + extension_place (version), extension, sizeof extension);
  build_clusters (b, version == 2 ? 256 - PER_TABLE / 2 : PER_TABLE / 2);
  for (i = 0; i < CLUSTERS; ++i)
    build_entry (b, i, build_data (b, i + 1), 0);
  build_finish (b);
  if (saturated < CLUSTERS)
    saturate (b, saturated);
}

static void
start (unsigned version, uint64_t saturated)
{
  struct builder b;

  build (&b, version, saturated);
  rig_init (&rig, "undone", &b);
  build_free (&b);
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 0, 1 << 20));
}

/* No snapshot can be made: for this reason. */
static void
refuse (int err, const char *why)
{
  reads = 0;
  CHECK (image_open_disk (rig.im, IMAGE_TAKE_PREFIX "x") == NULL);
  CHECK_ERROR (err, why);
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

/* Close it: it is dirty, if that may be, or else sound; and it has what it had.
 * Returns whether it is dirty.
 */
static bool
judge (bool may_be_dirty)
{
  const uint64_t at = extension_place (get_be32 (rig.disk.data + 4));
  struct check_result r;
  bool dirty;

  rig_compare (&rig);
  CHECK_OK (rig_close_only (&rig));
  check_image (rig.disk.data, atomic_load (&rig.disk.size), 0, &r);
  dirty = r.dirty;
  if (dirty)
    check_image (rig.disk.data, atomic_load (&rig.disk.size),
                 CHECK_ANY_REFCOUNTS, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s", r.why);
  CHECK (!dirty || may_be_dirty);
  CHECK (memcmp (rig.disk.data + at, extension, sizeof extension) == 0);
  rig_free (&rig);
  return dirty;
}

#define FULL "the most that"

/* ------------------------------------------------------------------ what fails */

/* Nothing does; and then each read does. */
static void
test_reads (void)
{
  unsigned dirty = 0;
  uint64_t call;
  bool failed = true;

  start (3, CLUSTERS - 1);
  refuse (ENOTSUP, FULL);
  judge (false);
  for (call = 1; failed && !check_any_failed (); ++call) {
    start (3, CLUSTERS - 1);
    events = (struct events) { .kinds = MEMORY_READ, .call = call, .err = EIO };
    refuse (ENOTSUP, FULL);
    events = (struct events) { 0 };
    failed = rig.control.failed > 0;
    memory_fail_no_more (&rig.control);
    dirty += judge (true);
  }
  CHECK (call > 3 * TABLES && dirty > 0);
}

/* A list can't be lowered, and the one after it can. */
static void
test_two_lists (void)
{
  uint64_t call;

  for (call = 1; call <= TABLES && !check_any_failed (); ++call) {
    start (3, CLUSTERS - 1);
    events = (struct events) { .flush_at = TABLES - 1, .slow_read = call };
    refuse (ENOTSUP, FULL);
    events = (struct events) { 0 };
    CHECK (call > 1 || rig.control.failed > 0);
    memory_fail_no_more (&rig.control);
    judge (call > 1); /* later ones may be of flags */
  }
}

/* What was given up is in the batch after the next one. */
static void
test_flush_in_vain (void)
{
  start (3, CLUSTERS - 1);
  events = (struct events) { .before_flush = true };
  refuse (ENOTSUP, FULL);
  events = (struct events) { 0 };
  CHECK (flush_failed);
  judge (false);
}

/* No flag was cleared: the end makes up for flushes that find no space. */
static void
test_first_piece (unsigned version)
{
  start (version, PER_TABLE - 1);
  events = (struct events) { .kinds = MEMORY_WRITE, .call = 1, .err = ENOSPC,
                             .ever_after = true };
  refuse (ENOTSUP, FULL);
  events = (struct events) { 0 };
  CHECK (rig.control.failed > 1);
  memory_fail_no_more (&rig.control);
  if (version >= 3)
    CHECK (get_be64 (rig.disk.data + 72) & QCOW2_INCOMPAT_DIRTY);
  judge (false);
}

/* Each write finds no space, once: then all is undone, by the end at the latest, and
 * if that has not come the image is dirty.
 */
static void
test_no_space_once (void)
{
  bool failed = true;
  uint64_t call;

  for (call = 1; failed && !check_any_failed (); ++call) {
    start (3, CLUSTERS - 1);
    events = (struct events) { .kinds = MEMORY_WRITE, .call = call,
                               .err = ENOSPC };
    refuse (ENOTSUP, FULL);
    events = (struct events) { 0 };
    failed = rig.control.failed > 0;
    memory_fail_no_more (&rig.control);
    CHECK (undone.dirty || check_is_sound (&undone));
    judge (false);
  }
  CHECK (call > 5);
}

/* ---------------------------------------------------------------------- memory */

/* A take that fails after references of so many tables were raised, and before flags
 * of the last one are cleared.
 */
#define RAISED (TABLES - 1)

static void
fail_to_clear (const struct events *e)
{
  start (3, CLUSTERS);
  unreadable = 2 * RAISED; /* each table is read before it is raised, and after */
  events = *e;
  refuse (EIO, "unreadable");
  events = (struct events) { 0 };
  unreadable = 0;
  memory_fail_no_more (&rig.control);
}

static void
test_no_memory (void)
{
  unsigned nr, dirty = 0;

  fail_to_clear (&(struct events) { 0 });
  judge (false);
  for (nr = 1; !check_any_failed (); ++nr) {
    fail_to_clear (&(struct events) { .flush_at = RAISED, .allocation = nr });
    dirty += judge (true);
    if (memory_calls < nr)
      break;
  }
  CHECK (nr > 3 && dirty > 0);
}

/* A list can't be lowered, and part of it is lost. */
static void
test_lost_when_lowered (void)
{
  unsigned dirty = 0;
  uint64_t call;

  for (call = 1; call <= 2 * TABLES && !check_any_failed (); ++call) {
    fail_to_clear (&(struct events) {
        .flush_at = RAISED, .slow_read = call, .slow_allocation = true });
    dirty += judge (true);
  }
  CHECK (dirty > 0);
}

/* A flush finds no space, and has no memory for its list: with flags that were
 * cleared, and without.
 */
static void
test_lost_when_flushed (void)
{
  unsigned nr, dirty = 0;

  for (nr = 1; nr <= 4 && !check_any_failed (); ++nr) {
    const struct events e = { .before_flush = true, .before_allocation = nr };

    fail_to_clear (&e);
    dirty += judge (true);
    start (3, PER_TABLE - 1);
    events = e;
    refuse (ENOTSUP, FULL);
    events = (struct events) { 0 };
    dirty += judge (true);
  }
  CHECK (dirty > 0);
}

int
main (void)
{
  test_reads ();
  test_two_lists ();
  test_flush_in_vain ();
  test_no_space_once ();
  test_first_piece (2);
  test_first_piece (3);
  test_no_memory ();
  test_lost_when_lowered ();
  test_lost_when_flushed ();
  return check_result ();
}
