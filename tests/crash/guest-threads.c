/* SPDX-License-Identifier: BSD-3-Clause */

/* Scripts, by one thread or by several. */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "guest-parts.h"
#include "must-have.h"
#include "takes.h"

bool
guest_script (struct guest *r, const struct script *s)
{
  unsigned i;

  for (i = 0; i < s->nr && r->im != NULL && !r->blind; ++i) {
    if (!guest_request (r, &s->request[i]))
      return false;
  }
  return true;
}

struct member {
  pthread_t thread;
  struct guest guest; /* with buffers of its own */
  struct script script;
  bool ok;
};

static void *
run_member (void *p)
{
  struct member *b = p;

  b->ok = guest_script (&b->guest, &b->script);
  return NULL;
}

/* Requests are dealt in turn; nobody can open the image again. */
static void
make_member (struct member *b, struct guest *r, struct sharing *sharing,
             const struct script *s, unsigned number, unsigned nr)
{
  unsigned i;

  b->guest = *r;
  b->guest.sharing = sharing;
  b->guest.careless = true;
  b->guest.buf = must_have (malloc (r->m->disk_size));
  b->guest.buf2 = must_have (malloc (r->m->disk_size));
  for (i = number; i < s->nr; i += nr) {
    if (s->request[i].kind != REQUEST_REOPEN &&
        s->request[i].kind != REQUEST_TAKE && s->request[i].kind != REQUEST_END)
      b->script.request[b->script.nr++] = s->request[i];
  }
}

/* When all overlapping requests are over, each sector holds what one of the
 * last gave it, and goes on holding that.
 */
static bool
settle (struct guest *r)
{
  const struct request flush = { .kind = REQUEST_FLUSH };
  char name[160];
  uint64_t sector;
  bool ok;

  r->careless = true; /* expect is out of date */
  ok = guest_flush (r, &flush);
  r->careless = false;
  if (!ok || !guest_read (r))
    return false;
  sector = history_check (r->history, r->buf, crash_disk_now (r->disk));
  if (sector < r->history->nr_sectors)
    return guest_wrong (r, "at the end, sector %" PRIu64 " holds %s", sector,
                        content_name (r->buf + sector * SECTOR, name,
                                      sizeof name));
  memcpy (r->expect, r->buf, r->m->disk_size);
  return true;
}

bool
guest_threads (struct guest *r, const struct script *s, unsigned nr,
               bool overlap)
{
  struct member *member = must_have (calloc (nr, sizeof *member));
  struct sharing sharing = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .freed = PTHREAD_COND_INITIALIZER,
    .busy = must_have (calloc (r->m->disk_size / SECTOR, 1)),
    .overlap = overlap,
  };
  bool ok = true;
  unsigned i;

  r->disk->dawdle = true;
  for (i = 0; i < nr; ++i)
    make_member (&member[i], r, &sharing, s, i, nr);
  for (i = 0; i < nr; ++i) {
    if (pthread_create (&member[i].thread, NULL, run_member, &member[i]) != 0)
      abort ();
  }
  for (i = 0; i < nr; ++i) {
    pthread_join (member[i].thread, NULL);
    if (ok && !member[i].ok) {
      memcpy (r->why, member[i].guest.why, sizeof r->why);
      ok = false;
    }
    free (member[i].guest.buf);
    free (member[i].guest.buf2);
  }
  r->disk->dawdle = false;
  free (sharing.busy);
  free (member);
  if (ok && overlap)
    ok = settle (r);
  return ok && takes_check_history (r);
}
