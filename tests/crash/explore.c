/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "checker.h"
#include "content.h"
#include "explore.h"
#include "qcow2/format.h"
#include "random.h"
#include "takes.h"
#include "verdict.h"

#define HEADER_INCOMPATIBLE 72
#define HEADER_AUTOCLEAR 88

/* After so many violations of one workload the others would be the same. */
#define MAX_VIOLATIONS 3

const char *
explore_line (const struct explore_place *p, char *buf, size_t size)
{
  char landed[64];
  int n = snprintf (buf, size, "powerloss --image %s --seed %" PRIu64
                    " --script '%s'", p->image, p->seed, p->script);

  if (p->points && n > 0 && (size_t) n < size)
    n += snprintf (buf + n, size - n, " --points");
  if (p->threads > 1 && n > 0 && (size_t) n < size)
    n += snprintf (buf + n, size - n, " --threads %u", p->threads);
  if (p->far[0] != '\0' && n > 0 && (size_t) n < size)
    n += snprintf (buf + n, size - n, " --far=%s", p->far);
  if (p->in_state && n > 0 && (size_t) n < size)
    n += snprintf (buf + n, size - n, " --cut %" PRIu64 " --subset %s",
                   p->cut, landed_format (p->landed, landed, sizeof landed));
  if (p->in_second && n > 0 && (size_t) n < size)
    n += snprintf (buf + n, size - n, " --cut2 %" PRIu64 " --subset2 %s",
                   p->cut2, landed_format (p->landed2, landed,
                                           sizeof landed));
  return buf;
}

static bool __attribute__ ((__format__ (__printf__, 2, 3), __cold__))
violation (struct explore *e, const char *fmt, ...)
{
  char line[EXPLORE_SCRIPT_TEXT + 512], text[1200];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  fprintf (stderr, "%s: %s\n",
           explore_line (e->place, line, sizeof line), text);
  e->violations++;
  atomic_fetch_add (&e->stats->violations, 1);
  return false;
}

/* What the header's first cluster must still be, but for fields that change:
 * tables move, feature bits come and go (I8).
 */
static bool
same_header (const struct made *m, const uint8_t *bytes, bool taken)
{
  const struct { unsigned start, end; } may_change[] = {
    { 36, taken ? 72 : 60 }, /* L1, refcount and snapshot tables */
    { HEADER_INCOMPATIBLE, HEADER_INCOMPATIBLE + 8 },
    { HEADER_AUTOCLEAR, HEADER_AUTOCLEAR + 8 },
  };
  const uint64_t size = m->cluster_size < 4096 ? m->cluster_size : 4096;
  uint64_t at = 0;
  unsigned i;

  for (i = 0; i < sizeof may_change / sizeof may_change[0]; ++i) {
    if (i > 0 && m->version == 2)
      break;
    if (memcmp (bytes + at, m->bytes + at, may_change[i].start - at) != 0)
      return false;
    at = may_change[i].end;
  }
  return memcmp (bytes + at, m->bytes + at, size - at) == 0;
}

/* Version 2 has no such bits. */
static uint64_t
autoclear (const struct made *m, const uint8_t *header)
{
  return m->version == 2 ? 0 : get_be64 (header + HEADER_AUTOCLEAR);
}

/* Whether nothing has changed but what announces changes. */
static bool
is_unchanged (const struct made *m, const struct disk_state *s)
{
  const struct { uint64_t start, end; } announces[] = {
    { HEADER_INCOMPATIBLE, HEADER_INCOMPATIBLE + 8 },
    { HEADER_AUTOCLEAR, HEADER_AUTOCLEAR + 8 },
    { m->bitmaps_at, m->bitmaps_at + MADE_BITMAPS * MADE_BITMAP_BYTES },
  };
  const unsigned nr = m->bitmaps ? 3 : 2;
  uint64_t at = 0;
  unsigned i;

  if (s->size < m->size)
    return false;
  for (i = 0; i < nr; ++i) {
    if (memcmp (s->bytes + at, m->bytes + at, announces[i].start - at) != 0)
      return false;
    at = announces[i].end;
  }
  return memcmp (s->bytes + at, m->bytes + at, m->size - at) == 0 &&
    content_is_zero (s->bytes + m->size, s->size - m->size);
}

