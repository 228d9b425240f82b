/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "gate.h"
#include "image-check.h"
#include "image.h"
#include "interleave.h"
#include "meeting-disk.h"
#include "must-have.h"
#include "random.h"
#include "serial.h"

struct interleave_counts interleave_counts;

/* ---------------------------------------------------------------- the case */

static const struct {
  const char *name;
  uint64_t cache_size;
  const char *script;
} states[] = {
  /* Nothing is cached, no cluster is reserved, the image is as it was. */
  { "cold", CACHE_MIN_BYTES, "" },
  /* All is, and something waits for a flush. */
  { "warm", UINT64_C (1) << 20, "other3,flush,read-two,far1" },
  /* A change of one more table has to write others first. */
  { "crowded", CACHE_MIN_BYTES, "far1,far2,far3,far4" },
};

static struct {
  const struct interleaving *c;
  const struct meeting_disk *kind;
  struct memory_disk disk;
  struct image *im;
  struct layer *live, *view; /* view: NULL if there is no snapshot */
  struct serial serial;
  uint8_t *bytes[SERIAL_MAX];
  unsigned nr_bytes;
} now;

/* Room for what is watched of a disk. */
static uint8_t scratch[MEETING_MAX_WATCHED * MEETING_MAX_CLUSTER];

static void __attribute__ ((__format__ (__printf__, 1, 2), __cold__))
violation (const char *fmt, ...)
{
  char text[1024];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  check_failed (__FILE__, __LINE__, "%s", text);
}

/* ------------------------------------------------------------ what it says */

/* One range of whole sectors: the requests of `must' at least took effect. */
static void
check_sectors (const char *where, const uint8_t *buf, uint64_t offset,
               uint64_t count, uint32_t must)
{
  uint64_t i;

  for (i = 0; i < count; i += SERIAL_SECTOR) {
    if (serial_allows (&now.serial, (offset + i) / SERIAL_SECTOR, buf + i,
                       must))
      continue;
    violation ("%s: the sector at 0x%" PRIx64 " holds %02x %02x %02x %02x "
               "... %02x, which it never should", where, offset + i, buf[i],
               buf[i + 1], buf[i + 2], buf[i + 3], buf[i + SERIAL_SECTOR - 1]);
    return;
  }
}

static void
check_snapshot (const char *where, const uint8_t *buf, uint64_t offset,
                uint64_t count)
{
  if (memcmp (buf, now.kind->snapshot_content + offset, count) != 0)
    violation ("%s: the snapshot is not as it was, within %" PRIu64
               " bytes at 0x%" PRIx64, where, count, offset);
}

/* Read all that is watched of a disk; returns how many bytes that is. */
static uint64_t
read_watched (const struct layer *disk, const char *where, uint8_t *buf)
{
  const struct meeting_disk *d = now.kind;
  const uint64_t size = d->image.cluster_size;
  uint64_t first, nr, at = 0;
  unsigned i;

  for (i = 0; (nr = meeting_watched (d, i, &first)) > 0; ++i) {
    if (layer_read (disk, buf + at, nr * size, (struct guest_off) {
          first * size }) != 0)
      violation ("%s: %s", where, error_message ());
    at += nr * size;
  }
  return at;
}

/* The same, and compare it. */
static uint64_t
check_disk (const struct layer *disk, const char *where, uint32_t must,
            uint8_t *buf)
{
  const struct meeting_disk *d = now.kind;
  const uint64_t size = d->image.cluster_size;
  const uint64_t count = read_watched (disk, where, buf);
  uint64_t first, nr, at = 0;
  unsigned i;

  for (i = 0; (nr = meeting_watched (d, i, &first)) > 0; at += nr * size, ++i)
    check_sectors (where, buf + at, first * size, nr * size, must);
  return count;
}

/* All of the snapshot that there is: the later tables are the disk's. */
static void
check_view (const struct layer *view, const char *where)
{
  const struct meeting_disk *d = now.kind;
  const uint64_t size = d->image.cluster_size;
  uint64_t first, nr;
  unsigned i;

  for (i = 0; i < MEETING_SNAPSHOT_PARTS; ++i) {
    nr = meeting_watched (d, i, &first);
    if (layer_read (view, scratch, nr * size, (struct guest_off) {
          first * size }) != 0)
      violation ("%s: %s", where, error_message ());
    check_snapshot (where, scratch, first * size, nr * size);
  }
}

/* An image opened from these bytes: its disk, and its snapshot.  If `same' is
 * not NULL the disk holds that, else what the requests of `must', at least,
 * may make of it.
 */
