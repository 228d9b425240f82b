/* SPDX-License-Identifier: BSD-3-Clause */

/* Does with files what the fuzz targets do, without libFuzzer, so that
 * `make check' always has the corpus and what was once found; and with some
 * mutations of each, the same in each run.
 *
 * fuzz-replay [-n MUTATIONS] [-t TARGET] [FILE|DIRECTORY]...
 * fuzz-replay -t TARGET -w MUTATION FILE >INPUT
 */

#include <config.h>

#include <dirent.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixed-key.h"
#include "memory.h"
#include "target.h"

static const struct target *const targets[] = {
  &target_header, &target_map, &target_write, &target_snapshot, &target_codec,
  &target_check, &target_cost, &target_qed, &target_bitmap,
};
#define NR_TARGETS (sizeof targets / sizeof targets[0])

/* Sanitizers see many more of them in the fuzzers. */
#if defined __SANITIZE_ADDRESS__
static unsigned nr_mutations = 6;
#else
static unsigned nr_mutations = 20;
#endif
static unsigned nr_files, nr_inputs;

/* What is being done, to find again what aborts or hangs. */
static const struct target *target;
static const char *current;
static unsigned current_seed;

static void
say_where (int sig)
{
  fprintf (stderr, "signal %d: target %s, %s, mutation %u\n", sig,
           target->name, current != NULL ? current : "none", current_seed);
  signal (sig, SIG_DFL);
  raise (sig);
}

/* The input in a place of its own, so that a sanitizer sees what is beyond. */
static uint8_t *
mutated (const uint8_t *seed, size_t *size, unsigned mutation)
{
  uint8_t *input = malloc (target->max_size);

  if (input == NULL)
    abort ();
  memcpy (input, seed, *size);
  if (mutation > 0 && *size > 0)
    *size = target->mutate (input, *size, target->max_size, mutation);
  return realloc (input, *size > 0 ? *size : 1);
}

static void
replay_input (const uint8_t *seed, size_t size, unsigned mutation)
{
  uint8_t *input = mutated (seed, &size, mutation);

  current_seed = mutation;
  memory_start ();
  target->test (input, size);
  memory_end (target->memory);
  nr_inputs++;
  free (input);
}

static uint8_t *
read_file (const char *path, size_t *size)
{
  uint8_t *seed = malloc (target->max_size);
  FILE *f = fopen (path, "r");

  if (f == NULL || seed == NULL) {
    perror (path);
    exit (1);
  }
  *size = fread (seed, 1, target->max_size, f);
  fclose (f);
  return seed;
}

static void
write_mutation (const char *path, unsigned mutation)
{
  size_t size;
  uint8_t *seed = read_file (path, &size);
  uint8_t *input = mutated (seed, &size, mutation);

  if (fwrite (input, 1, size, stdout) != size)
    exit (1);
  free (input);
  free (seed);
}

static void
replay_file (const char *path)
{
  size_t size;
  uint8_t *seed = read_file (path, &size);
  unsigned i;

  current = path;
  nr_files++;
  for (i = 0; i <= nr_mutations; ++i)
    replay_input (seed, size, i);
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
    replay_file (path);
    return;
  }
  nr = scandir (path, &list, not_hidden, alphasort);
  for (i = 0; i < nr; ++i) {
    char file[4096];

    snprintf (file, sizeof file, "%s/%s", path, list[i]->d_name);
    replay_file (file);
    free (list[i]);
  }
  if (nr >= 0)
    free (list);
}

/* The target's folders, or these paths.  Returns false if there is no file. */
static bool
replay (char *const paths[], int nr)
{
  static const char *const folders[] = { "corpus", "regressions" };
  const char *srcdir = getenv ("srcdir");
  char path[4096];
  int i;

  nr_files = nr_inputs = 0;
  for (i = 0; i < nr; ++i)
    replay_path (paths[i]);
  for (i = 0; nr == 0 && i < 2; ++i) {
    snprintf (path, sizeof path, "%s/%s/%s", srcdir != NULL ? srcdir : ".",
              folders[i], target->name);
    if (access (path, R_OK) == 0)
      replay_path (path);
  }
  printf ("%s: %u files, %u inputs\n", target->name, nr_files, nr_inputs);
  return nr_files > 0;
}

int
main (int argc, char *argv[])
{
  const char *name = NULL;
  bool found = false, all_have_files = true;
  int c, to_write = -1;
  unsigned i;

  fix_hash_key ();
  while ((c = getopt (argc, argv, "n:t:w:")) != -1) {
    switch (c) {
    case 'n': nr_mutations = atoi (optarg); break;
    case 't': name = optarg; break;
    case 'w': to_write = atoi (optarg); break;
    default: return 2;
    }
  }
  signal (SIGABRT, say_where);
  signal (SIGALRM, say_where);
  alarm (300);
  for (i = 0; i < NR_TARGETS; ++i) {
    target = targets[i];
    if (name != NULL && strcmp (name, target->name) != 0)
      continue;
    found = true;
    if (to_write >= 0 && optind < argc) {
      write_mutation (argv[optind], to_write);
      return 0;
    }
    all_have_files &= replay (argv + optind, argc - optind);
  }
  if (!found)
    fprintf (stderr, "fuzz-replay: no target %s\n", name);
  return !found || !all_have_files;
}
