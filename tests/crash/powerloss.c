/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts: images are written to, and at every call of their storage the
 * power fails.  Whatever subset of the unflushed calls reached the disk, and
 * however torn, the image must be sound, hold what was flushed, and go on
 * being written; after a second cut as well.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "explore.h"
#include "fixed-key.h"
#include "random.h"
#include "storage/nbd.h"

#define MAX_JOBS 256

/* Of --mix. */
#define MIXED_THREADS 4

/* A worker that gets no further for so long hangs. */
#define HANG_SECONDS 120

/* What the parent and its workers share. */
struct worker {
  struct explore_place place;
  _Atomic bool idle;
};

struct shared_state {
  struct explore_stats stats;
  _Atomic uint64_t next; /* workload */
  _Atomic bool stop;
  struct worker worker[MAX_JOBS];
};

static struct shared_state *shared;

static struct {
  struct explore_options explore;
  const char *image;  /* a name, or part of names */
  unsigned every;     /* so many-th of those */
  const char *script;
  unsigned seconds;
  unsigned jobs;
  unsigned random;    /* requests of a random script, or of each thread */
  unsigned mix;       /* one workload by threads for so many; 0: none */
  uint64_t workloads; /* at most */
  bool quiet;
  bool points;
  bool any_far;       /* each workload on another kind of server */
} options = {
  .explore = {
    .seed = 1, .cut = EXPLORE_ANY, .cut2 = EXPLORE_ANY, .threads = 1,
    .cuts = 150, .torn = 4, .second_every = 150,
  },
  .every = 1,
  .jobs = 1,
  .random = 60,
  .workloads = UINT64_MAX,
};

static void
usage (FILE *f)
{
  fprintf (f,
"powerloss [OPTION...]\n"
"  --seconds N    stop after that time (default: once all systematic scripts\n"
"                 have been run; after those, random ones are)\n"
"  --jobs N       processes\n"
"  --image NAME   this image, or with a `*' at the end all whose names begin\n"
"                 so; --list names them, and others can be made up\n"
"  --every N      only each N-th of these images\n"
"  --script TEXT  this script: requests, systematic:N, pair:SEED,\n"
"                 random:SEED:REQUESTS or churn:SEED:REQUESTS;\n"
"                 points:SEED: before it does what --points does\n"
"  --points       take points in time and make snapshots among the requests; with\n"
"                 --script only after the cut, and where the script says so\n"
"  --far[=WORDS]  the image is on an NBD server, which has everything (all), or\n"
"                 what these words say, such as nofua+block4096: nofua, nozero,\n"
"                 nofast, notrim, noextents, blockN, many (connections); without\n"
"                 words it is another one each time\n"
"  --seed N       of all that is random\n"
"  --cut N        only the cut at this call of the storage\n"
"  --subset WHICH only this subset of the pending calls: none, all, prefix:N,\n"
"                 only:N, not:N, mask:BITS, torn:SEED\n"
"  --cut2, --subset2   likewise, when the image is written to again\n"
"  --threads N    deal the requests to so many threads; such runs differ\n"
"  --mix N        after each N workloads one by four threads\n"
"  --cuts N       at most so many cuts of each workload (default 150)\n"
"  --torn N       random subsets for each cut (default 4)\n"
"  --second N     cut one state of N a second time (default 150)\n"
"  --random N     requests of a random script (default 60)\n"
"  --workloads N  stop after so many\n"
"  --ask N        have qemu-img check one state of N as well\n"
"  --verbose      print the calls of the storage\n"
"  --quiet        no progress\n"
"  --list         list the images\n");
}

static double
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

/* Images. */

static bool
is_wanted (const char *name)
{
  const size_t n = options.image != NULL ? strlen (options.image) : 0;

  if (n == 0)
    return true;
  if (options.image[n - 1] == '*')
    return strncmp (name, options.image, n - 1) == 0;
  return strcmp (name, options.image) == 0;
}

/* The images that are wanted; at least one. */
static unsigned
wanted_images (const char **names, unsigned max)
{
  unsigned i, nr = 0, seen = 0;

  for (i = 0; made_names[i] != NULL && nr < max; ++i) {
    if (is_wanted (made_names[i]) && seen++ % options.every == 0)
      names[nr++] = made_names[i];
  }
  if (nr == 0)
    names[nr++] = options.image;
  return nr;
}