/* What others rely on while it says so is withdrawn before anything changes:
 * unknown autoclear bits (I8), bitmaps that are given up, and that an image
 * with lazy refcounts has right ones: no leaks but those from before.
 */
static bool
check_announced (struct explore *e, const struct made *m,
                 const struct disk_state *s, const struct check_result *r,
                 uint64_t leaks)
{
  const uint64_t unknown = autoclear (m, m->bytes) & ~QCOW2_AUTOCLEAR_BITMAPS;

  if ((unknown == 0 && !m->bitmaps && !m->lazy) || is_unchanged (m, s))
    return true;
  if (autoclear (m, s->bytes) & unknown)
    return violation (e, "changed, with an unknown autoclear bit set");
  if (m->give_up && (autoclear (m, s->bytes) & QCOW2_AUTOCLEAR_BITMAPS) &&
      made_bitmaps_in_use (m, s->bytes) < MADE_BITMAPS)
    return violation (e, "changed, with a bitmap that is not in use");
  if (m->lazy && !r->dirty && r->leaks + r->beyond > leaks)
    return violation (e, "%" PRIu64 " leaks, and not dirty",
                      r->leaks + r->beyond);
  return true;
}

static bool
write_file (struct explore *e, const char *name, const void *bytes,
            uint64_t size)
{
  char path[128];
  bool ok;
  FILE *f;

  snprintf (path, sizeof path, "%s/%s", e->directory, name);
  f = fopen (path, "wb");
  ok = f != NULL && fwrite (bytes, 1, size, f) == size;
  ok = f != NULL && fclose (f) == 0 && ok;
  return ok || violation (e, "%s can't be written", path);
}

/* Have qemu-img judge the state as well. */
static bool
ask_qemu_img (struct explore *e, const struct made *m,
              const struct disk_state *s, const struct check_result *r)
{
  char command[512];
  bool sound, qemu_sound;
  int status;

  if (!write_file (e, "image", s->bytes, s->size) ||
      (m->backing != NULL &&
       !write_file (e, "backing", m->backing, m->backing_size)))
    return false;
  /* It wants a passphrase, any will do: the data is not looked at. */
  snprintf (command, sizeof command,
            "qemu-img check -q %s%s/image >%s/log 2>&1",
            m->aes ? "--object secret,id=k,data=x --image-opts driver=qcow2,"
            "encrypt.format=aes,encrypt.key-secret=k,file.filename="
            : "-f qcow2 ", e->directory, e->directory);
  status = system (command);
  status = WIFEXITED (status) ? WEXITSTATUS (status) : -1;
  atomic_fetch_add (&e->stats->asked, 1);
  qemu_sound = status == 0 || status == 3;
  sound = r->opens && r->corruptions == 0 && r->errors == 0;
  if (qemu_sound != sound || (sound && (status == 3) != (r->leaks > 0)))
    return violation (e, "qemu-img check says %d, the checker says %s, "
                      "%" PRIu64 " leaks", status,
                      sound ? "sound" : r->why, r->leaks);
  return true;
}

static void
note_leaks (struct explore *e, uint64_t leaks)
{
  uint64_t most = atomic_load (&e->stats->most_leaks);

  if (leaks == 0)
    return;
  atomic_fetch_add (&e->stats->leaking, 1);
  while (most < leaks &&
         !atomic_compare_exchange_weak (&e->stats->most_leaks, &most, leaks))
    ;
}

/* With lazy refcounts those of a dirty image may be wrong.  Where they are
 * not, a repair has nothing else to do, and the image is written again.
 */
static void
mend (struct explore *e, struct disk_state *s, struct check_result *r)
{
  uint8_t *bits = s->bytes + HEADER_INCOMPATIBLE;

  atomic_fetch_add (&e->stats->dirty, 1);
  if (!check_is_sound (r)) {
    check_image (s->bytes, s->size, CHECK_ANY_REFCOUNTS, r);
    return;
  }
  atomic_fetch_add (&e->stats->mended, 1);
  put_be64 (bits, get_be64 (bits) & ~QCOW2_INCOMPAT_DIRTY);
}

/* While a snapshot is made refcounts may be more than the references, and COPIED
 * flags wrong; but none is less, so that nothing is lost.
 */