static void
check_reopened (const char *where, const uint8_t *bytes, uint64_t size,
                const uint8_t *same, uint32_t must)
{
  const struct meeting_disk *d = now.kind;
  struct storage *s[2] = { memory_storage_new ("test", bytes, size, NULL) };
  struct layer *disk;
  struct image *im;
  uint64_t count;

  if (d->backing)
    s[1] = memory_storage_new ("base", d->base, d->base_size, NULL);
  im = image_open_storages (s, d->backing ? 2 : 1, CACHE_MIN_BYTES * 4);
  if (im == NULL) {
    violation ("%s: %s", where, error_message ());
    return;
  }
  disk = image_open_disk (im, "");
  count = check_disk (disk, where, must, scratch);
  if (same != NULL && memcmp (scratch, same, count) != 0)
    violation ("%s: the disk is not as it was", where);
  image_close_disk (disk);
  if (d->snapshot) {
    disk = image_open_disk (im, "snapshot/a");
    check_view (disk, where);
    image_close_disk (disk);
  }
  (void) image_close (im);
}

static void
check_crashed (const char *where, const uint8_t *bytes, uint64_t size)
{
  const struct builder *b = &now.kind->image;

  /* I8: a bit that is not known is cleared before anything is changed. */
  if (b->version >= 3 && get_be64 (bytes + MEETING_AUTOCLEAR) != 0 &&
      memcmp (bytes + b->cluster_size, b->data + b->cluster_size,
              b->size - b->cluster_size) != 0)
    violation ("%s: an autoclear bit is still set", where);
  if (image_check_quietly (bytes, size).errors > 0)
    (void) image_check (where, bytes, size);
  check_reopened (where, bytes, size, NULL, serial_stable (&now.serial));
}

/* The power fails now.  I1 to I3; tests/crash does that at more length. */
static void
check_crash (void)
{
  const uint8_t *bytes;
  uint64_t size;

  bytes = gate_durable (&size);
  check_crashed ("after a crash that lost what it might", bytes, size);
  check_crashed ("after a crash that lost nothing", now.disk.data,
                 atomic_load (&now.disk.size));
  bytes = gate_torn (now.serial.now, &size);
  check_crashed ("after a crash that lost some of it", bytes, size);
  gate_undo_torn ();
  interleave_counts.crashes += 3;
}

/* ---------------------------------------------------------- doing requests */

static uint8_t *
new_bytes (uint64_t count)
{
  uint8_t *p = must_have (malloc (count));

  if (now.nr_bytes == SERIAL_MAX)
    abort ();
  build_pattern (p, count, 100 + now.nr_bytes);
  now.bytes[now.nr_bytes++] = p;
  return p;
}

/* Enter what a request does. */
static unsigned
begin (const struct request *q)
{
  const struct range r = meeting_change (now.kind, now.c->subject, q);
  struct serial_request s = {
    .from = r.from, .to = r.to,
    .flush = q->action == FLUSH, .fua = (q->flags & IMAGE_FUA) != 0,
    .optional = meeting_is_advice (now.kind, q),
  };

  if (q->action == WRITE)
    s.bytes = new_bytes (r.to - r.from);
  return serial_begin (&now.serial, s);
}

static int
perform (const struct request *q, struct range r, const uint8_t *bytes,
         uint8_t *buf)
{
  const struct guest_off at = { r.from };
  const uint64_t count = r.to - r.from;

  switch (q->action) {
  case READ:
    return layer_read (now.live, buf, count, at);
  case VIEW:
    return layer_read (now.view, buf, count, at);
  case WRITE:
    return image_write (now.im, bytes, count, at, q->flags);
  case ZEROES:
    return image_zero (now.im, count, at, q->flags);
  case TRIM:
    return image_trim (now.im, count, at, q->flags);
  case FLUSH:
    return image_flush (now.im);
  }
  abort ();
}

static void
run_request (const struct request *q)
{
  const struct range r = meeting_range (now.kind, now.c->subject, q);
  uint8_t *buf = must_have (calloc (1, r.to - r.from + 1));
  const unsigned n = begin (q);

  interleave_counts.requests++;
  if (perform (q, r, now.serial.request[n].bytes, buf) != 0)
    violation ("%s: %s", q->name, error_message ());
  serial_end (&now.serial, n);
  if (q->action == READ)
    check_sectors (q->name, buf, r.from, r.to - r.from,
                   serial_before (&now.serial, n));
  if (q->action == VIEW)
    check_snapshot (q->name, buf, r.from, r.to - r.from);
  free (buf);
}

