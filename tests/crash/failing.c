/* SPDX-License-Identifier: BSD-3-Clause */

/* Failing storage: each call of a workload's storage fails in turn, once or
 * with all that follow, or does less than it should; and so does each
 * allocation of memory.  The request that needed it says so, or nothing is
 * lost; done again it goes well, but after failures that memory can't be
 * trusted after: then nothing is written any more (I10).  No flush lies, and
 * whatever is on the disk is sound.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "checker.h"
#include "content.h"
#include "fixed-key.h"
#include "guest.h"
#include "no-memory.h"
#include "power-cut.h"
#include "random.h"

#define TEXT 1024
#define MAX_JOBS 64

struct place {
  char image[96];
  char script[TEXT];
  struct crash_fault fault;
  unsigned kind;
};

/* What needs space. */
#define FAULT_SPACE (FAULT_WRITE | FAULT_RESIZE | FAULT_ALLOCATE)

/* Not the storage but the allocation of memory. */
#define FAULT_MEMORY (1U << 31)

/* The ways in which calls fail. */
static const struct {
  const char *name;
  struct crash_fault fault;
} kinds[] = {
  { "eio", { .kinds = FAULT_ANY, .err = EIO } },
  { "eio-forever", { .kinds = FAULT_ANY, .err = EIO, .forever = true } },
  { "enospc", { .kinds = FAULT_SPACE, .err = ENOSPC } },
  { "enospc-forever", { .kinds = FAULT_SPACE, .err = ENOSPC,
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
  { "memory", { .kinds = FAULT_MEMORY, .err = ENOMEM } },
};

#define NR_KINDS (sizeof kinds / sizeof kinds[0])

static struct shared_state {
  _Atomic uint64_t workloads, states, failed_requests, violations;
  _Atomic uint64_t runs[NR_KINDS];
  _Atomic uint64_t next;
  _Atomic bool stop;
  struct place place[MAX_JOBS];
} *shared;

static struct {
  const char *image, *script, *kind;
  uint64_t call; /* 0: all */
  uint64_t seed;
  unsigned seconds, jobs;
  unsigned calls; /* of each workload and kind, at most */
  bool quiet;
} options = { .seed = 1, .jobs = 1, .calls = 200 };

static struct place *place;
static struct disk_state state;

static const char *
line (const struct place *p, char *buf, size_t size)
{
  snprintf (buf, size, "failing --image %s --seed %" PRIu64 " --script '%s' "
            "--kind %s --call %" PRIu64, p->image, options.seed, p->script,
            kinds[p->kind].name, p->fault.call);
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
  char name[160], landed[64], why[128];
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
  if (!guest_check_snapshots (reader))
    return violation ("cut at %" PRIu64 ", %s: %s", moment, landed,
                      reader->why);
  return made_bitmaps_are_kept (m, reader->disk->bytes, reader->buf, why,
                                sizeof why)
    || violation ("cut at %" PRIu64 ", %s: %s", moment, landed, why);
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

/* After the storage works again and the image is opened again, all is well. */
static bool
check_again (const struct made *m, struct guest *reader, struct guest *g)
{
  struct check_result before, after;
  const struct request write = {
    .kind = REQUEST_WRITE, .offset = m->disk_size / 2, .count = 2 * SECTOR,
  };
  const struct request flush = { .kind = REQUEST_FLUSH };
  char why[128];

  check_image (g->disk->bytes, g->disk->size,
               m->lazy ? CHECK_ANY_REFCOUNTS : 0, &before);
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
  return made_bitmaps_are_kept (m, reader->disk->bytes, reader->expect, why,
                                sizeof why)
    || violation ("afterwards, written: %s", why);
}

/* One run with a fault. */
struct attempt {
  const struct made *m;
  const struct crash_fault *fault;
  struct guest g, reader;
  uint64_t calls;     /* that could have failed */
  uint64_t failures;
};

static void
start_attempt (struct attempt *r, const struct made *m,
               const struct crash_fault *fault)
{
  r->m = m;
  r->fault = fault;
  guest_init (&r->g, m);
  guest_init (&r->reader, m);
  r->g.failing = true;
  r->g.retry = !fault->forever;
  memcpy (r->g.buf, m->content, m->disk_size);
  guest_believe (&r->g);
  memory_calls = 0;
  memory_fail_at = 0;
  if (fault->kinds == FAULT_MEMORY)
    memory_fail_at = fault->call;
  else
    r->g.next_fault = *fault;
}

static void
count_failures (struct attempt *r)
{
  r->calls = r->g.disk->calls;
  r->failures = r->g.disk->failures;
  if (r->fault->kinds == FAULT_MEMORY) {
    r->calls = memory_calls;
    r->failures = memory_fail_at != 0 && memory_calls >= memory_fail_at;
  }
}

/* A call that does less than it should, or was interrupted, goes on. */
static bool
nothing_may_fail (const struct attempt *r)
{
  return r->failures == 0 || r->fault->is_short || r->fault->err == EINTR;
}

/* Close it, which may fail if something fails then, or has before for good. */
static bool
close_attempt (struct attempt *r)
{
  uint64_t before;

  count_failures (r);
  before = r->failures;
  if (r->g.im == NULL || guest_close (&r->g) == 0)
    return true;
  count_failures (r);
  if (nothing_may_fail (r) || (before > 0 && !r->fault->forever &&
                               !r->g.given_up && !r->g.blind))
    return violation ("it can't be closed: %s", error_message ());
  return true;
}

static bool
do_attempt (struct attempt *r, const struct script *s)
{
  struct guest *g = &r->g;
  bool ok = true;

  if (guest_start (g, r->m->bytes, r->m->size) && guest_make_writable (g))
    ok = guest_script (g, s);
  else {
    count_failures (r);
    ok = !nothing_may_fail (r);
  }
  count_failures (r);
  if (ok && g->im != NULL && r->failures > 0 && !g->blind)
    ok = guest_compare (g);
  if (!ok)
    (void) violation ("%s", g->why[0] != '\0' ? g->why : "it does not open");
  ok = close_attempt (r) && ok;
  count_failures (r);
  if (nothing_may_fail (r) && g->failed_requests > 0)
    ok = violation ("a request failed");
  return ok;
}

/* A run that gets no further for so long hangs: a lock was not released. */
#define HANG_SECONDS 60

/* Where nothing more fails and all ends well, nothing is leaked; but for what
 * there was no memory to take note of.
 */
static bool
check_leaks (const struct attempt *r)
{
  const struct crash_disk *d = r->g.disk;
  struct check_result result;

  if (r->fault->forever || r->fault->kinds == FAULT_MEMORY || r->g.given_up ||
      r->g.unclean)
    return true;
  check_image (d->bytes, d->size, 0, &result);
  return result.leaks + result.beyond <= r->m->leaks ||
    violation ("%" PRIu64 " leaks", result.leaks + result.beyond);
}

/* The workload with this fault. */
static bool
run_once (const struct made *m, const struct script *s,
          const struct crash_fault *fault, uint64_t *calls, bool *hit)
{
  struct attempt r = { 0 };
  bool ok;

  alarm (HANG_SECONDS);
  start_attempt (&r, m, fault);
  ok = do_attempt (&r, s);
  memory_fail_at = 0;
  atomic_fetch_add (&shared->runs[place->kind], r.failures > 0);
  atomic_fetch_add (&shared->failed_requests, r.g.failed_requests);
  ok = ok && check_leaks (&r) && check_disk (m, &r.reader, &r.g) &&
    check_again (m, &r.reader, &r.g);
  *calls = r.calls;
  *hit = r.failures > 0;
  guest_free (&r.g);
  guest_free (&r.reader);
  alarm (0);
  return ok;
}

/* Each call in turn; of long workloads some. */
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
    if (calls > options.calls && random_below (&random, calls) > options.calls)
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

/* Systematic ones, pairs and random ones by turns; points in time are taken in
 * one of three.
 */
static bool
choose_script (const struct made *m, uint64_t number, struct script *s)
{
  bool found = true;

  if (options.script != NULL)
    return number == 0 && script_parse (s, options.script);
  if (number % 2 == 0)
    found = script_systematic (s, m, script_scattered (m, number / 2));
  else if (number % 4 == 1)
    script_pair (s, m, mix (number + options.seed));
  else
    script_random (s, m, mix (number + options.seed), 12);
  if (found && mix (number + m->size) % 3 == 0)
    script_add_points (s, mix (number + options.seed));
  return found;
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

/* The parent. */

static uint64_t
all_runs (void)
{
  uint64_t n = 0;
  unsigned i;

  for (i = 0; i < NR_KINDS; ++i)
    n += shared->runs[i];
  return n;
}

static void
print_stats (bool last)
{
  unsigned i;

  printf ("%s%" PRIu64 " workloads, run %" PRIu64 " times with a failure, %"
          PRIu64 " requests failed; %" PRIu64 " states of the disk looked at; "
          "%" PRIu64 " violations\n", last ? "" : "  ",
          (uint64_t) shared->workloads, all_runs (),
          (uint64_t) shared->failed_requests, (uint64_t) shared->states,
          (uint64_t) shared->violations);
  for (i = 0; last && i < NR_KINDS; ++i)
    printf ("%s%s %" PRIu64, i > 0 ? ", " : "calls that failed: ",
            kinds[i].name, (uint64_t) shared->runs[i]);
  if (last)
    printf ("\n");
  fflush (stdout);
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
  fprintf (stderr, "%s: %s %d\n", line (&shared->place[i], buf, sizeof buf),
           WIFSIGNALED (status) ? "killed by signal" : "exit status",
           WIFSIGNALED (status) ? WTERMSIG (status) : WEXITSTATUS (status));
}

static void
start_workers (pid_t *pids)
{
  unsigned i;

  fflush (stdout);
  for (i = 0; i < options.jobs; ++i) {
    pids[i] = fork ();
    if (pids[i] == -1) {
      perror ("fork");
      exit (2);
    }
    if (pids[i] == 0)
      work (i);
  }
}

#define PROGRESS_SECONDS 10

static void
supervise (void)
{
  pid_t pids[MAX_JOBS];
  unsigned i, left = options.seconds;
  int status;

  start_workers (pids);
  while (left > 0) {
    const unsigned n = left < PROGRESS_SECONDS ? left : PROGRESS_SECONDS;

    sleep (n);
    left -= n;
    if (!options.quiet && left > 0)
      print_stats (false);
  }
  if (options.seconds != 0)
    atomic_store (&shared->stop, true);
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
  { "calls", required_argument, NULL, 'n' },
  { "quiet", no_argument, NULL, 'q' },
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
  case 'n': options.calls = strtoul (arg, NULL, 0); break;
  case 'q': options.quiet = true; break;
  case 'r': options.seed = strtoull (arg, NULL, 0); break;
  default:
    fprintf (stderr, "failing [--seconds N] [--jobs N] [--image NAME] "
             "[--script REQUESTS] [--kind NAME] [--call N] [--seed N] "
             "[--calls N] [--quiet]\n");
    exit (2);
  }
}

int
main (int argc, char *argv[])
{
  int opt;

  fix_hash_key ();
  while ((opt = getopt_long (argc, argv, "", long_options, NULL)) != -1)
    set_option (opt, optarg);
  if (options.jobs < 1 || options.jobs > MAX_JOBS)
    options.jobs = 1;
  shared = mmap (NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    perror ("mmap");
    return 2;
  }
  /* The memory of disks is used again and again. */
  (void) mallopt (M_MMAP_THRESHOLD, 32 << 20);
  (void) mallopt (M_TRIM_THRESHOLD, 1 << 30);
  supervise ();
  print_stats (true);
  return shared->violations > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
