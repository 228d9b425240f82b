/* SPDX-License-Identifier: BSD-3-Clause */

/* Failing storage: each call of a workload's storage fails in turn, once or
 * with all that follow, or does less than it should.  The request that needed
 * it says so, or nothing is lost; after failures that memory can't be trusted
 * after, nothing is written any more (I10); no flush lies, and whatever is on
 * the disk is sound.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "checker.h"
#include "content.h"
#include "guest.h"
#include "power-cut.h"
#include "random.h"

#define TEXT 1024

struct place {
  char image[96];
  char script[TEXT];
  struct crash_fault fault;
  unsigned kind;
};

/* The ways in which calls fail. */
static const struct {
  const char *name;
  struct crash_fault fault;
} kinds[] = {
  { "eio", { .kinds = FAULT_ANY, .err = EIO } },
  { "eio-forever", { .kinds = FAULT_ANY, .err = EIO, .forever = true } },
  { "enospc", { .kinds = FAULT_WRITE | FAULT_RESIZE, .err = ENOSPC } },
  { "enospc-forever", { .kinds = FAULT_WRITE | FAULT_RESIZE, .err = ENOSPC,
                        .forever = true } },
  { "eio-partly", { .kinds = FAULT_WRITE, .err = EIO, .partly = true } },
  { "enospc-partly", { .kinds = FAULT_WRITE, .err = ENOSPC, .partly = true,
                       .forever = true } },
  { "flush", { .kinds = FAULT_FLUSH, .err = EIO } },
  { "flush-forever", { .kinds = FAULT_FLUSH, .err = EIO, .forever = true } },
  { "zero", { .kinds = FAULT_ZERO, .err = EOPNOTSUPP, .forever = true } },
  { "zero-eio", { .kinds = FAULT_ZERO, .err = EIO } },
  { "short", { .kinds = FAULT_READ | FAULT_WRITE, .is_short = true } },
  { "short-forever", { .kinds = FAULT_READ | FAULT_WRITE, .is_short = true,
                       .forever = true } },
  { "eintr", { .kinds = FAULT_READ | FAULT_WRITE, .err = EINTR } },
};

#define NR_KINDS (sizeof kinds / sizeof kinds[0])

static struct shared_state {
  _Atomic uint64_t workloads, runs, states, failed_requests, violations;
  _Atomic uint64_t next;
  _Atomic bool stop;
  struct place place[64];
} *shared;

static struct {
  const char *image, *script, *kind;
  uint64_t call; /* 0: all */
  uint64_t seed;
  unsigned seconds, jobs;
} options = { .seed = 1, .seconds = 0, .jobs = 1 };

static struct place *place;
static struct disk_state state;

static const char *
line (const struct place *p, char *buf, size_t size)
{
  snprintf (buf, size, "failing --image %s --script '%s' --kind %s --call %"
            PRIu64, p->image, p->script, kinds[p->kind].name, p->fault.call);
  return buf;
}

static bool __attribute__ ((__format__ (__printf__, 1, 2), __cold__))
violation (const char *fmt, ...)
{
  char buf[TEXT + 256], text[1200];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  fprintf (stderr, "%s: %s\n", line (place, buf, sizeof buf), text);
  atomic_fetch_add (&shared->violations, 1);
  return false;
}

/* One state that the disk may be in when the power fails now. */
static bool
check_state (const struct made *m, struct guest *reader, struct cut *c,
             const struct history *h, uint64_t moment, struct landed l)
{
  struct check_result result;
  char name[160], landed[64];
  uint64_t sector;

  landed_format (l, landed, sizeof landed);
  cut_state (c, l, &state);
  atomic_fetch_add (&shared->states, 1);
  check_image (state.bytes, state.size, 0, &result);
  if (m->lazy && result.opens && result.dirty)
    check_image (state.bytes, state.size, CHECK_ANY_REFCOUNTS, &result);
  if (!check_is_sound (&result))
    return violation ("cut at %" PRIu64 ", %s: %s", moment, landed,
                      result.why);
  if (!guest_start (reader, state.bytes, state.size) || !guest_read (reader))
    return violation ("cut at %" PRIu64 ", %s: %s", moment, landed,
                      reader->why);
  sector = history_check (h, reader->buf, moment);
  if (sector < h->nr_sectors) {
    (void) violation ("cut at %" PRIu64 ", %s: sector %" PRIu64 " holds %s; "
                      "it may hold:", moment, landed, sector,
                      content_name (reader->buf + sector * SECTOR, name,
                                    sizeof name));
    history_explain (h, sector, moment);
    return false;
  }
  return guest_check_snapshots (reader)
    || violation ("cut at %" PRIu64 ", %s: %s", moment, landed, reader->why);
}

