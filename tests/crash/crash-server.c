/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "crash-server.h"
#include "must-have.h"
#include "nbd-wire.h"
#include "random.h"
#include "storage/nbd.h"

#define MAX_CONNECTIONS NBD_MAX_CONNECTIONS

/* A request that waits to be begun. */
struct job {
  struct wire_request q;
  uint8_t *data; /* WRITE; or room for what is read */
  uint64_t arrived;
};

/* One connection: a thread of its own does what it asks for. */
struct connection {
  struct crash_server *server;
  unsigned number;
  int fd;
  pthread_t thread;
  uint64_t random, arrivals;
  struct job *job;
  unsigned nr_jobs, jobs_allocated;
};

struct crash_server {
  struct crash_server_kind kind;
  struct crash_server_stats *stats;
  struct storage *storage; /* on the disk */
  struct wire_export export;
  char folder[80], sock[96], uri[128];
  int listener;
  uint64_t seed;

  /* The acceptor's, until it ends. */
  pthread_t acceptor;
  struct connection connection[MAX_CONNECTIONS];
  unsigned nr_connections;
};

/* ------------------------------------------------------------------- kinds */

static const struct {
  const char *word;
  size_t flag; /* a bool in the kind */
} words[] = {
  { "nofua", offsetof (struct crash_server_kind, no_fua) },
  { "nozero", offsetof (struct crash_server_kind, no_zero) },
  { "nofast", offsetof (struct crash_server_kind, no_fast) },
  { "notrim", offsetof (struct crash_server_kind, no_trim) },
  { "noextents", offsetof (struct crash_server_kind, no_extents) },
  { "many", offsetof (struct crash_server_kind, many) },
};
#define NR_WORDS (sizeof words / sizeof words[0])

static bool *
flag_of (struct crash_server_kind *k, unsigned i)
{
  return (bool *) ((char *) k + words[i].flag);
}

const char *
crash_server_format (const struct crash_server_kind *k, char *buf, size_t size)
{
  struct crash_server_kind copy = *k;
  size_t n = 0;
  unsigned i;

  if (size < 80)
    abort ();
  for (i = 0; i < NR_WORDS; ++i)
    if (*flag_of (&copy, i))
      n += snprintf (buf + n, size - n, "%s%s", n > 0 ? "+" : "",
                     words[i].word);
  if (k->block != 0)
    n += snprintf (buf + n, size - n, "%sblock%u", n > 0 ? "+" : "", k->block);
  if (n == 0)
    snprintf (buf, size, "all");
  return buf;
}

static bool
parse_word (struct crash_server_kind *k, const char *word, size_t n)
{
  unsigned i;

  for (i = 0; i < NR_WORDS; ++i)
    if (strlen (words[i].word) == n && strncmp (words[i].word, word, n) == 0) {
      *flag_of (k, i) = true;
      return true;
    }
  if (n > 5 && strncmp (word, "block", 5) == 0) {
    k->block = strtoul (word + 5, NULL, 10);
    return k->block == 1 || k->block == 512 || k->block == CRASH_SERVER_UNIT;
  }
  return n == 3 && strncmp (word, "all", n) == 0;
}

bool
crash_server_parse (struct crash_server_kind *k, const char *text)
{
  *k = (struct crash_server_kind) { 0 };
  for (;;) {
    const size_t n = strcspn (text, "+");

    if (!parse_word (k, text, n))
      return false;
    if (text[n] == '\0')
      return true;
    text += n + 1;
  }
}

struct crash_server_kind
crash_server_any (uint64_t seed)
{
  static const uint32_t blocks[] = { 0, 0, 1, 512, 4096 };
  struct crash_server_kind k = { 0 };
  uint64_t random = mix (seed);
  unsigned i;

  for (i = 0; i < NR_WORDS; ++i)
    *flag_of (&k, i) = random_below (&random, 3) == 0;
  k.many = random_below (&random, 2) == 0;
  k.block = blocks[random_below (&random, 5)];
  return k;
}

/* --------------------------------------------------------------- a request */

