/* SPDX-License-Identifier: BSD-3-Clause */

/* Whether core/'s check and `qemu-img check' agree, about images of all kinds,
 * sound and damaged at random.  Differences are those that qcow2/check/check.c
 * lists, or failures.
 *
 * test-check-qemu [STATES [SEED [IMAGE...]]]
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../crash/content.h"
#include "../crash/maker.h"
#include "base/bytes.h"
#include "base/error.h"
#include "memory-storage.h"
#include "qcow2/check/check.h"
#include "random.h"
#include "seconds.h"
#include "spoil.h"

static unsigned failures, clean, leaking, corrupt, unchecked;

/* Differences, by why they are there. */
enum reason {
  REASON_OVERLAP,     /* of metadata */
  REASON_ZERO_FLAG,   /* in version 2 */
  REASON_SUBCLUSTERS, /* of compressed data */
  REASON_UNALIGNED,   /* too many such L2 tables: not all are followed */
  REASON_BITMAPS,     /* qemu-img gives up */
  REASON_LARGE,       /* offsets of 2^63 and more: likewise */
  REASON_HEADER,      /* core/ refuses a header that QEMU takes */
  REASON_OTHER_FILES, /* QEMU opens what the header names */
  REASON_NOT_OURS,    /* data files, encryption */
  REASONS
};
static const char *const reason_text[REASONS] = {
  "overlaps that the refcounts agree with",
  "zero flags in version 2",
  "compressed clusters with subclusters",
  "more than 1000 unaligned L2 tables",
  "damaged bitmaps, which can't be opened there",
  "offsets of 2^63 and more, which can't be checked there",
  "headers that are refused here",
  "names of backing and data files, which are opened there",
  "features that are not supported here",
};
static unsigned reasons[REASONS];

static char directory[] = "test-check-qemu-XXXXXX";

/* -------------------------------------------------------------- qemu-img */

struct verdict {
  bool complete; /* there was an answer */
  int status;    /* of qemu-img */
  uint64_t corruptions, leaks, check_errors;
  uint64_t total, allocated, fragmented, compressed, image_end;
  char said[3000];
  char complained[1000];
};

/* What qemu-img's JSON says about one field; 0 if nothing. */
static uint64_t
field (const char *text, const char *name)
{
  char key[64];
  const char *p;

  snprintf (key, sizeof key, "\"%s\":", name);
  p = strstr (text, key);
  return p != NULL ? strtoull (p + strlen (key), NULL, 10) : 0;
}

/* The first bytes of it. */
static void
read_text (FILE *f, char *text, size_t size)
{
  text[f != NULL ? fread (text, 1, size - 1, f) : 0] = '\0';
}

/* No data is read, so that any passphrase does.  qemu-img must be given one for
 * an encrypted image, and only for such a one.
 */
static const char *
passphrase_arguments (const char *path)
{
  uint8_t start[QCOW2_HEADER_LENGTH_V2] = { 0 };
  FILE *f = fopen (path, "rb");
  const bool known = f != NULL && fread (start, 1, sizeof start, f) > 0;

  if (f != NULL)
    fclose (f);
  return known && get_be32 (start + 32) == ENCRYPTION_AES
    ? "--object secret,id=s,data=secret --image-opts driver=qcow2,"
      "encrypt.format=aes,encrypt.key-secret=s,file.filename="
    : "-f qcow2 ";
}

static void
ask_qemu_img (const char *path, struct verdict *v)
{
  char command[512], errors[64];
  FILE *p;

  snprintf (errors, sizeof errors, "%s/stderr", directory);
  snprintf (command, sizeof command, "qemu-img check --output=json %s%s 2>%s",
            passphrase_arguments (path), path, errors);
  p = popen (command, "r");
  if (p == NULL)
    abort ();
  read_text (p, v->said, sizeof v->said);
  v->status = WEXITSTATUS (pclose (p));
  p = fopen (errors, "r");
  read_text (p, v->complained, sizeof v->complained);
  if (p != NULL)
    fclose (p);
  v->complete = strstr (v->said, "check-errors") != NULL;
  v->corruptions = field (v->said, "corruptions");
  v->leaks = field (v->said, "leaks");
  v->check_errors = field (v->said, "check-errors");
  v->total = field (v->said, "total-clusters");
  v->allocated = field (v->said, "allocated-clusters");
  v->fragmented = field (v->said, "fragmented-clusters");
  v->compressed = field (v->said, "compressed-clusters");
  v->image_end = field (v->said, "image-end-offset");
}

/* ------------------------------------------------------------- comparing */

struct answer {
  bool complete;
  int errnum;
  struct check_report report;
  char said[3000];
};

static void
remember (void *opaque, enum check_kind kind, const char *text)
{
  struct answer *a = opaque;
  const size_t n = strlen (a->said);

  (void) kind;
  snprintf (a->said + n, sizeof a->said - n, "%s\n", text);
}

