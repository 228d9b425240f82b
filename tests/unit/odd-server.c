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

#include "nbd-wire.h"
#include "odd-server.h"

static const uint8_t zeros[65536];

/* Reads are of at most 64 KiB.  Returns false if the client has gone. */
static bool
answer (const struct odd_server *o, int fd)
{
  static uint8_t data[ODD_SIZE];
  struct wire_request q;
  struct odd_request odd;
  uint32_t count, error;

  if (!wire_get (fd, &q, sizeof q))
    return false;
  count = be32toh (q.count);
  odd = (struct odd_request) {
    be16toh (q.type), be16toh (q.flags) & WIRE_FUA, be64toh (q.offset),
  };
  if (odd.type == ODD_WRITE && !wire_get (fd, data, count))
    return false;
  error = o->error != NULL ? o->error (o->opaque, &odd) : 0;
  if (odd.type != ODD_READ || error != 0) {
    wire_put_error (fd, &q, error);
    return true;
  }
  if (o->short_from != 0 && odd.offset >= o->short_from)
    count /= 2;
  wire_put_read (fd, &q, zeros, count);
  return true;
}

/* One client after the other. */
static void *
serve_oddly (void *opaque)
{
  struct odd_server *o = opaque;
  const struct wire_export export = { .size = ODD_SIZE, .flags = o->flags };
  int fd;

  while ((fd = accept (o->listener, NULL, NULL)) != -1) {
    if (wire_negotiate (fd, &export))
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