/* Scripts. */

/* What --script says, for this image.  False if there is no such script. */
static bool
script_from_text (struct script *s, const struct made *m, const char *text)
{
  const bool churns = strncmp (text, "churn:", 6) == 0;
  char *end;
  uint64_t seed;

  if (strncmp (text, "points:", 7) == 0) {
    seed = strtoull (text + 7, &end, 0);
    if (*end != ':' || !script_from_text (s, m, end + 1))
      return false;
    script_add_points (s, seed);
    script_add_takes (s, seed);
    return true;
  }
  if (strncmp (text, "systematic:", 11) == 0)
    return script_systematic (s, m, strtoull (text + 11, NULL, 0));
  if (strncmp (text, "pair:", 5) == 0) {
    script_pair (s, m, strtoull (text + 5, NULL, 0));
    return true;
  }
  if (churns || strncmp (text, "random:", 7) == 0) {
    seed = strtoull (strchr (text, ':') + 1, &end, 0);
    (churns ? script_churn : script_random)
      (s, m, seed, *end == ':' ? strtoul (end + 1, NULL, 0) : options.random);
    return true;
  }
  return script_parse (s, text);
}

/* The text that repeats a script: its requests if they are few. */
#define SHORT_TEXT 300

static void
script_text (const struct script *s, const char *text, char *buf, size_t size)
{
  char requests[SHORT_TEXT];

  if (script_format (s, requests, sizeof requests))
    text = requests;
  snprintf (buf, size, "%s", text);
}

/* Of four workloads of an image three are systematic, as long as there are
 * such, and one is random.
 */
static bool
is_systematic (uint64_t number)
{
  return number % 4 != 3;
}

static uint64_t
systematic_number (uint64_t number)
{
  return number - number / 4;
}

/* Workload number `number' of an image. */
static void
choose_script (const struct made *m, uint64_t number, unsigned threads,
               char *text, size_t size)
{
  const uint64_t systematic = script_systematic_nr (m);
  const uint64_t seed = mix (options.explore.seed + mix (number)) >> 40;

  if (threads > 1)
    snprintf (text, size, "%s:%" PRIu64 ":%u",
              seed % 2 == 0 ? "random" : "churn", seed,
              options.random * threads);
  else if (is_systematic (number) && systematic_number (number) < systematic)
    snprintf (text, size, "systematic:%" PRIu64,
              script_scattered (m, systematic_number (number)));
  else if (seed % 3 != 0)
    snprintf (text, size, "pair:%" PRIu64, seed);
  else
    snprintf (text, size, "random:%" PRIu64 ":%u", seed,
              5 + (unsigned) (seed % options.random));
}

/* Workers. */

/* With a time limit large images have their turn less often. */
#define LARGE_BYTES (UINT64_C (1) << 20)
#define LARGE_EVERY 8

#define RESERVE_BYTES (UINT64_C (1) << 20)

static bool
is_its_turn (const struct made *m, uint64_t *number)
{
  const uint64_t round = *number;

  if (options.seconds == 0 || options.script != NULL ||
      m->size + m->disk_size < LARGE_BYTES)
    return true;
  *number /= LARGE_EVERY;
  return round % LARGE_EVERY == 0;
}

static void
run_script (struct explore *e, const struct made *m, uint64_t number,
            unsigned threads)
{
  struct explore_options with = options.explore;
  struct script *s = malloc (sizeof *s);
  char text[EXPLORE_SCRIPT_TEXT], line[EXPLORE_SCRIPT_TEXT];
  int n = 0;

  if (s == NULL)
    abort ();
  if (options.points && options.script == NULL)
    n = snprintf (text, sizeof text, "points:%" PRIu64 ":",
                  mix (options.explore.seed + mix (number)) >> 40);
  if (options.script != NULL)
    snprintf (text + n, sizeof text - n, "%s", options.script);
  else
    choose_script (m, number, threads, text + n, sizeof text - n);
  if (!script_from_text (s, m, text)) {
    fprintf (stderr, "powerloss: there is no script %s\n", text);
    exit (2);
  }
  script_text (s, text, line, sizeof line);
  with.threads = threads;
  if (options.any_far)
    with.far_kind = crash_server_any (options.explore.seed + mix (number) +
                                      mix (m->size + m->nr_clusters));
  e->options = &with;
  (void) explore (e, m, s, line);
  free (s);
}

