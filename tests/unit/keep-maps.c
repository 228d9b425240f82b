/* SPDX-License-Identifier: BSD-3-Clause */

/* mmap and munmap here are in place of the C library's. */

#include <config.h>

#include "keep-maps.h"
#include "seconds.h"

#if defined __x86_64__ && !defined TEST_SANITIZED

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* So many pieces, of so many bytes at most. */
#define MAX_PIECES 64
#define MAX_BYTES ((size_t) 1 << 20)

static bool keeping;
static struct piece {
  void *p;
  size_t bytes;
  bool in_use;
} piece[MAX_PIECES];
static unsigned nr_pieces;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void
keep_maps (void)
{
  pthread_mutex_lock (&lock);
  keeping = true;
  pthread_mutex_unlock (&lock);
}

/* A piece of so many bytes that nobody uses, or NULL. */
static void *
use_again (size_t bytes)
{
  void *p = NULL;
  unsigned i;

  pthread_mutex_lock (&lock);
  for (i = 0; i < nr_pieces && p == NULL; ++i)
    if (!piece[i].in_use && piece[i].bytes == bytes) {
      piece[i].in_use = true;
      p = piece[i].p;
    }
  pthread_mutex_unlock (&lock);
  if (p != NULL)
    memset (p, 0, bytes);
  return p;
}

static void
note_piece (void *p, size_t bytes)
{
  pthread_mutex_lock (&lock);
  if (keeping && bytes <= MAX_BYTES && nr_pieces < MAX_PIECES)
    piece[nr_pieces++] = (struct piece) { p, bytes, true };
  pthread_mutex_unlock (&lock);
}

/* Returns false if it is none of the pieces. */
static bool
keep (const void *p, size_t bytes)
{
  bool found = false;
  unsigned i;

  pthread_mutex_lock (&lock);
  for (i = 0; i < nr_pieces && !found; ++i)
    if (piece[i].p == p && piece[i].bytes == bytes) {
      piece[i].in_use = false;
      found = true;
    }
  pthread_mutex_unlock (&lock);
  return found;
}

void *
mmap (void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
  const bool plain = at == NULL && (flags & MAP_ANONYMOUS) &&
    (flags & MAP_PRIVATE) && protection == (PROT_READ | PROT_WRITE);
  void *p = plain ? use_again (bytes) : NULL;

  if (p != NULL)
    return p;
  p = (void *) syscall (SYS_mmap, at, bytes, protection, flags, fd, offset);
  if (plain && p != MAP_FAILED)
    note_piece (p, bytes);
  return p;
}

int
munmap (void *p, size_t bytes)
{
  return keep (p, bytes) ? 0 : syscall (SYS_munmap, p, bytes);
}

#else

void
keep_maps (void)
{
}

#endif
