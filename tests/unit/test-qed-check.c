/* SPDX-License-Identifier: BSD-3-Clause */

/* qed/check.c: damaged images, judged as an independent judge does, and what a
 * repair makes of them.
 */

#include <config.h>

#include <stdlib.h>

#include "check.h"
#include "memory-storage.h"
#include "qed-image.h"
#include "qed/check.h"
#include "random.h"

static const struct check_options options = { 0 };

static struct qed_image
damaged_image (uint64_t *state)
{
  const uint32_t table_size = 1 << random_below (state, 3);
  const uint64_t clusters = 1 + random_below (state, 2 * table_size * 512);
  struct qed_image q;
  unsigned i, n = random_below (state, 20);

  qed_image_start (&q, 4096, table_size, 1 + random_below (state, 2),
                   clusters * 4096, NULL);
  for (i = 0; i < n; ++i) {
    const uint64_t at = random_below (state, clusters);

    if (random_below (state, 5) == 0)
      qed_image_zero (&q, at);
    else
      qed_image_data (&q, at, at);
  }
  if (random_below (state, 3) == 0)
    (void) qed_image_grow (&q, random_below (state, 4));
  qed_image_put (&q, 16, 8, random_below (state, 2) ? 2 : 0);
  n = random_below (state, 4);
  for (i = 0; i < n; ++i) {
    const uint64_t l1 = q.l1_offset + random_below (state, 3) * 8;
    uint64_t place = random_below (state, 4) == 0 ? l1
      : qed_image_place (&q, random_below (state, clusters));
    uint64_t value = random_below (state, q.size / 4096 + 4) * 4096;

    if (random_below (state, 4) == 0)
      value += 1 + random_below (state, 4095);
    else if (random_below (state, 8) == 0)
      value = random_next (state);
    if (place > q.size - 8) /* its table is damaged already */
      place = l1;
    qed_image_put (&q, place, 8, value);
  }
  if (random_below (state, 6) == 0 && q.size > q.l1_offset + q.table_bytes)
    qed_image_cut (&q, random_below (state, q.size - q.l1_offset -
                                     q.table_bytes));
  return q;
}

/* What could be read, as it should be afterwards.  Where clusters are used
 * twice one of the uses may be a table.
 */
static void
compare_kept (const struct qed_image *q, const struct memory_disk *d,
              bool twice)
{
  uint64_t i, before, after;

  for (i = 0; i * 4096 < q->disk_size; ++i) {
    if (qed_image_what (q->bytes, q->size, i, &before) != QED_IS_DATA)
      continue;
    CHECK_EQ (qed_image_what (d->data, d->size, i, &after), QED_IS_DATA);
    CHECK_EQ (after, before);
    if (!twice)
      CHECK (memcmp (d->data + after, q->bytes + before, 4096) == 0);
  }
}

static void
test_image (uint64_t seed, uint64_t *sound)
{
  uint64_t state = seed;
  struct qed_image q = damaged_image (&state);
  const struct qed_verdict v = qed_image_judge (q.bytes, q.size);
  const enum repair_mode mode =
    random_below (&state, 2) ? REPAIR_ALL : REPAIR_LEAKS;
  struct memory_control control = { 0 };
  struct memory_disk d;
  struct storage *s;
  struct check_report c;
  struct repair_report r;
  struct qed_verdict after;

  memory_disk_init (&d, q.bytes, q.size);
  s = memory_disk_open (&d, "image", &control);
  CHECK_OK (qed_check_storage (s, &options, &c));
  CHECK_EQ (c.corruptions, v.errors);
  CHECK_EQ (c.leaks, v.leaks);
  CHECK_EQ (c.dirty, v.need_check);
  CHECK_EQ (control.writes, 0);
  CHECK_OK (qed_repair_storage (s, mode, &options, &r));
  after = qed_image_judge (d.data, d.size);
  CHECK_EQ (r.before.corruptions, v.errors);
  CHECK_EQ (r.after.corruptions, after.errors);
  CHECK_EQ (r.after.leaks, after.leaks);
  CHECK (after.errors <= v.errors);
  if (after.errors == 0)
    CHECK (!after.need_check);
  else {
    CHECK (r.why_not != NULL);
    CHECK_EQ (after.need_check, v.need_check);
  }
  if (mode == REPAIR_LEAKS && v.errors > 0)
    CHECK_EQ (control.writes, 0);
  compare_kept (&q, &d, c.found[CHECK_OVERLAP] > 0);
  *sound += v.errors == 0;
  storage_close (s);
  memory_disk_free (&d);
  qed_image_free (&q);
}

