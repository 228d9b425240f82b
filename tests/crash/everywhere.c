/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "everywhere.h"
#include "power-cut.h"
#include "random.h"
#include "seconds.h"

static unsigned
crash_every (void)
{
  const char *value = getenv (CRASH_EVERY_VARIABLE);
  const int every = value != NULL ? atoi (value) : 1;

  return every > 1 ? every : 1;
}

static void
judge_state (const struct everywhere *e, struct cut *c, uint64_t k,
             struct landed l)
{
  static struct disk_state state;
  char text[64];

  snprintf (e->what, e->what_size, "%s, cut %" PRIu64 ", %s", e->subject, k,
            landed_format (l, text, sizeof text));
  cut_state (c, l, &state);
  e->judge (state.bytes, state.size);
}

static void
cut_at (const struct everywhere *e, struct cut *c, uint64_t k)
{
  const unsigned nr = cut_pending (c);
  unsigned i;

  judge_state (e, c, k, (struct landed) { LANDED_NONE, 0 });
  if (nr == 0)
    return;
  judge_state (e, c, k, (struct landed) { LANDED_ALL, 0 });
  for (i = k % TEST_EACH (4); i < nr && i < 16; i += TEST_EACH (4)) {
    judge_state (e, c, k, (struct landed) { LANDED_ONLY, i });
    judge_state (e, c, k, (struct landed) { LANDED_NOT, i });
  }
  for (i = 0; i < e->torn; ++i)
    judge_state (e, c, k, (struct landed) { LANDED_TORN,
                                            mix (k * e->torn + i) });
}

void
cut_everywhere (const struct everywhere *e, const struct crash_disk *disk)
{
  struct cut *c = cut_new (e->bytes, e->size, disk->op, disk->nr);
  const unsigned every = crash_every ();
  uint64_t k;

  for (k = 0; k <= disk->nr && !check_any_failed (); ++k) {
    cut_advance (c, k);
    if (k % every == 0 || k == disk->nr)
      cut_at (e, c, k);
  }
  cut_free (c);
}

void
fail_everywhere (const struct everywhere *e, fail_call_function *fail_call,
                 void *opaque)
{
  static const struct crash_fault faults[] = {
    { .err = EIO }, { .err = EIO, .forever = true },
    { .err = EIO, .partly = true }, { .err = ENOSPC },
    { .err = ENOSPC, .forever = true }, { .err = ENOSPC, .partly = true },
  };
  const unsigned step = TEST_EACH (4) * crash_every ();
  unsigned i;
  uint64_t call;

  for (i = 0; i < sizeof faults / sizeof faults[0]; ++i) {
    struct crash_fault fault = faults[i];

    fault.kinds = fault.err == ENOSPC
      ? FAULT_WRITE | FAULT_ZERO | FAULT_RESIZE | FAULT_ALLOCATE : FAULT_ANY;
    for (call = 1 + i % step; !check_any_failed (); call += step) {
      snprintf (e->what, e->what_size, "%s, call %" PRIu64 " fails (%u)",
                e->subject, call, i);
      fault.call = call;
      if (!fail_call (opaque, &fault))
        break;
    }
  }
}