/* What may be on the disk at the end, and at some moments before. */
static bool
check_disk (const struct made *m, struct guest *reader, struct guest *g)
{
  const struct crash_disk *d = g->disk;
  struct cut *c = cut_new (m->bytes, m->size, d->op, d->nr);
  uint64_t random = mix (place->fault.call + options.seed), k;
  bool ok = true;

  for (k = 0; ok && k <= d->nr; ++k) {
    unsigned i;

    /* A short write, which ends within a sector, tears that. */
    if (k < d->nr && (d->fault.is_short ||
                      random_below (&random, d->nr) > 6))
      continue;
    cut_advance (c, k);
    ok = check_state (m, reader, c, g->history, k,
                      (struct landed) { LANDED_NONE, 0 }) &&
      check_state (m, reader, c, g->history, k,
                   (struct landed) { LANDED_ALL, 0 });
    for (i = 0; ok && i < 3 && cut_pending (c) > 0; ++i)
      ok = check_state (m, reader, c, g->history, k, (struct landed) {
          LANDED_TORN, random_below (&random, 1 << 20) });
  }
  (void) guest_close (reader);
  cut_free (c);
  return ok;
}

/* After the storage works again and the image is opened anew, all is well. */
static bool
check_again (const struct made *m, struct guest *reader, struct guest *g)
{
  struct check_result before, after;
  const struct request write = {
    .kind = REQUEST_WRITE, .offset = m->disk_size / 2, .count = 2 * SECTOR,
  };
  const struct request flush = { .kind = REQUEST_FLUSH };

  check_image (g->disk->bytes, g->disk->size, m->lazy ? CHECK_ANY_REFCOUNTS : 0,
               &before);
  if (!check_is_sound (&before))
    return violation ("afterwards: %s", before.why);
  if (!guest_start (reader, g->disk->bytes, g->disk->size) ||
      !guest_read (reader))
    return violation ("afterwards: %s", reader->why);
  guest_believe (reader);
  if (!guest_make_writable (reader)) {
    if (reader->why[0] != '\0')
      return violation ("afterwards: %s", reader->why);
    return guest_close (reader) == 0;
  }
  if (!guest_request (reader, &write) || !guest_request (reader, &flush) ||
      !guest_finish (reader))
    return violation ("afterwards: %s", reader->why);
  check_image (reader->disk->bytes, reader->disk->size, 0, &after);
  if (!check_is_sound (&after))
    return violation ("afterwards, written: %s", after.why);
  return true;
}

/* The workload with this fault; *calls is how many calls there were that
 * could have failed.
 */
static bool
run_once (const struct made *m, const struct script *s,
          const struct crash_fault *fault, uint64_t *calls, bool *hit)
{
  struct guest g, reader;
  bool ok = true;

  guest_init (&g, m);
  guest_init (&reader, m);
  g.failing = true;
  memcpy (g.buf, m->content, m->disk_size);
  guest_believe (&g);
  g.next_fault = *fault;
  atomic_fetch_add (&shared->runs, 1);
  if (guest_start (&g, m->bytes, m->size) && guest_make_writable (&g))
    ok = guest_script (&g, s);
  else
    ok = g.disk->failures > 0 && !fault->is_short;
  if (ok && g.im != NULL && g.disk->failures > 0 && !g.blind)
    ok = guest_compare (&g);
  if (!ok)
    (void) violation ("%s", g.why[0] != '\0' ? g.why : "it does not open");
  if (g.im != NULL && guest_close (&g) == -1 &&
      (g.disk->failures == 0 || fault->is_short))
    ok = violation ("it can't be closed");
  *calls = g.disk->calls;
  *hit = g.disk->failures > 0;
  if (fault->is_short && g.failed_requests > 0)
    ok = violation ("a request failed");
  atomic_fetch_add (&shared->failed_requests, g.failed_requests);
  ok = ok && check_disk (m, &reader, &g) && check_again (m, &reader, &g);
  guest_free (&g);
  guest_free (&reader);
  return ok;
}

/* Each call in turn; of long workloads some. */
#define MAX_CALLS 200

static void
run_kind (const struct made *m, const struct script *s, unsigned kind)
{
  struct crash_fault fault = kinds[kind].fault;
  uint64_t random = mix (options.seed + kind), calls = 0, n, call;
  unsigned violations = 0;
  bool hit;

  place->kind = kind;
  place->fault = fault;
  if (options.call == 0 && !run_once (m, s, &fault, &calls, &hit))
    return;
  for (call = 1; call <= calls && violations < 3; ++call) {
    if (atomic_load (&shared->stop))
      return;
    if (calls > MAX_CALLS && random_below (&random, calls) > MAX_CALLS)
      continue;
    fault.call = place->fault.call = call;
    if (!run_once (m, s, &fault, &n, &hit))
      violations++;
    if (!hit)
      break;
  }
  if (options.call != 0) {
    fault.call = place->fault.call = options.call;
    (void) run_once (m, s, &fault, &n, &hit);
  }
}