/* What is beyond the image on a device: enough for all that scripts do, and for
 * the reserves of the allocator, which a cut leaks.
 */
static uint64_t
device_room (const struct made *m)
{
  const uint64_t reserve = 256 * m->cluster_size;

  return m->disk_size + 16 * m->cluster_size +
    3 * (reserve < RESERVE_BYTES ? reserve : RESERVE_BYTES);
}

static void
run_one (struct explore *e, const char *name, uint64_t number,
         unsigned threads)
{
  struct made m;

  if (!made_image (&m, name)) {
    fprintf (stderr, "powerloss: there is no image %s\n", name);
    exit (2);
  }
  if (is_its_turn (&m, &number)) {
    if (options.explore.far)
      made_on_device (&m, device_room (&m), options.explore.seed);
    run_script (e, &m, number, threads);
  }
  made_free (&m);
}

/* The most systematic scripts that an image has. */
static uint64_t
most_systematic (const char *const *names, unsigned nr)
{
  uint64_t most = 0;
  struct made m;
  unsigned i;

  for (i = 0; i < nr; ++i) {
    uint64_t n;

    if (!made_image (&m, names[i]))
      continue;
    n = script_systematic_nr (&m);
    made_free (&m);
    if (most < n)
      most = n;
  }
  return most;
}

/* Whether to stop before workload n. */
static bool
is_enough (uint64_t n, unsigned nr, uint64_t systematic)
{
  if (n >= options.workloads)
    return true;
  if (options.script != NULL)
    return n >= nr;
  return options.seconds == 0 && systematic_number (n / nr) >= systematic;
}

/* For what qemu-img is to see. */
static void
work_directory (const struct explore *e, const char *command)
{
  char text[256];

  if (options.explore.ask_every == 0)
    return;
  snprintf (text, sizeof text, "%s %s", command, e->directory);
  if (system (text) != 0)
    exit (2);
}

static void
work (unsigned i)
{
  const char *names[64];
  const unsigned nr = wanted_images (names, 64);
  const uint64_t systematic = most_systematic (names, nr);
  struct explore e = {
    .stats = &shared->stats, .place = &shared->worker[i].place,
  };

  snprintf (e.directory, sizeof e.directory, "powerloss-%ld-%u.tmp",
            (long) getpid (), i);
  work_directory (&e, "mkdir -p");
  while (!atomic_load (&shared->stop)) {
    const uint64_t n = atomic_fetch_add (&shared->next, 1);

    if (is_enough (n, nr, systematic))
      break;
    run_one (&e, names[n % nr], n / nr, options.explore.threads);
    if (options.mix != 0 && n % options.mix == 0)
      run_one (&e, names[n / options.mix % nr], n, MIXED_THREADS);
  }
  explore_free (&e);
  work_directory (&e, "rm -rf");
  atomic_store (&shared->worker[i].idle, true);
  exit (0);
}

/* The parent. */

static void
print_stats (double seconds, bool last)
{
  struct explore_stats *s = &shared->stats;
  const uint64_t states = s->states + s->second;

  printf ("%s%" PRIu64 " states (%" PRIu64 " after a second cut) of %" PRIu64
          " workloads (%" PRIu64 " by threads), %" PRIu64 " cuts, in %.0f s: "
          "%.0f states/s; %" PRIu64 " violations\n", last ? "" : "  ", states,
          (uint64_t) s->second, (uint64_t) s->workloads,
          (uint64_t) s->threaded, (uint64_t) s->cuts, seconds,
          states / (seconds > 0 ? seconds : 1), (uint64_t) s->violations);
  if (last && s->leaking > 0)
    printf ("%" PRIu64 " states with leaks, of %" PRIu64 " clusters at most\n",
            (uint64_t) s->leaking, (uint64_t) s->most_leaks);
  if (last && s->dirty > 0)
    printf ("%" PRIu64 " states marked as dirty, %" PRIu64 " of them with "
            "right refcounts all the same\n", (uint64_t) s->dirty,
            (uint64_t) s->mended);
  if (last && s->far.requests > 0)
    printf ("%" PRIu64 " requests to servers, %" PRIu64 " of them out of order, "
            "%" PRIu64 " on a further connection\n",
            (uint64_t) s->far.requests, (uint64_t) s->far.early,
            (uint64_t) s->far.beside);
  if (last && s->asked > 0)
    printf ("%" PRIu64 " states judged by qemu-img as well\n",
            (uint64_t) s->asked);
  fflush (stdout);
}