static void
run_script (void *opaque)
{
  const char *script = opaque;
  const struct request *q;

  while ((q = meeting_next (&script)) != NULL)
    run_request (q);
}

static void
open_case (const struct interleaving *c)
{
  static const struct writer_options options;
  const struct meeting_disk *d = meeting_disk (c->disk);
  struct storage *s[2];

  now.c = c;
  now.kind = d;
  now.serial = (struct serial) { .disk = d->content };
  memory_disk_init (&now.disk, d->image.data, d->image.size);
  s[0] = gate_new_disk (memory_disk_open (&now.disk, "test", NULL),
                        &now.disk);
  if (d->backing)
    s[1] = gate_new (memory_storage_new ("base", d->base, d->base_size, NULL));
  now.im = image_open_storages (s, d->backing ? 2 : 1,
                                states[c->state].cache_size);
  if (now.im == NULL || image_make_writable (now.im, &options) == -1) {
    fprintf (stderr, "%s: %s\n", d->name, error_message ());
    abort ();
  }
  now.live = image_open_disk (now.im, "");
  now.view = d->snapshot ? image_open_disk (now.im, "snapshot/a") : NULL;
  run_script ((void *) states[c->state].script);
}

static void
close_case (void)
{
  static uint8_t content[sizeof scratch];
  const uint32_t must = serial_ended (&now.serial);
  unsigned i;

  (void) check_disk (now.live, "the disk", must, content);
  image_close_disk (now.live);
  image_close_disk (now.view);
  if (image_close (now.im) != 0)
    violation ("closing: %s", error_message ());
  image_check_clean ("after closing", now.disk.data,
                     atomic_load (&now.disk.size));
  check_reopened ("opened again", now.disk.data,
                  atomic_load (&now.disk.size), content, must);
  for (i = 0; i < now.nr_bytes; ++i)
    free (now.bytes[i]);
  now.nr_bytes = 0;
  memory_disk_free (&now.disk);
}

/* --------------------------------------------------------- what is running */

/* A line that repeats it, for those who get no further. */
static char line[600];

static void
print_line (void)
{
  if (write (STDERR_FILENO, line, strlen (line)) == -1)
    abort ();
}

static void
killed (int signal_number)
{
  print_line ();
  signal (signal_number, SIG_DFL);
  raise (signal_number);
}

/* Sanitizers have this called before they end the program. */
extern void __sanitizer_set_death_callback (void (*fn) (void))
  __attribute__ ((__weak__));

static void
announce (const struct interleaving *c)
{
  int n = snprintf (line, sizeof line, "To repeat it: test-interleave %s %s "
                    "%s ", interleave_disk (c->disk),
                    interleave_subject (c->subject), states[c->state].name);
  unsigned t;

  if (c->seed != 0)
    n += snprintf (line + n, sizeof line - n, "random %" PRIu64, c->seed);
  else
    n += snprintf (line + n, sizeof line - n, "%" PRIu64 "/%" PRIu64 " %s",
                   c->point, c->second, c->polite ? "polite" : "rude");
  for (t = 0; t < TURNS_MAX && c->script[t] != NULL; ++t)
    n += snprintf (line + n, sizeof line - n, " %s", c->script[t]);
  snprintf (line + n, sizeof line - n, "\n");

  signal (SIGALRM, killed);
  if (__sanitizer_set_death_callback != NULL)
    __sanitizer_set_death_callback (print_line);
  else {
    signal (SIGSEGV, killed);
    signal (SIGABRT, killed);
  }
}

/* ----------------------------------------------------------------- running */

static unsigned
nr_threads (const struct interleaving *c)
{
  unsigned nr = 0;

  while (nr < TURNS_MAX && c->script[nr] != NULL)
    nr++;
  return nr;
}

/* Choose who goes on: in their order; or if they are polite the latest of them
 * first; or any.  Returns the number of threads if no one can.
 */
static unsigned
choose (const struct interleaving *c, unsigned nr, uint64_t *state)
{
  unsigned i, first = c->seed != 0 ? random_below (state, nr) : 0;

  for (i = 0; i < nr; ++i) {
    const unsigned t = c->polite ? nr - 1 - i : (first + i) % nr;

    if (turns_state (t) == TURN_READY)
      return t;
  }
  return nr;
}