static void
ask (const struct spoiled *s, size_t memory, struct answer *a)
{
  const struct check_options options = {
    .memory = memory, .messages = 20, .found = remember, .opaque = a,
  };
  struct storage *storage =
    memory_storage_new ("image", s->bytes, s->size, NULL);

  memset (a, 0, sizeof *a);
  a->complete = check_storage (storage, &options, &a->report) == 0;
  if (!a->complete) {
    a->errnum = error_errno ();
    snprintf (a->said, sizeof a->said, "%s\n", error_message ());
  }
  storage_close (storage);
}

static bool
same_numbers (const struct answer *a, const struct verdict *v)
{
  const struct check_report *r = &a->report;

  return r->corruptions == v->corruptions && r->leaks == v->leaks &&
    r->check_errors == v->check_errors && r->total_clusters == v->total &&
    r->allocated_clusters == v->allocated &&
    r->fragmented_clusters == v->fragmented &&
    r->compressed_clusters == v->compressed && r->image_end == v->image_end;
}

/* An entry of compressed data in there may have subclusters. */
static bool
has_odd_compressed (const struct spoiled *s, const struct answer *a)
{
  return a->report.found[CHECK_COMPRESSED] > 0 &&
    (get_be64 (s->bytes + 72) & QCOW2_INCOMPAT_EXTENDED_L2);
}

/* Why qemu-img has nothing to say; REASONS: not known. */
static enum reason
why_incomplete (const struct answer *a, const struct verdict *v)
{
  if (strstr (v->complained, "backing file") != NULL ||
      strstr (v->complained, "data-file") != NULL)
    return REASON_OTHER_FILES;
  if (a->report.bitmaps_damaged)
    return REASON_BITMAPS;
  if (a->report.found[CHECK_BEYOND] > 0 &&
      strstr (v->complained, "Could not open") == NULL)
    return REASON_LARGE;
  return REASONS;
}

/* Why the verdicts differ; REASONS: not known. */
static enum reason
why_different (const struct spoiled *s, const struct answer *a,
               const struct verdict *v)
{
  const uint64_t zero_flags = a->report.found[CHECK_UNREADABLE];
  const uint64_t overlaps = a->report.found[CHECK_OVERLAP];
  struct answer without = *a;

  if (!a->complete && a->errnum == ENOTSUP)
    return REASON_NOT_OURS;
  if (!a->complete)
    return strstr (a->said, "(at offset") != NULL ? REASON_HEADER : REASONS;
  if (!v->complete)
    return why_incomplete (a, v);
  if (has_odd_compressed (s, a) && v->corruptions > 0)
    return REASON_SUBCLUSTERS;
  if (a->report.found[CHECK_UNALIGNED] > 1000 && v->corruptions > 0)
    return REASON_UNALIGNED;
  without.report.corruptions -= zero_flags + overlaps;
  if (!same_numbers (&without, v))
    return REASONS;
  return overlaps > 0 ? REASON_OVERLAP : REASON_ZERO_FLAG;
}

static void
complain (const char *name, uint64_t state, const struct spoiled *s,
          const struct answer *a, const struct verdict *v)
{
  const struct check_report *r = &a->report;

  if (failures++ > 20)
    return;
  fprintf (stderr, "%s, state %" PRIu64 ": %s\n"
           "here: complete %d, corruptions %" PRIu64 ", leaks %" PRIu64
           ", check errors %" PRIu64 ", clusters %" PRIu64 " %" PRIu64
           " %" PRIu64 " %" PRIu64 ", end %" PRIu64 "\n%sqemu-img: %d, %s%s\n",
           name, state, s->text, a->complete, r->corruptions, r->leaks,
           r->check_errors, r->total_clusters, r->allocated_clusters,
           r->fragmented_clusters, r->compressed_clusters, r->image_end,
           a->said, v->status, v->said, v->complained);
}

/* A small budget must not change anything. */
static void
compare_windows (const char *name, uint64_t state, const struct spoiled *s,
                 const struct answer *a)
{
  struct answer b;

  ask (s, 1, &b);
  b.report.windows = a->report.windows;
  b.report.counts_memory = a->report.counts_memory;
  if (b.complete == a->complete &&
      memcmp (&b.report, &a->report, sizeof b.report) == 0)
    return;
  failures++;
  fprintf (stderr, "%s, state %" PRIu64 ": another verdict with less memory\n",
           name, state);
}

static void
count_verdict (const struct answer *a)
{
  if (!a->complete || a->report.check_errors > 0)
    unchecked++;
  else if (a->report.corruptions > 0)
    corrupt++;
  else if (a->report.leaks > 0)
    leaking++;
  else
    clean++;
}

