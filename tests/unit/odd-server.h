/* SPDX-License-Identifier: BSD-3-Clause */

/* An NBD server of a mebibyte of zeros, in a thread of the test, that fails as it
 * is told to.  What is written is not kept.
 */

#ifndef UNIT_ODD_SERVER_H
#define UNIT_ODD_SERVER_H

#include <pthread.h>
#include <stdint.h>

#define ODD_SIZE (UINT64_C (1) << 20)

/* What it offers. */
enum { ODD_FLUSH = 4, ODD_FUA = 8 };

/* As NBD has them on the wire. */
enum { ODD_READ = 0, ODD_WRITE = 1, ODD_DISCONNECT = 2, ODD_FLUSHES = 3 };
enum { ODD_EIO = 5, ODD_ENOSPC = 28 };

struct odd_request {
  uint16_t type;
  int fua;
  uint64_t offset;
};

struct odd_server {
  /* Set by the test.  error: of a request, in the server's thread; NULL: none
   * fails.
   */
  uint16_t flags;
  uint64_t short_from; /* reads from there on get half of the bytes; 0: none */
  uint32_t (*error) (void *opaque, const struct odd_request *q);
  void *opaque;

  char folder[32], sock[48], uri[80];
  int listener;
  pthread_t thread;
};

/* It serves one client after the other.  Aborts if that fails. */
extern void odd_start (struct odd_server *o);
extern void odd_end (struct odd_server *o);

#endif /* UNIT_ODD_SERVER_H */
