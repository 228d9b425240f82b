/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "base/advice.h"
#include "base/error.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/write/follow-parts.h"
#include "qcow2/write/zero.h"

/* ------------------------------------------------------------------ opening */

/* Clusters of metadata that is written in place: with one reference. */
static int
check_clusters (struct writer *w, const struct bitmap_info *b,
                struct host_off host, uint64_t bytes)
{
  const uint64_t cluster_size = w->header.cluster_size;
  uint64_t at, refcount;

  for (at = 0; at < bytes; at += cluster_size) {
    const struct host_off cluster = { host.v + at };

    if (alloc_refcount (&w->alloc, cluster, &refcount) == -1)
      return -1;
    if (refcount == 1)
      continue;
    error_set (ENOTSUP, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") has the cluster at offset 0x%" PRIx64 ", whose "
               "refcount is %" PRIu64 ", so that it can't follow what is "
               "written", writer_name (w), b->name, b->place.v, cluster.v,
               refcount);
    advise (ADVICE_BITMAPS);
    return -1;
  }
  return 0;
}

static int
check_part (struct writer *w, const struct bitmap_info *b,
            struct host_off place, uint64_t word)
{
  const uint64_t size = atomic_load (&w->disk->tables->size);
  struct host_off host = HOST_NONE;

  switch (entry_decode_bitmap (word, w->header.cluster_bits, &host)) {
  case BITMAP_PART_CLEAN:
  case BITMAP_PART_DIRTY:
    return 0;
  case BITMAP_PART_CLUSTER:
    if (host.v <= size && w->header.cluster_size <= size - host.v)
      return check_clusters (w, b, host, w->header.cluster_size);
    break;
  case BITMAP_PART_INVALID:
    break;
  }
  error_set (EIO, "%s: damaged: the bitmap \"%s\": table entry at offset 0x%"
             PRIx64 ": 0x%" PRIx64 " is not valid, or beyond the end of the "
             "file", writer_name (w), b->name, place.v, word);
  return -1;
}

static int
check_table (struct writer *w, const struct bitmap_info *b)
{
  const uint64_t bytes = 8 * (uint64_t) b->nr_parts;
  uint8_t buf[BIT_PAGE];
  uint64_t at, i, n;

  if (check_clusters (w, b, b->table, bytes) == -1)
    return -1;
  for (at = 0; at < bytes; at += n) {
    const struct host_off from = { b->table.v + at };

    n = bytes - at < sizeof buf ? bytes - at : sizeof buf;
    if (storage_read_present (w->disk->tables, buf, n, from) == -1)
      return -1;
    for (i = 0; i < n; i += 8) {
      const struct host_off place = { from.v + i };

      if (check_part (w, b, place, get_be64 (buf + i)) == -1)
        return -1;
    }
  }
  return 0;
}

/* Once; that it can't be read is another thing to tell (qcow2/bitmap-disk.h),
 * by the place of the entry itself.
 */
static void
tell_in_use (const struct writer *w, const struct bitmap_info *b)
{
  if (damage_is_new (w->disk->damage, b->place.v + 1))
    note_message ("%s: the bitmap \"%s\" is marked as in use: an earlier "
                  "writer of the image did not complete it, so that it misses changes "
                  "and is not kept up to date", writer_name (w), b->name);
}

/* bitmaps_list's. */
static int
add_bitmap (void *opaque, const struct bitmap_info *b)
{
  struct bit_parts *p = opaque;
  struct writer *w = p->w;
  const unsigned i = p->nr;
  int r;

  if (b->in_use)
    tell_in_use (w, b);
  r = bitmap_check_followed (w->disk->tables, b, &p->nr);
  if (r == -1)
    advise (ADVICE_BITMAPS);
  if (r != 1)
    return r;
  if (w->bitmaps_shared) {
    error_set (ENOTSUP, "%s: bitmaps have clusters in common, so that \"%s\" "
               "(directory entry at offset 0x%" PRIx64 ") can't follow what is "
               "written", writer_name (w), b->name, b->place.v);
    advise (ADVICE_BITMAPS);
    return -1;
  }
  if (check_table (w, b) == -1)
    return -1;
  p->bitmap[i] = (struct followed) {
    .state = FOLLOW_ALL,
    .nr_bits = bitmap_nr_bits (w->header.disk_size, b->granularity_bits),
    .granularity_bits = b->granularity_bits,
    .table = b->table,
    .nr_parts = b->nr_parts,
  };
  return 0;
}