static void __attribute__ ((__noreturn__))
strange (const struct job *j)
{
  fprintf (stderr, "a strange request: type %u, flags %u, 0x%llx+0x%x\n",
           be16toh (j->q.type), be16toh (j->q.flags),
           (unsigned long long) be64toh (j->q.offset), be32toh (j->q.count));
  abort ();
}

/* Which flags a request may have. */
static unsigned
allowed_flags (const struct crash_server_kind *k, unsigned type)
{
  switch (type) {
  case WIRE_WRITE:
    return k->no_fua ? 0 : WIRE_FUA;
  case WIRE_ZERO:
    return WIRE_NO_HOLE | (k->no_fast ? 0 : WIRE_FAST);
  case WIRE_EXTENTS:
    return WIRE_REQ_ONE;
  default:
    return 0;
  }
}

/* Abort if it is one that this server does not know. */
static void
check_request (const struct crash_server *s, const struct job *j)
{
  const struct crash_server_kind *k = &s->kind;
  const unsigned type = be16toh (j->q.type), flags = be16toh (j->q.flags);
  const uint64_t offset = be64toh (j->q.offset);
  const uint32_t count = be32toh (j->q.count);
  const uint32_t block = k->block > 1 ? k->block : 1;

  if (be32toh (j->q.magic) != 0x25609513 ||
      (flags & ~allowed_flags (k, type)) != 0 ||
      (type == WIRE_ZERO && k->no_zero) || (type == WIRE_TRIM && k->no_trim) ||
      (type == WIRE_EXTENTS && k->no_extents))
    strange (j);
  if (type == WIRE_FLUSH ? offset != 0 || count != 0
      : count == 0 || offset % block != 0 || count % block != 0 ||
        offset > s->export.size || count > s->export.size - offset)
    strange (j);
}

static uint32_t
error_of (bool failed)
{
  if (!failed)
    return 0;
  switch (errno) {
  case ENOSPC: return WIRE_ENOSPC;
  case EOPNOTSUPP: return WIRE_ENOTSUP;
  default: return WIRE_EIO;
  }
}

/* All of it, as a server would. */
static uint32_t
write_all (struct storage *s, const struct job *j)
{
  const bool durable = be16toh (j->q.flags) & WIRE_FUA;
  uint64_t offset = be64toh (j->q.offset);
  struct iovec iov = { j->data, be32toh (j->q.count) };

  while (iov.iov_len > 0) {
    const ssize_t r = s->ops->pwritev (s, &iov, 1, offset, durable);

    if (r == -1)
      return error_of (true);
    iov.iov_base = (uint8_t *) iov.iov_base + r;
    iov.iov_len -= r;
    offset += r;
  }
  return 0;
}

/* What is trimmed may become zeros, may stay, and may hold anything. */
static uint32_t
trim (struct connection *c, const struct job *j)
{
  struct storage *s = c->server->storage;
  const uint64_t offset = be64toh (j->q.offset);
  const uint32_t count = be32toh (j->q.count);
  struct iovec iov = { j->data, count };

  switch (random_below (&c->random, 4)) {
  case 0:
    return 0;
  case 1:
    random_fill (&c->random, j->data, count);
    return error_of (s->ops->pwritev (s, &iov, 1, offset, false) == -1);
  default:
    return error_of (s->ops->zero (s, offset, count, true) == -1);
  }
}

static uint32_t
change (struct connection *c, const struct job *j)
{
  struct storage *s = c->server->storage;

  switch (be16toh (j->q.type)) {
  case WIRE_WRITE:
    return write_all (s, j);
  case WIRE_FLUSH:
    return error_of (s->ops->flush (s) == -1);
  case WIRE_TRIM:
    return trim (c, j);
  case WIRE_ZERO:
    return error_of (s->ops->zero (s, be64toh (j->q.offset),
                                   be32toh (j->q.count), false) == -1);
  default:
    strange (j);
  }
}