static pid_t pids[MAX_JOBS];

static void
start_worker (unsigned i)
{
  atomic_store (&shared->worker[i].idle, false);
  fflush (stdout);
  pids[i] = fork ();
  if (pids[i] == -1) {
    perror ("fork");
    exit (2);
  }
  if (pids[i] == 0)
    work (i);
}

/* A worker that ended other than by finishing has found a bug. */
#define MAX_CRASHES 20

static void
bury (pid_t pid, int status)
{
  static unsigned crashes;
  char line[EXPLORE_SCRIPT_TEXT + 512];
  unsigned i;

  for (i = 0; i < options.jobs && pids[i] != pid; ++i)
    ;
  if (i == options.jobs)
    return;
  pids[i] = 0;
  if (WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return;
  if (WIFEXITED (status) && WEXITSTATUS (status) == 2)
    exit (2);
  atomic_fetch_add (&shared->stats.violations, 1);
  fprintf (stderr, "%s: %s %d\n",
           explore_line (&shared->worker[i].place, line, sizeof line),
           WIFSIGNALED (status) ? "killed by signal" : "exit status",
           WIFSIGNALED (status) ? WTERMSIG (status) : WEXITSTATUS (status));
  /* Another one goes on with the next workload. */
  if (++crashes < MAX_CRASHES && options.script == NULL)
    start_worker (i);
}

static bool
any_worker (void)
{
  unsigned i;

  for (i = 0; i < options.jobs; ++i) {
    if (pids[i] != 0)
      return true;
  }
  return false;
}

/* States are counted all the time; if they are not, all workers hang. */
static void
look_for_hang (double t)
{
  static uint64_t seen;
  static double since;
  const uint64_t done = shared->stats.states + shared->stats.second +
    shared->stats.workloads;
  unsigned i;

  if (done != seen || since == 0) {
    seen = done;
    since = t;
  }
  if (t - since < HANG_SECONDS)
    return;
  for (i = 0; i < options.jobs; ++i) {
    if (pids[i] != 0)
      kill (pids[i], SIGABRT);
  }
}

static void
supervise (void)
{
  const double start = now ();
  double printed = start;
  unsigned i;

  for (i = 0; i < options.jobs; ++i)
    start_worker (i);
  while (any_worker ()) {
    const double t = now ();
    int status;
    pid_t pid;

    while ((pid = waitpid (-1, &status, WNOHANG)) > 0)
      bury (pid, status);
    if (options.seconds != 0 && t - start >= options.seconds)
      atomic_store (&shared->stop, true);
    if (!options.quiet && t - printed >= 10) {
      print_stats (t - start, false);
      printed = t;
    }
    look_for_hang (t);
    usleep (20000);
  }
  print_stats (now () - start, true);
}

/* Options. */

enum {
  OPT_SECONDS = 256, OPT_JOBS, OPT_IMAGE, OPT_EVERY, OPT_SCRIPT, OPT_SEED,
  OPT_CUT, OPT_SUBSET, OPT_CUT2, OPT_SUBSET2, OPT_THREADS, OPT_MIX, OPT_CUTS,
  OPT_POINTS, OPT_FAR, OPT_TORN, OPT_SECOND, OPT_RANDOM, OPT_WORKLOADS,
  OPT_ASK, OPT_VERBOSE, OPT_QUIET, OPT_LIST, OPT_HELP,
};

static const struct option long_options[] = {
  { "seconds", required_argument, NULL, OPT_SECONDS },
  { "jobs", required_argument, NULL, OPT_JOBS },
  { "image", required_argument, NULL, OPT_IMAGE },
  { "every", required_argument, NULL, OPT_EVERY },
  { "script", required_argument, NULL, OPT_SCRIPT },
  { "points", no_argument, NULL, OPT_POINTS },
  { "seed", required_argument, NULL, OPT_SEED },
  { "cut", required_argument, NULL, OPT_CUT },
  { "subset", required_argument, NULL, OPT_SUBSET },
  { "cut2", required_argument, NULL, OPT_CUT2 },
  { "subset2", required_argument, NULL, OPT_SUBSET2 },
  { "threads", required_argument, NULL, OPT_THREADS },
  { "mix", required_argument, NULL, OPT_MIX },
  { "cuts", required_argument, NULL, OPT_CUTS },
  { "far", optional_argument, NULL, OPT_FAR },
  { "torn", required_argument, NULL, OPT_TORN },
  { "second", required_argument, NULL, OPT_SECOND },
  { "random", required_argument, NULL, OPT_RANDOM },
  { "workloads", required_argument, NULL, OPT_WORKLOADS },
  { "ask", required_argument, NULL, OPT_ASK },
  { "verbose", no_argument, NULL, OPT_VERBOSE },
  { "quiet", no_argument, NULL, OPT_QUIET },
  { "list", no_argument, NULL, OPT_LIST },
  { "help", no_argument, NULL, OPT_HELP },
  { NULL, 0, NULL, 0 }
};

static void
subset (const char *text, struct landed *l, bool *have)
{
  *have = true;
  if (landed_parse (l, text))
    return;
  fprintf (stderr, "powerloss: what subset is %s?\n", text);
  exit (2);
}

static void
list_images (void)
{
  unsigned i;

  for (i = 0; made_names[i] != NULL; ++i)
    printf ("%s\n", made_names[i]);
  exit (0);
}

/* A value of an option that must be at least 1. */
static unsigned
positive (const char *text)
{
  const unsigned long v = strtoul (text, NULL, 0);

  if (v == 0 || v > INT32_MAX) {
    fprintf (stderr, "powerloss: %s is not a number that will do\n", text);
    exit (2);
  }
  return v;
}

/* Without a word the kinds differ. */
static void
far (const char *arg)
{
  struct explore_options *e = &options.explore;

  e->far = true;
  options.any_far = arg == NULL;
  if (arg == NULL || crash_server_parse (&e->far_kind, arg))
    return;
  fprintf (stderr, "powerloss: there is no server %s\n", arg);
  exit (2);
}

static void
set_option (int opt, const char *arg)
{
  struct explore_options *e = &options.explore;

  switch (opt) {
  case OPT_SECONDS: options.seconds = positive (arg); break;
  case OPT_JOBS: options.jobs = positive (arg); break;
  case OPT_IMAGE: options.image = arg; break;
  case OPT_EVERY: options.every = positive (arg); break;
  case OPT_SCRIPT: options.script = arg; break;
  case OPT_POINTS: options.points = e->points = true; break;
  case OPT_FAR: far (arg); break;
  case OPT_SEED: e->seed = strtoull (arg, NULL, 0); break;
  case OPT_CUT: e->cut = strtoull (arg, NULL, 0); break;
  case OPT_SUBSET: subset (arg, &e->landed, &e->have_landed); break;
  case OPT_CUT2: e->cut2 = strtoull (arg, NULL, 0); break;
  case OPT_SUBSET2: subset (arg, &e->landed2, &e->have_landed2); break;
  case OPT_THREADS: e->threads = positive (arg); break;
  case OPT_MIX: options.mix = positive (arg); break;
  case OPT_CUTS: e->cuts = positive (arg); break;
  case OPT_TORN: e->torn = strtoul (arg, NULL, 0); break;
  case OPT_SECOND: e->second_every = strtoul (arg, NULL, 0); break;
  case OPT_RANDOM: options.random = positive (arg); break;
  case OPT_WORKLOADS: options.workloads = positive (arg); break;
  case OPT_ASK: e->ask_every = positive (arg); break;
  case OPT_VERBOSE: e->verbose = true; break;
  case OPT_QUIET: options.quiet = true; break;
  case OPT_LIST: list_images (); break;
  case OPT_HELP: usage (stdout); exit (0);
  default: usage (stderr); exit (2);
  }
}

int
main (int argc, char *argv[])
{
  int opt;

  fix_hash_key ();
  while ((opt = getopt_long (argc, argv, "", long_options, NULL)) != -1)
    set_option (opt, optarg);
  if (optind != argc) {
    usage (stderr);
    return 2;
  }
  if (options.explore.far && storage_nbd_library () == NULL) {
    printf ("SKIP: no libnbd\n");
    return 77;
  }
  (void) signal (SIGPIPE, SIG_IGN); /* libnbd leaves that to its caller */
  if (options.jobs > MAX_JOBS)
    options.jobs = MAX_JOBS;
  shared = mmap (NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    perror ("mmap");
    return 2;
  }
  supervise ();
  return shared->stats.violations > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