void
follow_free (struct following *f)
{
  if (f == NULL)
    return;
  pthread_mutex_destroy (&f->ending_lock);
  pthread_cond_destroy (&f->ending_cond);
  bit_slots_free (f->slots);
  bit_parts_destroy (&f->parts);
  pthread_mutex_destroy (&f->prepare_lock);
  free (f);
}

static void
init_ending (struct following *f)
{
  pthread_condattr_t attr;

  pthread_mutex_init (&f->ending_lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&f->ending_cond, &attr);
  pthread_condattr_destroy (&attr);
}

struct following *
follow_new (struct writer *w)
{
  const unsigned idle = w->options.bitmap_idle;
  struct following *f = calloc (1, sizeof *f);

  if (f == NULL) {
    error_set (ENOMEM, "%s: out of memory", writer_name (w));
    return NULL;
  }
  f->idle = idle == 0 ? BITMAP_IDLE : idle;
  init_ending (f);
  pthread_mutex_init (&f->prepare_lock, NULL);
  bit_parts_init (&f->parts, w);
  return f;
}

int
follow_open (struct writer *w)
{
  struct following *f;

  if (w->options.invalidate_bitmaps || !writer_has_bitmaps (&w->header))
    return 0;
  f = follow_new (w);
  if (f == NULL)
    return -1;
  if (bitmaps_list (w->disk->tables, &w->header, add_bitmap, &f->parts) == -1)
    goto fail;
  if (f->parts.nr == 0) {
    follow_free (f);
    return 0;
  }
  f->slots = bit_slots_new (&f->parts, w->options.bitmap_pages);
  if (f->slots == NULL)
    goto fail;
  w->follow = f;
  return 0;

 fail:
  follow_free (f);
  return -1;
}

/* ----------------------------------------------------------- idle bitmaps */

void
follow_settle (struct writer *w, uint64_t idle_ns)
{
  if (w->follow != NULL)
    bit_slots_settle (w->follow->slots, idle_ns);
}

bool
follow_keep_bits (struct writer *w, struct host_off table, unsigned *at)
{
  const struct bit_parts *p;
  unsigned i = 0;

  if (w->follow == NULL)
    return false;
  p = &w->follow->parts;
  while (i < p->nr && !(bit_parts_follows (p, i) &&
                        p->bitmap[i].table.v == table.v))
    i++;
  return i < p->nr && bit_slots_keep_some (w->follow->slots, i, at);
}

/* Wait until it is time again.  False: it is to end. */
static bool
wait_idle (struct following *f)
{
  struct timespec end;
  int r = 0;

  clock_gettime (CLOCK_MONOTONIC, &end);
  end.tv_sec += f->idle / 1000;
  end.tv_nsec += f->idle % 1000 * 1000000L;
  if (end.tv_nsec >= 1000000000L) {
    end.tv_sec++;
    end.tv_nsec -= 1000000000L;
  }
  pthread_mutex_lock (&f->ending_lock);
  while (!f->ending && r == 0)
    r = pthread_cond_timedwait (&f->ending_cond, &f->ending_lock, &end);
  r = f->ending;
  pthread_mutex_unlock (&f->ending_lock);
  return !r;
}

static void *
settle_now_and_then (void *opaque)
{
  struct following *f = opaque;

  while (wait_idle (f))
    bit_slots_settle (f->slots, f->idle * UINT64_C (1000000));
  return NULL;
}

/* Without one, bits are exact only after a clean end.  prepare_lock held. */
static void
start_thread (struct following *f)
{
  if (f->idle != BITMAP_NEVER_IDLE)
    f->has_thread =
      pthread_create (&f->thread, NULL, settle_now_and_then, f) == 0;
}

