/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "nbd-wire.h"

bool
wire_get (int fd, void *buf, size_t count)
{
  return count == 0 || /* it would wait */
    recv (fd, buf, count, MSG_WAITALL) == (ssize_t) count;
}

void
wire_put (int fd, const void *buf, size_t count)
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

/* ------------------------------------------------------------- negotiation */

/* Numbers of options, their replies, and what there is to know. */
enum {
  OPTION_GO = 7, OPTION_STRUCTURED = 8, OPTION_SET_CONTEXT = 10,
  OPTION_EXTENDED = 11,
};
enum {
  REPLY_ACK = 1, REPLY_INFO = 3, REPLY_CONTEXT = 4,
};
#define REPLY_UNSUPPORTED UINT32_C (0x80000001)
enum { INFO_EXPORT = 0, INFO_BLOCK_SIZE = 3 };

#define CONTEXT "base:allocation"
#define CONTEXT_ID 1

/* The largest request, if sizes of blocks are said. */
#define MOST_BYTES (UINT32_C (32) << 20)

static void
put_reply (int fd, uint32_t option, uint32_t type, const void *data,
           uint32_t count)
{
  const uint64_t magic = htobe64 (UINT64_C (0x3e889045565a9));
  const uint32_t words[3] = {
    htobe32 (option), htobe32 (type), htobe32 (count),
  };

  wire_put (fd, &magic, 8);
  wire_put (fd, words, 12);
  wire_put (fd, data, count);
}

static void
put_infos (int fd, const struct wire_export *e)
{
  const struct { uint16_t type; uint64_t size; uint16_t flags; }
    __attribute__ ((__packed__)) info = {
      htobe16 (INFO_EXPORT), htobe64 (e->size),
      htobe16 (WIRE_HAS_FLAGS | e->flags),
    };
  const struct { uint16_t type; uint32_t least, good, most; }
    __attribute__ ((__packed__)) blocks = {
      htobe16 (INFO_BLOCK_SIZE), htobe32 (e->block),
      htobe32 (e->block > 4096 ? e->block : 4096), htobe32 (MOST_BYTES),
    };

  put_reply (fd, OPTION_GO, REPLY_INFO, &info, sizeof info);
  if (e->block != 0)
    put_reply (fd, OPTION_GO, REPLY_INFO, &blocks, sizeof blocks);
}

static void
put_context (int fd)
{
  const struct { uint32_t id; char name[sizeof CONTEXT - 1]; }
    __attribute__ ((__packed__)) context = { htobe32 (CONTEXT_ID), CONTEXT };

  put_reply (fd, OPTION_SET_CONTEXT, REPLY_CONTEXT, &context, sizeof context);
}

bool
wire_negotiate (int fd, const struct wire_export *e)
{
  static const char hello[18] = "NBDMAGICIHAVEOPT\0\3"; /* fixed, no zeroes */
  uint32_t words[4];
  char data[4096];

  wire_put (fd, hello, sizeof hello);
  if (!wire_get (fd, words, 4))
    return false;
  while (wire_get (fd, words, 16)) {
    const uint32_t count = be32toh (words[3]), option = be32toh (words[2]);

    if (count > sizeof data || !wire_get (fd, data, count))
      return false;
    if (option == OPTION_GO)
      put_infos (fd, e);
    else if (option == OPTION_SET_CONTEXT && e->extents)
      put_context (fd);
    put_reply (fd, option, option == OPTION_EXTENDED ? REPLY_UNSUPPORTED
               : REPLY_ACK, NULL, 0);
    if (option == OPTION_GO)
      return true;
  }
  return false;
}

/* ----------------------------------------------------------------- answers */

enum {
  CHUNK_NONE = 0, CHUNK_DATA = 1, CHUNK_EXTENTS = 5, CHUNK_ERROR = 0x8001,
};

/* Of two parts. */
static void
put_chunk (int fd, const struct wire_request *q, uint16_t type,
           const void *head, uint32_t head_count, const void *data,
           uint32_t count)
{
  const struct { uint32_t magic; uint16_t flags, type; uint64_t cookie;
                 uint32_t count; } __attribute__ ((__packed__)) chunk = {
    htobe32 (0x668e33ef), htobe16 (1), htobe16 (type), q->cookie,
    htobe32 (head_count + count),
  };

  wire_put (fd, &chunk, sizeof chunk);
  wire_put (fd, head, head_count);
  wire_put (fd, data, count);
}

void
wire_put_read (int fd, const struct wire_request *q, const void *data,
               uint32_t count)
{
  const uint64_t offset = q->offset;

  put_chunk (fd, q, CHUNK_DATA, &offset, sizeof offset, data, count);
}

void
wire_put_error (int fd, const struct wire_request *q, uint32_t error)
{
  const struct { uint32_t error; uint16_t length; }
    __attribute__ ((__packed__)) bad = { htobe32 (error), 0 };

  if (error != 0)
    put_chunk (fd, q, CHUNK_ERROR, &bad, sizeof bad, NULL, 0);
  else
    put_chunk (fd, q, CHUNK_NONE, NULL, 0, NULL, 0);
}

void
wire_put_extents (int fd, const struct wire_request *q, const uint32_t *pairs,
                  unsigned nr)
{
  const uint32_t id = htobe32 (CONTEXT_ID);
  uint32_t words[2 * WIRE_MAX_EXTENTS];
  unsigned i;

  if (nr > WIRE_MAX_EXTENTS)
    abort ();
  for (i = 0; i < 2 * nr; ++i)
    words[i] = htobe32 (pairs[i]);
  put_chunk (fd, q, CHUNK_EXTENTS, &id, sizeof id, words, 8 * nr);
}