static bool
check_while_taken (struct explore *e, const struct made *m,
                   const struct disk_state *s, struct check_result *r)
{
  const bool dirty = r->dirty;
  uint64_t cluster;

  if (!r->opens || check_is_sound (r) || (!dirty && m->version >= 3))
    return true;
  check_image (s->bytes, s->size, CHECK_ANY_REFCOUNTS, r);
  e->uncounted = true;
  return m->lazy || verdict_refcounts_suffice (m, s->bytes, s->size,
                                               &cluster) ||
    violation (e, "cluster %" PRIu64 " has more references than its refcount",
               cluster);
}

/* The metadata of a state (I3).  leaks: that were there before. */
static bool
check_metadata (struct explore *e, const struct made *m,
                struct disk_state *s, uint64_t leaks, struct check_result *r)
{
  const unsigned ask = e->options->ask_every;

  e->uncounted = false;
  check_image (s->bytes, s->size, 0, r);
  if (ask != 0 && e->number % ask == 0 && !ask_qemu_img (e, m, s, r))
    return false;
  if (r->opens && !check_announced (e, m, s, r, leaks))
    return false;
  if (e->taken && !check_while_taken (e, m, s, r))
    return false;
  if (m->lazy && !e->taken && r->opens && r->dirty)
    mend (e, s, r);
  if (!check_is_sound (r))
    return violation (e, "%s (%" PRIu64 " corruptions, %" PRIu64 " errors, "
                      "%" PRIu64 " others)", r->why, r->corruptions,
                      r->errors, r->strict);
  if (!same_header (m, s->bytes, e->taken))
    return violation (e, "the header has changed");
  note_leaks (e, r->leaks > m->leaks ? r->leaks - m->leaks : 0);
  return true;
}

/* I14 */
static bool
check_bitmaps (struct explore *e, const struct made *m, const uint8_t *bytes,
               const uint8_t *content)
{
  char why[128];

  return made_bitmaps_are_kept (m, bytes, content, why, sizeof why) ||
    violation (e, "%s", why);
}

/* The data of a state that r has open (I1, I2), and the snapshots of t; the disk
 * is in r->buf then, and *present has those which there are.
 */
static bool
check_data (struct explore *e, struct guest *r, const struct history *h,
            const struct takes *t, uint64_t moment, struct takes *present)
{
  char name[160];
  uint64_t sector;

  if (!guest_read (r))
    return violation (e, "%s", r->why);
  sector = history_check (h, r->buf, moment);
  if (sector < h->nr_sectors) {
    (void) violation (e, "sector %" PRIu64 " holds %s; it may hold:", sector,
                      content_name (r->buf + sector * SECTOR, name,
                                    sizeof name));
    history_explain (h, sector, moment);
    return false;
  }
  if (!guest_check_snapshots (r) || !takes_check (t, r, moment, present))
    return violation (e, "%s", r->why);
  return check_bitmaps (e, r->m, r->disk->bytes, r->buf);
}

/* The first cut's place makes different numbers for each state. */
static uint64_t
state_seed (const struct explore_place *p)
{
  return mix (p->seed + mix (p->cut + mix (p->landed.kind * 1000003 +
                                           mix (p->landed.arg))));
}

/* What e->again has done is cut at this moment, too. */
static bool
check_second_state (struct explore *e, struct cut *c, struct landed l)
{
  struct guest *r = &e->again;
  struct check_result result;
  struct takes present;

  e->place->in_second = true;
  e->place->landed2 = l;
  cut_state (c, l, &e->state2);
  atomic_fetch_add (&e->stats->second, 1);
  e->number++;
  if (!check_metadata (e, r->m, &e->state2, e->leaks, &result))
    return false;
  /* The first run is over, and its storage free. */
  if (!guest_start (&e->guest, e->state2.bytes, e->state2.size))
    return violation (e, "%s", e->guest.why);
  if (!check_data (e, &e->guest, r->history, r->takes, e->place->cut2,
                   &present))
    return false;
  (void) guest_close (&e->guest);
  return true;
}

static bool
second_states (struct explore *e, struct cut *c, uint64_t *random)
{
  const struct explore_options *o = e->options;
  unsigned i;

  if (o->have_landed2)
    return check_second_state (e, c, o->landed2);
  if (!check_second_state (e, c, (struct landed) { LANDED_NONE, 0 }))
    return false;
  if (cut_pending (c) == 0)
    return true;
  if (!check_second_state (e, c, (struct landed) { LANDED_ALL, 0 }))
    return false;
  for (i = 0; i < 3; ++i) {
    const struct landed l = {
      i == 0 ? LANDED_NOT : LANDED_TORN,
      i == 0 ? random_below (random, cut_pending (c))
             : random_below (random, 1 << 20)
    };

    if (!check_second_state (e, c, l))
      return false;
  }
  return true;
}