void
follow_stop (struct following *f)
{
  if (!f->has_thread)
    return;
  pthread_mutex_lock (&f->ending_lock);
  f->ending = true;
  pthread_cond_signal (&f->ending_cond);
  pthread_mutex_unlock (&f->ending_lock);
  pthread_join (f->thread, NULL);
}

void
follow_close (struct writer *w)
{
  struct following *f = w->follow;

  if (f == NULL)
    return;
  follow_stop (f);
  if (w->begun)
    (void) writer_flush (w);
  /* Neither depends on what finds no space for a moment. */
  if (w->begun && writeback_check (&w->writeback) == 0) {
    bit_slots_store (f->slots);
    bit_parts_give_up (&f->parts);
  }
  w->follow = NULL;
  follow_free (f);
}

/* ----------------------------------------------------------------- requests */

/* Before the first bit is read. */
static int
prepare (struct following *f)
{
  int r = 0;

  if (atomic_load_explicit (&f->prepared, memory_order_acquire))
    return 0;
  pthread_mutex_lock (&f->prepare_lock);
  if (!f->prepared) {
    r = bit_parts_prepare (&f->parts);
    if (r == 0)
      start_thread (f);
    if (r == 0)
      atomic_store_explicit (&f->prepared, true, memory_order_release);
  }
  pthread_mutex_unlock (&f->prepare_lock);
  return r;
}

/* A piece of a request: what to do with it. */
struct pieces {
  int (*change) (struct pieces *p, struct guest_off offset, uint64_t count);
  struct writer *w;
  const uint8_t *buf;
  unsigned flags;
};

static int
each_piece (struct pieces *p, uint64_t count, struct guest_off offset)
{
  struct bit_slots *slots = p->w->follow->slots;
  bool flush = false;

  /* Bits are a change of the image, too. */
  if (writer_begin (p->w, offset, count) == -1)
    return -1;
  if (prepare (p->w->follow) == -1)
    return writer_failed (p->w);
  if (count > bit_slots_end (slots, offset.v) - offset.v) {
    flush = p->flags & DISK_FUA; /* once, for all pieces */
    p->flags &= ~DISK_FUA;
  }
  while (count > 0) {
    const uint64_t most = bit_slots_end (slots, offset.v) - offset.v;
    const uint64_t n = count < most ? count : most;
    struct bit_hold hold;
    int r;

    if (bit_slots_hold (slots, offset, n, &hold) == -1)
      return writer_failed (p->w);
    r = p->change (p, offset, n);
    bit_slots_leave (slots, &hold);
    if (r == -1)
      return -1;
    offset.v += n;
    count -= n;
  }
  return flush ? writer_flush (p->w) : 0;
}

static int
write_piece (struct pieces *p, struct guest_off offset, uint64_t count)
{
  const uint8_t *buf = p->buf;

  p->buf += count;
  return disk_write (p->w, buf, count, offset, p->flags);
}

static int
zero_piece (struct pieces *p, struct guest_off offset, uint64_t count)
{
  return disk_zero (p->w, count, offset, p->flags);
}

static int
trim_piece (struct pieces *p, struct guest_off offset, uint64_t count)
{
  return disk_trim (p->w, count, offset, p->flags);
}

int
follow_write (struct writer *w, const void *buf, uint64_t count,
              struct guest_off offset, unsigned flags)
{
  struct pieces p = { write_piece, w, buf, flags };

  return each_piece (&p, count, offset);
}

int
follow_zero (struct writer *w, uint64_t count, struct guest_off offset,
             unsigned flags)
{
  struct pieces p = { zero_piece, w, NULL, flags & ~DISK_FAST };

  /* All of it, before a piece of it is changed, or a bit. */
  if ((flags & DISK_FAST) && disk_zero_is_fast (w, count, offset, flags) == -1)
    return -1;
  return each_piece (&p, count, offset);
}

int
follow_trim (struct writer *w, uint64_t count, struct guest_off offset,
             unsigned flags)
{
  struct pieces p = { trim_piece, w, NULL, flags };

  return each_piece (&p, count, offset);
}
