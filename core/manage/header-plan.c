/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/header-plan.h"

/* Offsets of the header's fields that are not in qcow2/header.h.  Spec: Header.
 */
enum {
  FIELD_VERSION = 4,
  FIELD_BACKING_OFFSET = 8,
  FIELD_BACKING_SIZE = 16,
  FIELD_REFCOUNT_ORDER = 96,
  FIELD_HEADER_LENGTH = 100,
  FIELD_COMPRESSION_TYPE = 104,
};

#define V2_REFCOUNT_ORDER 4

/* A plan that is being made. */
struct planning {
  const char *name; /* of the image */
  const uint8_t *old;
  const struct header *h;
  uint64_t file_size;
  const struct header_wish *wish;
  size_t len; /* of a cluster */
  bool *used; /* which bytes of the cluster a step begins with are */
};

/* -------------------------------------------------------------- what there is */

/* A header extension, with its head and as much padding as there is. */
struct extension {
  uint32_t type;
  size_t at, bytes;
};

static size_t
header_length (const uint8_t *cluster)
{
  return get_be32 (cluster + FIELD_VERSION) < 3 ? QCOW2_HEADER_LENGTH_V2
    : get_be32 (cluster + FIELD_HEADER_LENGTH);
}

/* Find the extension at x->at, or return false.  The cluster was accepted by
 * header_decode, which knows as this does where extensions end.
 */
static bool
find_extension (const uint8_t *cluster, size_t len, struct extension *x)
{
  const uint64_t name = get_be64 (cluster + FIELD_BACKING_OFFSET);
  const size_t end = name != 0 ? name : len;

  if (x->at >= end)
    return false;
  x->type = get_be32 (cluster + x->at);
  x->bytes = 8;
  if (x->type != QCOW2_EXT_END)
    x->bytes += ((size_t) get_be32 (cluster + x->at + 4) + 7) / 8 * 8;
  if (x->bytes > end - x->at)
    x->bytes = end - x->at;
  return true;
}

static void
find_used (const struct planning *p, const uint8_t *cluster)
{
  const uint64_t name = get_be64 (cluster + FIELD_BACKING_OFFSET);
  struct extension x = { .at = header_length (cluster) };
  bool more = true;

  memset (p->used, 0, p->len);
  memset (p->used, 1, x.at);
  for (; more && find_extension (cluster, p->len, &x); x.at += x.bytes) {
    memset (p->used + x.at, 1, x.bytes);
    more = x.type != QCOW2_EXT_END;
  }
  if (name != 0)
    memset (p->used + name, 1, get_be32 (cluster + FIELD_BACKING_SIZE));
}

/* ------------------------------------------------------------ what there will be */

/* Those that are known are in the first sector; *at is where all of them end.
 */
static void
put_fields (const struct planning *p, uint8_t *out, size_t *at)
{
  const struct header_wish *w = p->wish;
  const size_t old_length = header_length (p->old);
  struct header features = *p->h;

  *at = old_length;
  if (w->version < 3)
    *at = QCOW2_HEADER_LENGTH_V2;
  else if (p->h->version < 3 || w->compression != p->h->compression)
    *at = old_length > QCOW2_HEADER_LENGTH_NEW ? old_length
      : QCOW2_HEADER_LENGTH_NEW;
  memcpy (out, p->old, *at < old_length ? *at : old_length);
  put_be32 (out + FIELD_VERSION, w->version);
  if (w->version < 3)
    return;
  features.incompatible = w->incompatible;
  features.compatible = w->compatible;
  features.autoclear = w->autoclear;
  header_encode_features (&features, out + HEADER_FEATURES_OFFSET);
  if (p->h->version < 3)
    put_be32 (out + FIELD_REFCOUNT_ORDER, V2_REFCOUNT_ORDER);
  put_be32 (out + FIELD_HEADER_LENGTH, *at);
  if (*at > FIELD_COMPRESSION_TYPE)
    out[FIELD_COMPRESSION_TYPE] = w->compression;
}

static bool
put_format (const struct planning *p, uint8_t *out, size_t *at)
{
  const size_t n = strlen (p->wish->backing_format);
  const size_t bytes = 8 + (n + 7) / 8 * 8;

  if (n == 0)
    return true;
  if (bytes > p->len - *at)
    return false;
  memset (out + *at, 0, bytes);
  put_be32 (out + *at, QCOW2_EXT_BACKING_FORMAT);
  put_be32 (out + *at + 4, n);
  memcpy (out + *at + 8, p->wish->backing_format, n);
  *at += bytes;
  return true;
}

/* The format first, so that it is in the sector that has the name's place; the
 * others as they were.  False: there is no room.
 */
static bool
put_extensions (const struct planning *p, uint8_t *out, size_t *at,
                bool feature_names)
{
  struct extension x = { .at = header_length (p->old) };

  if (!put_format (p, out, at))
    return false;
  for (; find_extension (p->old, p->len, &x) && x.type != QCOW2_EXT_END;
       x.at += x.bytes) {
    const size_t padded = (x.bytes + 7) / 8 * 8;

    if (x.type == QCOW2_EXT_BACKING_FORMAT ||
        (x.type == QCOW2_EXT_FEATURE_NAMES && !feature_names))
      continue;
    if (padded > p->len - *at)
      return false;
    memset (out + *at, 0, padded);
    memcpy (out + *at, p->old + x.at, x.bytes);
    *at += padded;
  }
  if (8 > p->len - *at)
    return false;
  memset (out + *at, 0, 8); /* QCOW2_EXT_END */
  *at += 8;
  return true;
}