static void
write_file (const char *path, const void *bytes, uint64_t size)
{
  FILE *f = fopen (path, "wb");

  if (f == NULL || fwrite (bytes, 1, size, f) != size || fclose (f) != 0) {
    perror (path);
    exit (EXIT_FAILURE);
  }
}

static void
compare (const char *name, uint64_t state, const struct spoiled *s)
{
  enum reason reason;
  struct verdict v;
  struct answer a;
  char path[64];

  snprintf (path, sizeof path, "%s/image", directory);
  write_file (path, s->bytes, s->size);
  ask_qemu_img (path, &v);
  unlink (path);
  ask (s, 0, &a);
  compare_windows (name, state, s, &a);
  count_verdict (&a);
  if (a.complete == v.complete && (!a.complete || same_numbers (&a, &v)))
    return;
  reason = why_different (s, &a, &v);
  if (reason < REASONS)
    reasons[reason]++;
  else
    complain (name, state, s, &a, &v);
}

/* --------------------------------------------------------------- corpora */

static void
spoil_and_compare (const char *name, const uint8_t *bytes, uint64_t size,
                   uint64_t state, bool sound, uint64_t seed)
{
  struct spoiled s = { .bytes = malloc (size), .size = size };
  uint64_t random = mix (seed ^ mix (state));

  if (s.bytes == NULL)
    abort ();
  memcpy (s.bytes, bytes, size);
  if (!sound)
    spoil (&s, SPOIL_ANY, &random);
  compare (name, state, &s);
  free (s.bytes);
}

static void
compare_made (uint64_t states, uint64_t seed)
{
  uint64_t state;
  unsigned nr = 0;

  while (made_names[nr] != NULL)
    nr++;
  for (state = 0; state < states; ++state) {
    struct made m;

    if (!made_image (&m, made_names[state % nr]))
      abort ();
    spoil_and_compare (m.name, m.bytes, m.size, state, state < nr, seed);
    made_free (&m);
  }
}

static void
compare_file (const char *path, uint64_t states, uint64_t seed)
{
  FILE *f = fopen (path, "rb");
  uint8_t *bytes;
  uint64_t state;
  long size;

  if (f == NULL || fseek (f, 0, SEEK_END) != 0 || (size = ftell (f)) <= 0) {
    perror (path);
    exit (EXIT_FAILURE);
  }
  rewind (f);
  bytes = malloc (size);
  if (bytes == NULL || fread (bytes, 1, size, f) != (size_t) size)
    abort ();
  fclose (f);
  for (state = 0; state < states; ++state)
    spoil_and_compare (path, bytes, size, state, state == 0, seed);
  free (bytes);
}

/* Something that is a raw file, and a qcow2 image. */
static void
make_backing_file (void)
{
  char path[64];
  struct made m;

  if (mkdtemp (directory) == NULL || !made_image (&m, "v3-c512"))
    abort ();
  snprintf (path, sizeof path, "%s/backing", directory);
  write_file (path, m.bytes, m.size);
  made_free (&m);
}

static void
remove_files (void)
{
  char path[64];

  snprintf (path, sizeof path, "%s/backing", directory);
  unlink (path);
  snprintf (path, sizeof path, "%s/stderr", directory);
  unlink (path);
  rmdir (directory);
}

static void
print_result (uint64_t states, uint64_t seed)
{
  unsigned i, different = 0;

  for (i = 0; i < REASONS; ++i)
    different += reasons[i];
  printf ("%" PRIu64 " images (seed %" PRIu64 "): %u clean, %u with leaks, "
          "%u corrupt, %u that can't be checked\n", states, seed, clean,
          leaking, corrupt, unchecked);
  printf ("all numbers as qemu-img has them: %" PRIu64 "; different for a "
          "reason: %u; for none: %u\n", states - different - failures,
          different, failures);
  for (i = 0; i < REASONS; ++i)
    if (reasons[i] > 0)
      printf ("%6u %s\n", reasons[i], reason_text[i]);
}

int
main (int argc, char *argv[])
{
  const char *states_wanted = getenv ("CHECK_STATES");
  uint64_t states = states_wanted ? strtoull (states_wanted, NULL, 0)
    : 180 / TEST_EACH (3);
  const uint64_t seed = argc > 2 ? strtoull (argv[2], NULL, 0) : 1;
  int i;

  if (argc > 1)
    states = strtoull (argv[1], NULL, 0);
  if (system ("qemu-img --version > /dev/null 2>&1") != 0) {
    fprintf (stderr, "qemu-img is not here to compare with\n");
    return 77;
  }
  make_backing_file ();
  for (i = 3; i < argc; ++i)
    compare_file (argv[i], states, seed);
  if (argc <= 3)
    compare_made (states, seed);
  remove_files ();
  print_result (argc > 3 ? states * (argc - 3) : states, seed);
  return failures > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
