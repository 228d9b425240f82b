/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "odd-server.h"

static bool
get_all (int fd, void *buf, size_t count)
{
  return count == 0 || /* it would wait */
    recv (fd, buf, count, MSG_WAITALL) == (ssize_t) count;
}

static void
put_all (int fd, const void *buf, size_t count)
{
  const char *p = buf;

  while (count > 0) {
    const ssize_t r = send (fd, p, count, MSG_NOSIGNAL);

    if (r <= 0)
      return;
    p += r;
    count -= r;
  }
}

static void
put_option_reply (int fd, uint32_t option, uint32_t type, const void *data,
                  uint32_t count)
{
  const uint64_t magic = htobe64 (UINT64_C (0x3e889045565a9));
  const uint32_t words[3] = { option, htobe32 (type), htobe32 (count) };

  put_all (fd, &magic, 8);
  put_all (fd, words, 12);
  put_all (fd, data, count);
}

/* Returns false if the client has gone. */
static bool
negotiate (const struct odd_server *o, int fd)
{
  static const char hello[18] = "NBDMAGICIHAVEOPT\0\3"; /* fixed, no zeroes */
  struct { uint16_t type; uint64_t size; uint16_t flags; }
    __attribute__ ((__packed__)) info = {
      0, htobe64 (ODD_SIZE), htobe16 (1 | o->flags), /* has flags */
    };
  uint32_t words[4];
  char data[4096];

  put_all (fd, hello, sizeof hello);
  if (!get_all (fd, words, 4))
    return false;
  while (get_all (fd, words, 16)) {
    const uint32_t count = be32toh (words[3]), option = be32toh (words[2]);

    if (count > sizeof data || !get_all (fd, data, count))
      return false;
    if (option == 7) /* GO */
      put_option_reply (fd, words[2], 3, &info, sizeof info);
    /* Not extended headers (11), which newer libnbds ask for. */
    put_option_reply (fd, words[2], option == 11 ? UINT32_C (0x80000001) : 1,
                      NULL, 0); /* no contexts, too */
    if (option == 7)
      return true;
  }
  return false;
}

struct request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t count;
} __attribute__ ((__packed__));

static void
put_chunk (int fd, const struct request *q, uint16_t type, const void *data,
           uint32_t count)
{
  struct { uint32_t magic; uint16_t flags, type; uint64_t cookie;
           uint32_t count; } __attribute__ ((__packed__)) chunk = {
    htobe32 (0x668e33ef), htobe16 (1), htobe16 (type), q->cookie,
    htobe32 (count),
  };

  put_all (fd, &chunk, sizeof chunk);
  put_all (fd, data, count);
}

static void
put_error (int fd, const struct request *q, uint32_t error)
{
  struct { uint32_t error; uint16_t length; } __attribute__ ((__packed__)) bad = {
    htobe32 (error), 0,
  };

  if (error != 0)
    put_chunk (fd, q, 0x8001, &bad, sizeof bad);
  else
    put_chunk (fd, q, 0, NULL, 0);
}

/* Reads are of at most 64 KiB.  Returns false if the client has gone. */
static bool
answer (const struct odd_server *o, int fd)
{
  static uint8_t data[ODD_SIZE];
  static uint8_t chunk[8 + 65536];
  struct odd_request odd;
  struct request q;
  uint32_t count, error;

  if (!get_all (fd, &q, sizeof q))
    return false;
  count = be32toh (q.count);
  odd = (struct odd_request) {
    be16toh (q.type), be16toh (q.flags) & 1, be64toh (q.offset),
  };
  if (odd.type == ODD_WRITE && !get_all (fd, data, count))
    return false;
  error = o->error != NULL ? o->error (o->opaque, &odd) : 0;
  if (odd.type != ODD_READ || error != 0) {
    put_error (fd, &q, error);
    return true;
  }
  if (o->short_from != 0 && odd.offset >= o->short_from)
    count /= 2;
  memcpy (chunk, &q.offset, 8);
  put_chunk (fd, &q, 1, chunk, 8 + count);
  return true;
}

/* One client after the other. */
static void *
serve_oddly (void *opaque)
{
  struct odd_server *o = opaque;
  int fd;

  while ((fd = accept (o->listener, NULL, NULL)) != -1) {
    if (negotiate (o, fd))
      while (answer (o, fd))
        ;
    close (fd);
  }
  return NULL;
}

void
odd_start (struct odd_server *o)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  strcpy (o->folder, "/tmp/oddXXXXXX");
  if (mkdtemp (o->folder) == NULL)
    abort ();
  snprintf (o->sock, sizeof o->sock, "%s/s", o->folder);
  snprintf (o->uri, sizeof o->uri, "nbd+unix:///?socket=%s", o->sock);
  memcpy (addr.sun_path, o->sock, strlen (o->sock));
  o->listener = socket (AF_UNIX, SOCK_STREAM, 0);
  if (bind (o->listener, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      listen (o->listener, 5) == -1 ||
      pthread_create (&o->thread, NULL, serve_oddly, o) != 0)
    abort ();
}

void
odd_end (struct odd_server *o)
{
  shutdown (o->listener, SHUT_RDWR);
  pthread_join (o->thread, NULL);
  close (o->listener);
  unlink (o->sock);
  rmdir (o->folder);
}