/* Unknown bits may stand for what nothing refers to. */
static void
test_unknown (void)
{
  struct memory_control control = { 0 };
  struct repair_report r;
  struct memory_disk d;
  struct qed_image q;
  struct storage *s;

  qed_image_start (&q, 4096, 2, 1, 1 << 20, NULL);
  (void) qed_image_grow (&q, 3);
  qed_image_put (&q, 24, 8, 1);
  qed_image_put (&q, 16, 8, 2);
  memory_disk_init (&d, q.bytes, q.size);
  s = memory_disk_open (&d, "image", &control);
  CHECK_OK (qed_repair_storage (s, REPAIR_ALL, &options, &r));
  CHECK_EQ (r.after.leaks, 3);
  CHECK_EQ (d.size, q.size);
  CHECK_EQ (qed_image_get (d.data, 16, 8), 0);
  CHECK_EQ (qed_image_get (d.data, 24, 8), 1);
  storage_close (s);
  memory_disk_free (&d);
  qed_image_free (&q);
}

/* Each call that changes the file fails in turn: it is no worse then, and
 * another repair completes the work.
 */
static void
test_interrupted (void)
{
  uint64_t call;
  bool failed = true;

  for (call = 1; failed; ++call) {
    struct memory_control control = { 0 };
    struct repair_report r;
    struct memory_disk d;
    struct qed_image q;
    struct storage *s;

    qed_image_start (&q, 4096, 2, 1, 1 << 20, NULL);
    qed_image_data (&q, 0, 1);
    qed_image_put (&q, qed_image_place (&q, 1), 8, 4097);
    qed_image_put (&q, qed_image_place (&q, 2), 8, UINT64_C (1) << 40);
    (void) qed_image_grow (&q, 3);
    qed_image_put (&q, 16, 8, 2);
    memory_disk_init (&d, q.bytes, q.size);
    s = memory_disk_open (&d, "image", &control);
    memory_fail (&control, MEMORY_CHANGES, call, EIO);
    failed = qed_repair_storage (s, REPAIR_ALL, &options, &r) == -1;
    if (failed)
      CHECK (qed_image_get (d.data, 16, 8) == 2 ||
             qed_image_judge (d.data, d.size).errors == 0);
    memory_fail_no_more (&control);
    CHECK_OK (qed_repair_storage (s, REPAIR_ALL, &options, &r));
    CHECK_EQ (qed_image_judge (d.data, d.size).errors, 0);
    CHECK_EQ (qed_image_judge (d.data, d.size).leaks, 0);
    CHECK_EQ (qed_image_get (d.data, 16, 8), 0);
    compare_kept (&q, &d, false);
    storage_close (s);
    memory_disk_free (&d);
    qed_image_free (&q);
  }
  CHECK (call > 6);
}

/* A file that claims to be long, and is not. */
static void
test_long (void)
{
  struct memory_control control = { .size = UINT64_C (1) << 60 };
  struct check_report c;
  struct qed_image q;
  struct storage *s;

  qed_image_start (&q, 4096, 2, 1, 1 << 20, NULL);
  s = memory_storage_new ("image", q.bytes, q.size, &control);
  CHECK (qed_check_storage (s, &options, &c) == -1);
  CHECK_ERROR (ENOTSUP, "too long to be checked");
  storage_close (s);
  qed_image_free (&q);
}

int
main (void)
{
  const uint64_t nr = 3000;
  uint64_t seed, sound = 0;

  check_time_limit (60);
  for (seed = 1; seed <= nr && !check_any_failed (); ++seed) {
    test_image (seed, &sound);
    if (check_any_failed ())
      fprintf (stderr, "seed %" PRIu64 "\n", seed);
  }
  CHECK (sound > nr / 10 && sound < nr / 10 * 9);
  test_unknown ();
  test_interrupted ();
  test_long ();
  return check_result ();
}