/* Nothing more can be done with these threads. */
static void __attribute__ ((__noreturn__, __cold__))
deadlock (const struct interleaving *c, unsigned nr)
{
  unsigned t;

  violation ("a deadlock");
  for (t = 0; t < nr; ++t)
    fprintf (stderr, "thread %u: after %" PRIu64 " points, of which the last "
             "is \"%s\"\n", t, turns_points (t), turns_where (t));
  print_line ();
  _exit (1);
}

/* Have all threads go on until they are done. */
static void
run_to_end (const struct interleaving *c, unsigned nr)
{
  uint64_t state = c->seed, stop;
  unsigned t, left;

  for (;;) {
    for (t = left = 0; t < nr; ++t)
      left += turns_state (t) != TURN_OVER;
    if (left == 0)
      return;
    t = choose (c, nr, &state);
    if (t == nr)
      deadlock (c, nr);
    stop = c->seed == 0 ? TURNS_NO_STOP
      : turns_points (t) + 1 + random_below (&state, 24);
    turns_run (t, stop, c->polite);
    if (c->crash && (c->seed == 0 || random_below (&state, 24) == 0))
      check_crash ();
  }
}

/* Stop the first thread, and have the others run as far as they can. */
static void
run_to_point (const struct interleaving *c, unsigned nr)
{
  bool blocked = false;
  unsigned t;

  if (turns_run (0, c->point, false) == TURN_BLOCKED)
    deadlock (c, nr);
  for (t = 1; t < nr; ++t) {
    const uint64_t stop = t == 1 ? c->second : TURNS_NO_STOP;

    if (turns_run (t, stop, false) == TURN_BLOCKED)
      blocked = true;
    if (c->crash)
      check_crash ();
  }
  interleave_counts.blocked += blocked;
}

uint64_t
interleave_run (const struct interleaving *c)
{
  const unsigned nr = nr_threads (c);
  unsigned t;

  announce (c);
  open_case (c);
  for (t = 0; t < nr; ++t)
    turns_give (t, run_script, (void *) c->script[t]);
  if (c->seed == 0)
    run_to_point (c, nr);
  run_to_end (c, nr);
  close_case ();
  interleave_counts.runs++;
  if (check_any_failed ())
    print_line ();
  return turns_points (0);
}

/* ------------------------------------------------------------------- names */

const char *
interleave_disk (unsigned i)
{
  const struct meeting_disk *d = meeting_disk (i);

  return d != NULL ? d->name : NULL;
}

const char *
interleave_subject (unsigned i)
{
  return meeting_subject_name (i);
}

const char *
interleave_state (unsigned i)
{
  return i < sizeof states / sizeof states[0] ? states[i].name : NULL;
}

const char *
interleave_request (unsigned i)
{
  const struct request *q = meeting_request (i);

  return q != NULL ? q->name : NULL;
}

bool
interleave_is_possible (const struct interleaving *c)
{
  const struct meeting_disk *d = meeting_disk (c->disk);
  const struct request *q;
  unsigned t;

  if (!meeting_has_subject (d, c->subject))
    return false;
  for (t = 0; t < nr_threads (c); ++t) {
    const char *script = c->script[t];

    while ((q = meeting_next (&script)) != NULL) {
      if (!meeting_allows (d, c->subject, q))
        return false;
    }
    if (*script != '\0')
      return false;
  }
  return true;
}

static bool
find_name (const char *(*name) (unsigned), const char *word, unsigned *i)
{
  for (*i = 0; name (*i) != NULL; ++*i) {
    if (strcmp (name (*i), word) == 0)
      return true;
  }
  return false;
}

bool
interleave_parse (struct interleaving *c, char *const *words, int nr)
{
  int t;

  *c = (struct interleaving) { .crash = true };
  if (nr < 6 || nr > 5 + TURNS_MAX ||
      !find_name (interleave_disk, words[0], &c->disk) ||
      !find_name (interleave_subject, words[1], &c->subject) ||
      !find_name (interleave_state, words[2], &c->state))
    return false;
  if (strcmp (words[3], "random") == 0)
    c->seed = strtoull (words[4], NULL, 10);
  else {
    char *end;

    c->point = strtoull (words[3], &end, 10);
    c->second = *end == '/' ? strtoull (end + 1, NULL, 10) : 0;
    c->polite = strcmp (words[4], "polite") == 0;
  }
  for (t = 0; t < nr - 5; ++t)
    c->script[t] = words[5 + t];
  return interleave_is_possible (c);
}

void
interleave_end (void)
{
  meeting_free_disks ();
  turns_end ();
}