static bool
choose_script (const struct made *m, uint64_t number, struct script *s)
{
  if (options.script != NULL)
    return number == 0 && script_parse (s, options.script);
  if (number % 4 == 3 && script_systematic (s, m, number / 4 % 11))
    return true;
  if (number % 2 == 0)
    script_pair (s, m, mix (number + options.seed));
  else
    script_random (s, m, mix (number + options.seed), 12);
  return true;
}

static void
run_one (const char *name, uint64_t number)
{
  struct script *s = malloc (sizeof *s);
  struct made m;
  unsigned i;

  if (s == NULL || !made_image (&m, name)) {
    fprintf (stderr, "failing: there is no image %s\n", name);
    exit (2);
  }
  if (!choose_script (&m, number, s)) {
    fprintf (stderr, "failing: there is no script %s\n", options.script);
    exit (2);
  }
  snprintf (place->image, sizeof place->image, "%s", name);
  if (script_format (s, place->script, sizeof place->script)) {
    for (i = 0; i < NR_KINDS; ++i) {
      if (options.kind == NULL || strcmp (kinds[i].name, options.kind) == 0)
        run_kind (&m, s, i);
    }
    atomic_fetch_add (&shared->workloads, 1);
  }
  made_free (&m);
  free (s);
}

/* Without a time limit, each image once. */
static void
work (unsigned i)
{
  unsigned nr = 0;

  place = &shared->place[i];
  while (made_names[nr] != NULL)
    nr++;
  if (options.image != NULL)
    nr = 1;
  while (!atomic_load (&shared->stop)) {
    const uint64_t n = atomic_fetch_add (&shared->next, 1);

    if ((options.seconds == 0 || options.script != NULL) && n >= nr)
      break;
    run_one (options.image != NULL ? options.image : made_names[n % nr],
             n / nr);
  }
  disk_state_free (&state);
  exit (0);
}

static void
bury (unsigned i, int status)
{
  char buf[TEXT + 256];

  if (WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return;
  if (WIFEXITED (status) && WEXITSTATUS (status) == 2)
    exit (2);
  atomic_fetch_add (&shared->violations, 1);
  fprintf (stderr, "%s: killed by signal %d\n",
           line (&shared->place[i], buf, sizeof buf), WTERMSIG (status));
}

static void
supervise (void)
{
  pid_t pids[64];
  unsigned i;
  int status;

  for (i = 0; i < options.jobs; ++i) {
    pids[i] = fork ();
    if (pids[i] == -1) {
      perror ("fork");
      exit (2);
    }
    if (pids[i] == 0)
      work (i);
  }
  if (options.seconds != 0) {
    sleep (options.seconds);
    atomic_store (&shared->stop, true);
  }
  for (i = 0; i < options.jobs; ++i) {
    if (waitpid (pids[i], &status, 0) == pids[i])
      bury (i, status);
  }
}

static const struct option long_options[] = {
  { "seconds", required_argument, NULL, 's' },
  { "jobs", required_argument, NULL, 'j' },
  { "image", required_argument, NULL, 'i' },
  { "script", required_argument, NULL, 'x' },
  { "kind", required_argument, NULL, 'k' },
  { "call", required_argument, NULL, 'c' },
  { "seed", required_argument, NULL, 'r' },
  { NULL, 0, NULL, 0 }
};

static void
set_option (int opt, const char *arg)
{
  switch (opt) {
  case 's': options.seconds = strtoul (arg, NULL, 0); break;
  case 'j': options.jobs = strtoul (arg, NULL, 0); break;
  case 'i': options.image = arg; break;
  case 'x': options.script = arg; break;
  case 'k': options.kind = arg; break;
  case 'c': options.call = strtoull (arg, NULL, 0); break;
  case 'r': options.seed = strtoull (arg, NULL, 0); break;
  default:
    fprintf (stderr, "failing [--seconds N] [--jobs N] [--image NAME] "
             "[--script REQUESTS] [--kind NAME] [--call N] [--seed N]\n");
    exit (2);
  }
}

int
main (int argc, char *argv[])
{
  int opt;

  while ((opt = getopt_long (argc, argv, "", long_options, NULL)) != -1)
    set_option (opt, optarg);
  if (options.jobs < 1 || options.jobs > 64)
    options.jobs = 1;
  shared = mmap (NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    perror ("mmap");
    return 2;
  }
  supervise ();
  printf ("%" PRIu64 " workloads, run %" PRIu64 " times with a failure, %"
          PRIu64 " requests failed; %" PRIu64 " states of the disk looked at; "
          "%" PRIu64 " violations\n", (uint64_t) shared->workloads,
          (uint64_t) shared->runs, (uint64_t) shared->failed_requests,
          (uint64_t) shared->states, (uint64_t) shared->violations);
  return shared->violations > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