/* Into the room that it has: returns an error. */
static uint32_t
read_all (struct storage *s, const struct job *j)
{
  const uint32_t count = be32toh (j->q.count);
  uint32_t at = 0;

  while (at < count) {
    const ssize_t r = s->ops->pread (s, j->data + at, count - at,
                                     be64toh (j->q.offset) + at);

    if (r == -1)
      return error_of (true);
    at += r;
  }
  return 0;
}

/* A few extents at a time. */
static uint32_t
find_extents (struct storage *s, const struct job *j, uint32_t *pairs,
              unsigned *nr)
{
  uint64_t offset = be64toh (j->q.offset), length;
  uint64_t left = be32toh (j->q.count);
  bool hole;

  for (*nr = 0; left > 0 && *nr < 3; ++*nr) {
    if (s->ops->extent (s, offset, left, &hole, &length) == -1)
      return error_of (true);
    pairs[2 * *nr] = length;
    pairs[2 * *nr + 1] = hole ? 3 : 0; /* a hole, of zeros */
    offset += length;
    left -= length;
  }
  return 0;
}

/* Do it, and answer. */
static void
do_job (struct connection *c, const struct job *j)
{
  struct storage *s = c->server->storage;
  const unsigned type = be16toh (j->q.type);
  uint32_t pairs[2 * WIRE_MAX_EXTENTS], error;
  unsigned nr = 0;

  check_request (c->server, j);
  error = type == WIRE_READ ? read_all (s, j)
    : type == WIRE_EXTENTS ? find_extents (s, j, pairs, &nr) : change (c, j);
  if (error != 0 || (type != WIRE_READ && type != WIRE_EXTENTS))
    wire_put_error (c->fd, &j->q, error);
  else if (type == WIRE_READ)
    wire_put_read (c->fd, &j->q, j->data, be32toh (j->q.count));
  else
    wire_put_extents (c->fd, &j->q, pairs, nr);
}

/* ------------------------------------------------------------- connections */

static void
count_job (struct connection *c, const struct job *j)
{
  struct crash_server_stats *stats = c->server->stats;
  unsigned i;

  if (stats == NULL)
    return;
  atomic_fetch_add (&stats->requests, 1);
  if (c->number > 0)
    atomic_fetch_add (&stats->beside, 1);
  for (i = 0; i < c->nr_jobs; ++i)
    if (c->job[i].arrived < j->arrived) {
      atomic_fetch_add (&stats->early, 1);
      break;
    }
}

/* Whichever of those that wait. */
static void
do_any (struct connection *c)
{
  const unsigned i = random_below (&c->random, c->nr_jobs);
  const struct job j = c->job[i];

  c->job[i] = c->job[--c->nr_jobs];
  count_job (c, &j);
  do_job (c, &j);
  free (j.data);
}

static void *
room (uint32_t count)
{
  const size_t unit = CRASH_SERVER_UNIT;

  return must_have (aligned_alloc (unit, (count / unit + 1) * unit));
}

/* Wait for a request.  Returns false if the client has gone. */
static bool
get_request (struct connection *c)
{
  struct job j = { .arrived = c->arrivals++ };
  unsigned type;

  if (!wire_get (c->fd, &j.q, sizeof j.q))
    return false;
  type = be16toh (j.q.type);
  if (type == WIRE_DISCONNECT)
    return false;
  if (type == WIRE_READ || type == WIRE_WRITE || type == WIRE_TRIM)
    j.data = room (be32toh (j.q.count));
  if (type == WIRE_WRITE && !wire_get (c->fd, j.data, be32toh (j.q.count))) {
    free (j.data);
    return false;
  }
  GROW (c->job, c->nr_jobs, c->jobs_allocated);
  c->job[c->nr_jobs++] = j;
  return true;
}

/* Whether more has come; at times it is given time for that. */
static bool
has_more (struct connection *c)
{
  struct pollfd p = { .fd = c->fd, .events = POLLIN };

  if (random_below (&c->random, 32) == 0)
    sched_yield ();
  return poll (&p, 1, 0) > 0;
}

