/* SPDX-License-Identifier: BSD-3-Clause */

/* Does with files what the fuzz targets do, without libFuzzer, so that
 * `make check' always has the seeds and what was once found; and with some
 * mutations of each, the same in each run.
 *
 * fuzz-image-replay [-n MUTATIONS] [FILE|DIRECTORY]...
 */

#include <config.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exercise.h"
#include "mutate.h"

#define MAX_SIZE (256 << 10)

static unsigned nr_mutations = 300;
static unsigned nr_files, nr_inputs, nr_opened, nr_written;
static const char *current;
static unsigned current_seed;

/* So that what aborts or hangs can be found again. */
static void
say_where (int sig)
{
  fprintf (stderr, "signal %d in %s, mutation %u\n", sig,
           current != NULL ? current : "none", current_seed);
  signal (sig, SIG_DFL);
  raise (sig);
}

static void
replay (const char *path)
{
  uint8_t *seed = malloc (MAX_SIZE), *input;
  FILE *f = fopen (path, "r");
  size_t size, n;
  unsigned i;

  if (f == NULL || seed == NULL) {
    perror (path);
    exit (1);
  }
  size = fread (seed, 1, MAX_SIZE, f);
  fclose (f);
  current = path;
  nr_files++;
  for (i = 0; i <= nr_mutations; ++i) {
    /* In its own place, so that a sanitizer sees what is beyond. */
    input = malloc (MAX_SIZE);
    if (input == NULL)
      exit (1);
    memcpy (input, seed, size);
    current_seed = i;
    n = i > 0 && size > 0 ? mutate (input, size, MAX_SIZE, i) : size;
    input = realloc (input, n > 0 ? n : 1);
    nr_opened += exercise (input, n) > 0;
    nr_written += exercise_write (input, n);
    nr_inputs++;
    free (input);
  }
  current = NULL;
  free (seed);
}

static int
not_hidden (const struct dirent *e)
{
  return e->d_name[0] != '.';
}

static void
replay_path (const char *path)
{
  struct dirent **list;
  struct stat st;
  int i, nr;

  if (stat (path, &st) == -1 || !S_ISDIR (st.st_mode)) {
    replay (path);
    return;
  }
  nr = scandir (path, &list, not_hidden, alphasort);
  for (i = 0; i < nr; ++i) {
    char file[4096];

    snprintf (file, sizeof file, "%s/%s", path, list[i]->d_name);
    replay (file);
    free (list[i]);
  }
  if (nr >= 0)
    free (list);
}

static void
replay_committed (void)
{
  static const char *const names[] = { "corpus", "regressions" };
  const char *srcdir = getenv ("srcdir");
  char path[4096];
  unsigned i;

  for (i = 0; i < 2; ++i) {
    snprintf (path, sizeof path, "%s/%s", srcdir != NULL ? srcdir : ".",
              names[i]);
    if (access (path, R_OK) == 0)
      replay_path (path);
  }
}

int
main (int argc, char *argv[])
{
  int c;

  while ((c = getopt (argc, argv, "n:")) != -1) {
    if (c != 'n')
      return 2;
    nr_mutations = atoi (optarg);
  }
  signal (SIGABRT, say_where);
  signal (SIGALRM, say_where);
  alarm (300);
  if (optind == argc)
    replay_committed ();
  for (; optind < argc; ++optind)
    replay_path (argv[optind]);
  printf ("%u files, %u inputs, of which %u could be opened, %u for "
          "writing\n", nr_files, nr_inputs, nr_opened, nr_written);
  return nr_files == 0;
}