static void
print_calls (const struct crash_op *op, uint64_t nr)
{
  static const char *const names[] = {
    [CRASH_WRITE] = "write", [CRASH_ZERO] = "zero", [CRASH_RESIZE] = "resize",
    [CRASH_FLUSH] = "flush",
  };
  uint64_t i;

  for (i = 0; i < nr; ++i, ++op) {
    char name[160] = "";

    if (op->kind == CRASH_WRITE && op->count >= SECTOR)
      content_name (op->data, name, sizeof name);
    printf ("%4" PRIu64 " %s%s 0x%" PRIx64 "+0x%" PRIx64 " %s\n", i,
            names[op->kind], op->durable ? " durable" : "", op->offset,
            op->count, name);
  }
}

static bool
cut_again (struct explore *e)
{
  const struct crash_disk *d = e->again.disk;
  struct cut *c = cut_new (e->state.bytes, e->state.size, d->op, d->nr);
  uint64_t random = state_seed (e->place) + 1;
  bool ok = true;
  uint64_t k;

  if (e->options->verbose && e->options->cut2 != EXPLORE_ANY) {
    printf ("after the cut:\n");
    print_calls (d->op, d->nr);
  }
  for (k = 0; ok && k <= d->nr; ++k) {
    cut_advance (c, k);
    e->place->cut2 = k;
    if (e->options->cut2 == EXPLORE_ANY || e->options->cut2 == k)
      ok = second_states (e, c, &random);
  }
  e->place->in_second = false;
  cut_free (c);
  return ok;
}

/* In every other state leaks are freed meanwhile, and in every other one of
 * those before anything is written: then none are left where nothing has
 * several references.
 */
static bool
free_leaks (struct explore *e)
{
  struct guest *r = &e->again;
  const uint64_t seed = state_seed (e->place);

  r->free_leaks = seed % 2 == 0;
  if (!guest_make_writable (r))
    return false;
  if (!r->free_leaks || seed % 4 != 0)
    return true;
  while (!image_leaks_are_done (r->im))
    sched_yield ();
  if (r->m->known && r->m->nr_snapshots == 0 && r->takes->nr == 0 && !r->m->zip)
    e->leaks = 0;
  return true;
}

/* A crash while a snapshot was made has left it dirty: it is repaired first. */
static bool
repair (struct explore *e)
{
  struct guest *r = &e->again;
  char summary[1024];

  if (image_repair (r->im, IMAGE_REPAIR_DIRTY, summary, sizeof summary) == -1)
    return violation (e, "it can't be repaired: %s", error_message ());
  e->leaks = 0;
  return true;
}

/* Go on writing the image of a state, which e->again has open, and whose disk
 * is in its buf: nothing may get worse.
 */
static bool
go_on (struct explore *e, const struct check_result *before)
{
  const struct explore_options *o = e->options;
  struct guest *r = &e->again;
  struct check_result after;
  struct disk_state written;
  struct script s;

  e->leaks = e->uncounted ? UINT64_MAX : before->leaks + before->beyond;
  guest_believe (r);
  if (e->taken && before->dirty && !repair (e))
    return false;
  if (!free_leaks (e)) {
    if (r->why[0] != '\0')
      return violation (e, "%s", r->why);
    (void) guest_close (r); /* it is dirty */
    return true;
  }
  script_random (&s, r->m, state_seed (e->place), 5);
  if (o->points) {
    script_add_points (&s, state_seed (e->place));
    script_add_takes (&s, state_seed (e->place));
  }
  if (!guest_script (r, &s) || !guest_finish (r))
    return violation (e, "after the cut: %s", r->why);
  written = (struct disk_state) {
    .bytes = r->disk->bytes, .size = r->disk->size
  };
  check_image (written.bytes, written.size, 0, &after);
  if (e->taken && !check_while_taken (e, r->m, &written, &after))
    return false;
  if (!check_is_sound (&after) || (e->taken && after.dirty))
    return violation (e, "written and closed after the cut: %s",
                      after.dirty ? "dirty" : after.why);
  if (after.leaks + after.beyond > e->leaks)
    return violation (e, "written and closed after the cut: %" PRIu64
                      " leaks, %" PRIu64 " of them beyond the end; there were %"
                      PRIu64, after.leaks + after.beyond, after.beyond, e->leaks);
  if (o->cut2 != EXPLORE_ANY ||
      (o->second_every != 0 && e->number % o->second_every == 0))
    return cut_again (e);
  return true;
}

