/* SPDX-License-Identifier: BSD-3-Clause */

/* nbdkit's command line. */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"
#include "storage/nbd.h"

void
arguments_add (struct arguments *a, const char *text)
{
  a->argv = grow (a->argv, (a->nr + 2) * sizeof *a->argv);
  a->argv[a->nr++] = format ("%s", text);
  a->argv[a->nr] = NULL;
}

static void
add_two (struct arguments *a, const char *option, const char *value)
{
  arguments_add (a, option);
  arguments_add (a, value);
}

/* KEY=VALUE, unless value is NULL. */
static void
add_parameter (struct arguments *a, const char *key, const char *value)
{
  if (value != NULL)
    arguments_add (a, format ("%s=%s", key, value));
}

static void
add_secret (struct arguments *a, const char *key, const char *id)
{
  if (id != NULL)
    arguments_add (a, format ("%s=-%d", key, objects_open_secret (id)));
}

static const char *
from_environment (const char *name, const char *otherwise)
{
  const char *value = getenv (name);

  return value != NULL && value[0] != '\0' ? value : otherwise;
}

static void
add_server (struct arguments *a, const struct request *r)
{
  arguments_add (a, from_environment ("NBDKIT", "nbdkit"));
  if (!r->background)
    arguments_add (a, "-f");
  if (r->verbose)
    arguments_add (a, "-v");
  if (r->read_only)
    arguments_add (a, "-r");
  if (r->pid_file != NULL)
    add_two (a, "-P", r->pid_file);
  if (r->socket != NULL)
    add_two (a, "-U", r->socket);
  else if (getenv ("LISTEN_FDS") == NULL) {
    add_two (a, "-i", r->address != NULL ? r->address : "0.0.0.0");
    add_two (a, "-p", r->port != NULL ? r->port : "10809");
  }
  if (r->selinux_label != NULL)
    arguments_add (a, format ("--selinux-label=%s", r->selinux_label));
  if (r->tls_creds != NULL)
    objects_add_tls (a, r->tls_creds);
}

static bool
is_part (const struct request *r, const struct disk *d)
{
  return r->offset != NULL || d->offset != NULL || d->size != NULL;
}

/* The parameters of the filter. */
static void
add_part (struct arguments *a, const struct request *r, const struct disk *d)
{
  const uint64_t more =
    r->offset != NULL ? parse_bytes ("offset", r->offset) : 0;
  const uint64_t start =
    d->offset != NULL ? parse_bytes ("offset", d->offset) : 0;
  const uint64_t size = d->size != NULL ? parse_bytes ("size", d->size) : 0;

  if (!is_part (r, d))
    return;
  if (start + more > INT64_MAX || (d->size != NULL && more > size))
    die ("the offset is beyond the end of the disk");
  arguments_add (a, format ("offset=%" PRIu64, start + more));
  if (d->size != NULL)
    arguments_add (a, format ("range=%" PRIu64, size - more));
}

static bool
is_raw (const struct disk *d)
{
  return d->format == DISK_RAW || d->format == DISK_LUKS;
}

/* From the one that is next to the client to the one next to the disk. */
static void
add_filters (struct arguments *a, const struct request *r,
             const struct disk *d)
{
  if (!r->persistent)
    arguments_add (a, "--filter=exitlast");
  if (r->description != NULL || is_raw (d))
    arguments_add (a, "--filter=exportname");
  /* The limit filter does not let clients wait, but refuses one that comes
   * right after another has left.
   */
  if (is_raw (d) && r->clients == 1) {
    arguments_add (a, "--filter=noparallel");
    arguments_add (a, "--filter=multi-conn");
  }
  if (r->throw_away && !r->read_only)
    arguments_add (a, "--filter=cow");
  if (r->writethrough)
    arguments_add (a, "--filter=fua");
  if (r->partition != NULL)
    arguments_add (a, "--filter=partition");
  if (is_part (r, d))
    arguments_add (a, "--filter=offset");
  if (d->format == DISK_LUKS)
    arguments_add (a, "--filter=luks");
}

static void
add_filter_parameters (struct arguments *a, const struct request *r,
                       const struct disk *d)
{
  if (r->description != NULL)
    arguments_add (a, format ("exportdesc=fixed:%s", r->description));
  if (r->writethrough)
    arguments_add (a, "fuamode=force");
  add_parameter (a, "partition", r->partition);
  add_part (a, r, d);
  if (!is_raw (d))
    return;
  arguments_add (a, "exportname-strict=true");
  arguments_add (a, "exportname-list=explicit");
  add_parameter (a, "exportname", r->export_name);
  if (r->clients == 1) {
    arguments_add (a, "serialize=connections");
    arguments_add (a, "multi-conn-mode=disable");
  }
}

static void
add_raw (struct arguments *a, const struct request *r, const struct disk *d)
{
  const bool uri = storage_nbd_is_uri (d->file);

  if (!uri)
    disk_lock_raw (d, r);
  arguments_add (a, uri ? "nbd" : "file");
  add_parameter (a, uri ? "uri" : "file", d->file);
  if (d->format == DISK_LUKS && d->secret == NULL)
    die ("driver=luks: key-secret= is wanted");
  add_secret (a, "passphrase", d->secret);
}

static void
add_image (struct arguments *a, const struct request *r, const struct disk *d)
{
  arguments_add (a, from_environment ("NBDKIT_QCOW2_PLUGIN", "qcow2"));
  add_parameter (a, storage_nbd_is_uri (d->file) ? "uri" : "file", d->file);
  arguments_add (a, "follow=any");
  add_parameter (a, "export-name", r->export_name);
  add_parameter (a, "only", d->export);
  arguments_add (a, format ("clients=%u", r->clients));
  add_parameter (a, "discard", r->discard != NULL ? r->discard : "keep");
  add_parameter (a, "detect-zeroes", r->detect_zeroes);
  add_parameter (a, "compress", d->compression);
  add_parameter (a, "backing", d->backing);
  add_parameter (a, "backing-format", d->backing_format);
  add_parameter (a, "data-file", d->data_file);
  add_parameter (a, "locking", d->locking);
  if (d->force_share)
    arguments_add (a, "force-share=true");
  add_secret (a, "passphrase", d->secret);
  add_secret (a, "backing-passphrase", d->backing_secret);
}

void
command_build (struct arguments *a, const struct request *r,
               const struct disk *d)
{
  add_server (a, r);
  add_filters (a, r, d);
  if (is_raw (d))
    add_raw (a, r, d);
  else
    add_image (a, r, d);
  add_filter_parameters (a, r, d);
}