static void *
serve (void *opaque)
{
  struct connection *c = opaque;
  bool stays = wire_negotiate (c->fd, &c->server->export);

  while (stays || c->nr_jobs > 0) {
    while (stays && (c->nr_jobs == 0 || has_more (c)))
      stays = get_request (c);
    if (c->nr_jobs > 0)
      do_any (c);
  }
  close (c->fd);
  free (c->job);
  return NULL;
}

static void *
accept_all (void *opaque)
{
  struct crash_server *s = opaque;
  int fd;

  while ((fd = accept (s->listener, NULL, NULL)) != -1) {
    struct connection *c = &s->connection[s->nr_connections];

    if (s->nr_connections == (s->kind.many ? MAX_CONNECTIONS : 1)) {
      fprintf (stderr, "a connection too many\n");
      abort ();
    }
    *c = (struct connection) {
      .server = s, .number = s->nr_connections, .fd = fd,
      .random = mix (s->seed + s->nr_connections),
    };
    s->nr_connections++;
    if (pthread_create (&c->thread, NULL, serve, c) != 0)
      abort ();
  }
  return NULL;
}

/* -------------------------------------------------------- beginning and end */

static void
listen_there (struct crash_server *s)
{
  const char *tmp = getenv ("TMPDIR");
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (tmp == NULL || strlen (tmp) > sizeof s->folder - 16)
    tmp = "/tmp";
  snprintf (s->folder, sizeof s->folder, "%s/farXXXXXX", tmp);
  if (mkdtemp (s->folder) == NULL)
    abort ();
  snprintf (s->sock, sizeof s->sock, "%s/s", s->folder);
  snprintf (s->uri, sizeof s->uri, "nbd+unix:///?socket=%s", s->sock);
  memcpy (addr.sun_path, s->sock, strlen (s->sock));
  s->listener = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (s->listener == -1 ||
      bind (s->listener, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      listen (s->listener, MAX_CONNECTIONS) == -1) {
    perror (s->sock);
    abort ();
  }
}

static void
set_export (struct crash_server *s, uint64_t size)
{
  const struct crash_server_kind *k = &s->kind;

  s->export = (struct wire_export) {
    .size = size, .block = k->block, .extents = !k->no_extents,
    .flags = WIRE_CAN_FLUSH | (k->no_fua ? 0 : WIRE_CAN_FUA) |
      (k->no_trim ? 0 : WIRE_CAN_TRIM) | (k->no_zero ? 0 : WIRE_CAN_ZERO) |
      (k->no_zero || k->no_fast ? 0 : WIRE_CAN_FAST_ZERO) |
      (k->many ? WIRE_CAN_MULTI_CONN : 0),
  };
}

struct crash_server *
crash_server_start (struct crash_disk *d, const struct crash_server_plan *plan)
{
  struct crash_server *s = must_have (calloc (1, sizeof *s));

  if (d->size % CRASH_SERVER_UNIT != 0)
    abort ();
  s->kind = plan->kind;
  s->kind.no_zero |= d->no_zero;
  s->stats = plan->stats;
  s->seed = plan->seed;
  s->storage = crash_storage_open (d, "far");
  set_export (s, d->size);
  listen_there (s);
  if (pthread_create (&s->acceptor, NULL, accept_all, s) != 0)
    abort ();
  return s;
}

void
crash_server_end (struct crash_server *s)
{
  unsigned i;

  shutdown (s->listener, SHUT_RDWR);
  pthread_join (s->acceptor, NULL);
  for (i = 0; i < s->nr_connections; ++i)
    pthread_join (s->connection[i].thread, NULL);
  close (s->listener);
  unlink (s->sock);
  rmdir (s->folder);
  storage_close (s->storage);
  free (s);
}

struct storage *
crash_server_open (const struct crash_server *s, const char *name)
{
  const struct nbd_options options = NBD_DEFAULTS;
  struct storage *far = storage_nbd_open (s->uri, &options, name);

  if (far == NULL) {
    fprintf (stderr, "%s\n", error_message ());
    abort ();
  }
  return far;
}