/* One state of so many is read and written on a server, too. */
#define FAR_EVERY 32

static bool
check_state (struct explore *e, struct cut *c, const struct history *h,
             struct landed l)
{
  struct check_result result;
  struct takes present = { 0 };
  bool ok;

  e->place->in_state = true;
  e->place->landed = l;
  cut_state (c, l, &e->state);
  atomic_fetch_add (&e->stats->states, 1);
  e->number++;
  if (!check_metadata (e, e->again.m, &e->state, e->again.m->leaks, &result))
    return false;
  e->again.far = e->options->far && state_seed (e->place) % FAR_EVERY == 3
    ? &e->far : NULL;
  if (!guest_start (&e->again, e->state.bytes, e->state.size))
    return violation (e, "%s", e->again.why);
  ok = check_data (e, &e->again, h, e->guest.takes, e->place->cut, &present);
  *e->again.takes = present;
  ok = ok && go_on (e, &result);
  takes_free (e->again.takes);
  if (e->again.im != NULL)
    (void) guest_close (&e->again);
  return ok;
}

/* Which states of a cut are looked at: those that differ from the states of
 * the cut before, by the last call or, where it was a flush, altogether.
 */
struct choice {
  struct landed landed[160];
  unsigned nr;
};

static void
choose (struct choice *x, enum landed_kind kind, uint64_t arg)
{
  if (x->nr < sizeof x->landed / sizeof x->landed[0])
    x->landed[x->nr++] = (struct landed) { kind, arg };
}

/* All subsets of a few calls. */
#define ALL_SUBSETS_OF 5

static void
choose_states (struct choice *x, struct cut *c, unsigned torn,
               uint64_t *random)
{
  const unsigned n = cut_pending (c);
  unsigned i;

  x->nr = 0;
  choose (x, LANDED_NONE, 0);
  if (n == 0)
    return;
  choose (x, LANDED_ALL, 0);
  if (n == 1)
    ;
  else if (n <= ALL_SUBSETS_OF) {
    for (i = 1; i + 1 < 1U << n; ++i)
      choose (x, LANDED_MASK, i);
  }
  else {
    choose (x, LANDED_ONLY, n - 1);
    for (i = 0; i < 24; ++i)
      choose (x, LANDED_NOT, n <= 24 ? i % n : random_below (random, n));
    for (i = 0; i < 6 && n <= 64; ++i)
      choose (x, LANDED_MASK, UINT64_C (1) << (n - 1) |
              UINT64_C (1) << random_below (random, n));
    for (i = 0; i < 3; ++i)
      choose (x, LANDED_PREFIX, random_below (random, n));
  }
  for (i = 0; i < torn; ++i)
    choose (x, LANDED_TORN, random_below (random, 1 << 24));
}

static bool
check_cut (struct explore *e, struct cut *c, uint64_t *random)
{
  const struct explore_options *o = e->options;
  const uint64_t violations = e->violations;
  struct choice x;
  unsigned i;

  atomic_fetch_add (&e->stats->cuts, 1);
  if (o->have_landed)
    return check_state (e, c, e->guest.history, o->landed);
  choose_states (&x, c, o->torn, random);
  for (i = 0; i < x.nr && e->violations < violations + MAX_VIOLATIONS; ++i)
    (void) check_state (e, c, e->guest.history, x.landed[i]);
  return e->violations == violations;
}

/* The log of e->guest must stay while e->guest is used for second cuts. */
struct log {
  struct crash_op *op;
  uint64_t nr;
};

static struct log
take_log (struct crash_disk *d)
{
  const struct log log = { d->op, d->nr };

  d->op = NULL;
  d->nr = d->nr_allocated = 0;
  return log;
}

static void
free_log (struct log *log)
{
  uint64_t i;

  for (i = 0; i < log->nr; ++i)
    free (log->op[i].data);
  free (log->op);
}

