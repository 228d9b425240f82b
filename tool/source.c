/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "base/error.h"
#include "source.h"
#include "tool.h"

/* How long a silent server may keep somebody from stopping. */
#define POLL_MILLISECONDS 200

struct source {
  uint64_t size;
  unsigned nr;
  struct nbd_handle *nbd[SOURCE_MAX_CONNECTIONS];
  char *uri;
};

/* What libnbd says of its last call.  Returns -1. */
static int
failed (const char *uri)
{
  const int err = nbd_get_errno ();

  error_set (err != 0 ? err : EIO, "%s: %s", uri, nbd_get_error ());
  return -1;
}

static struct nbd_handle *
connect_to (const char *uri)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd != NULL &&
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
      nbd_connect_uri (nbd, uri) == 0)
    return nbd;
  failed (uri);
  nbd_close (nbd);
  return NULL;
}

static int
open_first (struct source *s, const char *uri)
{
  int64_t size;

  s->uri = strdup (uri);
  s->nbd[0] = s->uri == NULL ? NULL : connect_to (uri);
  if (s->uri == NULL)
    error_set (ENOMEM, "out of memory");
  if (s->nbd[0] == NULL)
    return -1;
  s->nr = 1;
  size = nbd_get_size (s->nbd[0]);
  if (size == -1)
    return failed (uri);
  s->size = size;
  if (nbd_can_meta_context (s->nbd[0], LIBNBD_CONTEXT_BASE_ALLOCATION) == 1)
    return 0;
  error_set (ENOTSUP, "%s: the server does not tell what has changed: it has no "
             "context base:allocation", uri);
  return -1;
}

/* As many as it allows.  All must have what the first has. */
static int
open_others (struct source *s)
{
  if (nbd_can_multi_conn (s->nbd[0]) != 1)
    return 0;
  while (s->nr < SOURCE_MAX_CONNECTIONS) {
    s->nbd[s->nr] = connect_to (s->uri);
    if (s->nbd[s->nr] == NULL)
      return -1;
    if (nbd_get_size (s->nbd[s->nr++]) != (int64_t) s->size) {
      error_set (EIO, "%s: its size has changed", s->uri);
      return -1;
    }
  }
  return 0;
}

struct source *
source_open (const char *uri)
{
  struct source *s = calloc (1, sizeof *s);

  if (s == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  if (open_first (s, uri) == 0 && open_others (s) == 0)
    return s;
  source_close (s);
  return NULL;
}

void
source_close (struct source *s)
{
  unsigned i;

  if (s == NULL)
    return;
  for (i = 0; i < s->nr; ++i) {
    /* It waits for the server, and for commands that wait_for has left. */
    if (!tool_is_stopped ())
      nbd_shutdown (s->nbd[i], 0);
    nbd_close (s->nbd[i]);
  }
  free (s->uri);
  free (s);
}

uint64_t
source_size (const struct source *s)
{
  return s->size;
}

unsigned
source_connections (const struct source *s)
{
  return s->nr;
}

/* Wait for a command, or until the tool is to stop: then nothing but closing may
 * be done with the connection, since what the command refers to is gone.
 */
static int
wait_for (const struct source *s, struct nbd_handle *nbd, int64_t cookie)
{
  int r = cookie == -1 ? -1 : 0;

  while (r == 0) {
    if (tool_is_stopped ()) {
      error_set (EINTR, "interrupted");
      return -1;
    }
    r = nbd_aio_command_completed (nbd, cookie);
    if (r == 0 && nbd_poll (nbd, POLL_MILLISECONDS) == -1 &&
        nbd_get_errno () != EINTR)
      r = -1;
  }
  return r == -1 ? failed (s->uri) : 0;
}

int
source_read (struct source *s, unsigned connection, void *buf, size_t count,
             uint64_t offset)
{
  struct nbd_handle *nbd = s->nbd[connection];

  return wait_for (s, nbd, nbd_aio_pread (nbd, buf, count, offset,
                                          NBD_NULL_COMPLETION, 0));
}

/* ------------------------------------------------------------------ extents */

struct answer {
  source_fn *fn;
  void *opaque;
  uint64_t left;
  bool wanted;
};

/* libnbd's.  What a server tells beyond what was asked for is not used. */
static int
take_entries (void *opaque, const char *context, uint64_t offset,
              uint32_t *entries, size_t nr, int *error)
{
  struct answer *a = opaque;
  size_t i;

  (void) offset;
  if (*error != 0 || strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    return 0;
  for (i = 0; i + 1 < nr && a->wanted && a->left > 0; i += 2) {
    const uint64_t n = entries[i] < a->left ? entries[i] : a->left;

    a->left -= n;
    if (n > 0)
      a->wanted = a->fn (a->opaque, n, entries[i + 1]);
  }
  return 0;
}

int
source_extents (struct source *s, unsigned connection, uint64_t count,
                uint64_t offset, source_fn *fn, void *opaque)
{
  struct answer a = { fn, opaque, count, true };
  const nbd_extent_callback take = {
    .callback = take_entries, .user_data = &a,
  };
  struct nbd_handle *nbd = s->nbd[connection];

  if (wait_for (s, nbd, nbd_aio_block_status (nbd, count, offset, take,
                                              NBD_NULL_COMPLETION, 0)) == -1)
    return -1;
  if (a.left < count)
    return 0;
  error_set (EIO, "%s: the server tells nothing of offset %" PRIu64, s->uri,
             offset);
  return -1;
}
