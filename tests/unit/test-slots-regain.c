/* SPDX-License-Identifier: BSD-3-Clause */

/* A bitmap that was to end goes on, while a request takes the place of one of its
 * pages: what was marked meanwhile stays on the disk (S4 of qcow2/write/bit-slots.h).
 */

#include <config.h>

#include <pthread.h>

#include "check.h"
#include "follow-rig.h"
#include "qcow2/write/bit-slots-parts.h"
#include "qcow2/write/follow-parts.h"
#include "qcow2/write/writer-parts.h"

int __real_pthread_mutex_unlock (pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock (pthread_mutex_t *mutex);

static struct bit_slots *armed;

/* The victim, of FINE, is about to be written, or not. */
static bool
is_victim (const struct bit_slot *t)
{
  return t->state == SLOT_WRITING && t->bitmap == FINE && t->page == 0;
}

/* The lock has been left: others may do all of this at that moment. */
static void
go_on (struct bit_slots *s)
{
  unsigned i;

  for (i = 0; i < s->nr; ++i)
    if (is_victim (&s->slot[i])) {
      armed = NULL;
      bit_slots_regain (s, FINE);
      return;
    }
}

int
__wrap_pthread_mutex_unlock (pthread_mutex_t *mutex)
{
  const int r = __real_pthread_mutex_unlock (mutex);

  if (armed != NULL && mutex == &armed->lock)
    go_on (armed);
  return r;
}

static void
test_page_taken_meanwhile (void)
{
  const uint64_t page = 4096 * SECTOR; /* bytes of the disk */
  struct bit_slots *s;
  struct writer *w;
  uint64_t at;

  follow_start (9, 3);
  rig_write (&rig, 0, SECTOR, 1);
  w = rig.im->writer;
  s = w->follow->slots;
  follow_settle (w, 0);
  CHECK (!follow_is_set (FINE, 300));
  bit_slots_set (s, FINE, FOLLOW_ENDING);
  rig_write (&rig, 300 * SECTOR, SECTOR, 2); /* durable, and not exact */
  bit_slots_set (s, FINE, FOLLOW_AGAIN);
  armed = s;
  for (at = page; armed != NULL && at < DISK_BYTES; at += page)
    rig_write (&rig, at, SECTOR, 3);
  CHECK (armed == NULL);
  CHECK (follow_is_set (FINE, 300));
  rig_compare (&rig);
  rig_close (&rig);
  CHECK (follow_is_set (FINE, 300));
  rig_free (&rig);
}

int
main (void)
{
  test_page_taken_meanwhile ();
  return check_result ();
}