/* By threads, requests of every other workload overlap. */
static bool
run_script (struct explore *e, const struct script *s)
{
  const unsigned threads = e->options->threads;

  if (threads == 1)
    return guest_script (&e->guest, s);
  return guest_threads (&e->guest, s, threads,
                        mix (e->options->seed + s->request[0].offset) & 1);
}

/* The workload itself, without a cut. */
static bool
run_workload (struct explore *e, const struct made *m,
              const struct script *s)
{
  struct guest *r = &e->guest;
  struct check_result before, result;

  if (!guest_start (r, m->bytes, m->size) || !guest_read (r))
    return violation (e, "%s", r->why);
  guest_believe (r);
  if (memcmp (r->buf, m->content, m->disk_size) != 0)
    return violation (e, "the image reads as something else at the start");
  if (!guest_make_writable (r) ||
      !run_script (e, s) || !guest_finish (r))
    return violation (e, "%s", r->why);
  check_image (r->disk->bytes, r->disk->size, 0, &result);
  if (!check_is_sound (&result))
    return violation (e, "after closing it: %s", result.why);
  if (result.dirty)
    return violation (e, "after closing it, it is dirty");
  if (result.leaks + result.beyond > m->leaks)
    return violation (e, "after closing it: %" PRIu64 " leaks",
                      result.leaks + result.beyond);
  if (!same_header (m, r->disk->bytes, e->taken))
    return violation (e, "the header has changed");
  if (!check_bitmaps (e, m, r->disk->bytes, r->expect))
    return false;
  check_image (m->bytes, m->size, 0, &before);
  if (!e->taken && result.shared_zeros > before.shared_zeros)
    return violation (e, "after closing it: %" PRIu64 " zero clusters keep "
                      "what they can't write", result.shared_zeros);
  return true;
}

static void
all_cuts (struct explore *e, const struct made *m, const struct log *log)
{
  const struct explore_options *o = e->options;
  struct cut *c = cut_new (m->bytes, m->size, log->op, log->nr);
  uint64_t random = mix (o->seed + 3), k;
  const uint64_t violations = e->violations;

  for (k = 0; k <= log->nr; ++k) {
    cut_advance (c, k);
    e->place->cut = k;
    if (o->cut != EXPLORE_ANY
        ? k != o->cut
        : log->nr > o->cuts && random_below (&random, log->nr) >= o->cuts)
      continue;
    (void) check_cut (e, c, &random);
    if (e->violations >= violations + MAX_VIOLATIONS)
      break;
  }
  cut_free (c);
}

/* The workload itself is done on a server. */
static void
start_far (struct explore *e)
{
  e->far = (struct crash_server_plan) {
    .kind = e->options->far_kind, .seed = e->options->seed,
    .stats = &e->stats->far,
  };
  crash_server_format (&e->far.kind, e->place->far, sizeof e->place->far);
  e->guest.far = &e->far;
  e->guest.careless = true; /* reading everything all the time takes long */
}

uint64_t
explore (struct explore *e, const struct made *m, const struct script *s,
         const char *text)
{
  const uint64_t violations = e->violations;
  struct explore_place *p = e->place;
  struct log log;

  snprintf (p->image, sizeof p->image, "%s", m->name);
  snprintf (p->script, sizeof p->script, "%s", text);
  p->seed = e->options->seed;
  p->threads = e->options->threads;
  p->points = e->options->points;
  p->far[0] = '\0';
  p->in_state = p->in_second = false;
  e->taken = e->options->points;
  guest_init (&e->guest, m);
  guest_init (&e->again, m);
  if (e->options->far)
    start_far (e);
  e->again.first_number = 1000000;
  e->again.careless = true;
  if (run_workload (e, m, s) || e->options->cut != EXPLORE_ANY) {
    e->guest.far = NULL; /* it reads states from now on */
    log = take_log (e->guest.disk);
    atomic_fetch_add (&e->stats->calls, log.nr);
    if (e->options->verbose)
      print_calls (log.op, log.nr);
    all_cuts (e, m, &log);
    free_log (&log);
  }
  atomic_fetch_add (&e->stats->workloads, 1);
  if (p->threads > 1)
    atomic_fetch_add (&e->stats->threaded, 1);
  guest_free (&e->guest);
  guest_free (&e->again);
  return e->violations - violations;
}

void
explore_free (struct explore *e)
{
  disk_state_free (&e->state);
  disk_state_free (&e->state2);
}