/* Put the backing file's name where it is in nobody's way, at this place or
 * behind it.
 */
static bool
put_name (const struct planning *p, const uint8_t *from, uint8_t *out,
          size_t at)
{
  const char *name = p->wish->backing_name;
  const size_t n = strlen (name);
  size_t i;

  put_be64 (out + FIELD_BACKING_OFFSET, 0);
  put_be32 (out + FIELD_BACKING_SIZE, 0);
  if (n == 0)
    return true;
  for (;;) {
    if (at > p->len || n > p->len - at)
      return false;
    for (i = n; i > 0; --i)
      if (at + i > HEADER_SECTOR && p->used[at + i - 1] &&
          from[at + i - 1] != (uint8_t) name[i - 1])
        break;
    if (i == 0)
      break;
    at = (at + i + 7) / 8 * 8;
  }
  memcpy (out + at, name, n);
  put_be64 (out + FIELD_BACKING_OFFSET, at);
  put_be32 (out + FIELD_BACKING_SIZE, n);
  return true;
}

/* H1, for the cluster that p->used is of. */
static bool
is_safe (const struct planning *p, const uint8_t *from, const uint8_t *to)
{
  size_t i;

  for (i = HEADER_SECTOR; i < p->len; ++i)
    if (p->used[i] && from[i] != to[i])
      return false;
  return true;
}

enum step_result { STEP_DONE, STEP_NO_ROOM, STEP_UNSAFE };

/* Make the next cluster after `from'.  The name is not before name_from, nor
 * among the extensions, whose end is *end then.
 */
static enum step_result
make_step (const struct planning *p, const uint8_t *from, uint8_t *to,
           bool feature_names, size_t name_from, size_t *end)
{
  memcpy (to, from, p->len);
  memset (to, 0, HEADER_SECTOR);
  put_fields (p, to, end);
  if (!put_extensions (p, to, end, feature_names))
    return STEP_NO_ROOM;
  find_used (p, from);
  if (!put_name (p, from, to, *end > name_from ? *end : name_from))
    return STEP_NO_ROOM;
  return is_safe (p, from, to) ? STEP_DONE : STEP_UNSAFE;
}

/* The names of features are often what is in the way: in two steps, they are
 * left out and put in again; or else they are left out.
 */
static enum step_result
make_steps (const struct planning *p, struct header_plan *plan)
{
  enum step_result r;
  size_t end, ignored;

  plan->nr = 1;
  r = make_step (p, p->old, plan->cluster[0], true, 0, &end);
  if (r == STEP_DONE)
    return r;
  if (r == STEP_UNSAFE &&
      make_step (p, p->old, plan->cluster[0], false, end,
                 &ignored) == STEP_DONE &&
      make_step (p, plan->cluster[0], plan->cluster[1], true, 0,
                 &ignored) == STEP_DONE) {
    plan->nr = 2;
    return STEP_DONE;
  }
  return make_step (p, p->old, plan->cluster[0], false, 0, &ignored);
}

/* H2, of the last one. */
static int
check_result (const struct planning *p, const struct header_plan *plan)
{
  struct header now;

  if (header_decode (p->name, plan->cluster[plan->nr - 1], p->len,
                     p->file_size, &now) == -1)
    return -1;
  if (strcmp (now.backing_name, p->wish->backing_name) == 0 &&
      strcmp (now.backing_format, p->wish->backing_format) == 0)
    return 0;
  error_set (ENOTSUP, "%s: the header would name another backing file",
             p->name);
  return -1;
}

int
header_plan_make (struct header_plan *plan, const char *name,
                  const uint8_t *old, const struct header *h,
                  uint64_t file_size, const struct header_wish *wish)
{
  struct planning p = {
    .name = name, .old = old, .h = h, .file_size = file_size, .wish = wish,
    .len = h->cluster_size, .used = malloc (h->cluster_size),
  };
  int r = -1;

  *plan = (struct header_plan) {
    .cluster = { malloc (p.len), malloc (p.len) },
  };
  if (p.used == NULL || plan->cluster[0] == NULL || plan->cluster[1] == NULL)
    error_set (ENOMEM, "%s: out of memory", name);
  else
    switch (make_steps (&p, plan)) {
    case STEP_DONE:
      r = check_result (&p, plan);
      break;
    case STEP_NO_ROOM:
      error_set (ENOTSUP, "%s: there is no room in the first cluster, of %zu "
                 "bytes, for a backing file name of %zu bytes and the header's "
                 "extensions", name, p.len, strlen (wish->backing_name));
      break;
    case STEP_UNSAFE:
      error_set (ENOTSUP, "%s: the header's extensions, which reach beyond its "
                 "first %d bytes, would have to be moved, and a power cut "
                 "amid that could leave neither header whole", name,
                 HEADER_SECTOR);
      break;
    }
  free (p.used);
  return r;
}

void
header_plan_free (struct header_plan *plan)
{
  unsigned i;

  for (i = 0; i < HEADER_PLAN_STEPS; ++i)
    free (plan->cluster[i]);
}
