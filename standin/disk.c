/* SPDX-License-Identifier: BSD-3-Clause */

/* What is served: a file name, or options as QEMU has them for its block
 * drivers, which lie upon each other: OPTION, file.OPTION, file.file.OPTION.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"
#include "storage/nbd.h"

static const struct {
  const char *name;
  enum disk_format format;
} formats[] = {
  { "raw", DISK_RAW }, { "luks", DISK_LUKS }, { "qcow2", DISK_QCOW2 },
  { "qed", DISK_QED },
  /* Protocols that are no formats: all of the file is the disk. */
  { "file", DISK_RAW }, { "host_device", DISK_RAW },
};

static enum disk_format
parse_format (const char *name)
{
  unsigned i;

  for (i = 0; i < sizeof formats / sizeof formats[0]; ++i)
    if (strcmp (name, formats[i].name) == 0)
      return formats[i].format;
  die ("the format or driver '%s' is not supported: only qcow2, qed, raw and "
       "luks are; qemu-img can convert it", name);
}

uint64_t
parse_bytes (const char *what, const char *text)
{
  static const char suffixes[] = "bkmgt";
  const char *suffix;
  char *end;
  uint64_t n;
  unsigned shift = 0;

  errno = 0;
  n = strtoull (text, &end, 0);
  if (end != text && *end != '\0' && end[1] == '\0') {
    suffix = strchr (suffixes, *end | 32);
    if (suffix != NULL) {
      shift = (suffix - suffixes) * 10;
      end++;
    }
  }
  if (errno != 0 || end == text || *end != '\0' || strchr (text, '-') != NULL ||
      n > (UINT64_MAX >> 1) >> shift)
    die ("Invalid %s '%s'", what, text);
  return n << shift;
}

/* A name on the command line: a path, unless there is a colon before its first
 * slash.
 */
static const char *
parse_name (const char *name)
{
  const size_t n = strcspn (name, ":/");

  if (name[n] != ':' || storage_nbd_is_uri (name))
    return name;
  if (strncmp (name, "file:", 5) == 0)
    return name + 5;
  die ("'%s': the protocol '%.*s' is not supported: only files and NBD URIs "
       "(nbd://, nbds://, nbd+unix://, nbds+unix://) are", name, (int) n, name);
}

/* -------------------------------------------------------- options of nodes */

/* Those that every node has.  Some only choose how the same is done. */
static void
take_common (struct disk *d, struct request *r, struct members *m,
             const char *prefix)
{
  const char *discard = members_take (m, prefix, "discard");
  const char *zeroes = members_take (m, prefix, "detect-zeroes");

  members_take (m, prefix, "node-name");
  members_take_bool (m, prefix, "auto-read-only", false);
  members_take_bool (m, prefix, "cache.direct", false);
  members_take_bool (m, prefix, "cache.no-flush", false);
  if (discard != NULL)
    r->discard = strcmp (discard, "unmap") == 0 || strcmp (discard, "on") == 0
      ? "unmap" : "keep";
  if (zeroes != NULL)
    r->detect_zeroes = zeroes;
  if (members_take_bool (m, prefix, "read-only", false))
    r->read_only = true;
  if (members_take_bool (m, prefix, "force-share", false))
    d->force_share = true;
}

/* The file itself. */
static void
take_file (struct disk *d, struct members *m, const char *prefix,
           const char *driver, const char *filename)
{
  if (driver != NULL && strcmp (driver, "file") != 0 &&
      strcmp (driver, "host_device") != 0)
    die ("'%sdriver=%s' has no file name", prefix, driver);
  d->file = driver != NULL ? filename : parse_name (filename);
  if (driver != NULL && storage_nbd_is_uri (d->file))
    d->file = format ("./%s", d->file);
  if (driver != NULL && prefix[0] == '\0')
    d->format = DISK_RAW;
  d->locking = members_take (m, prefix, "locking");
  members_take (m, prefix, "aio");
}

/* A file that the image refers to, and its format. */
static void
take_lower (struct members *m, const char *prefix, const char **file,
            const char **lower_format, const char **secret)
{
  const char *driver = members_take (m, prefix, "driver");
  const char *protocol = members_take (m, prefix, "file.driver");

  *file = members_take (m, prefix, "file.filename");
  if (*file == NULL)
    *file = members_take (m, prefix, "filename");
  if (*file == NULL)
    die ("'%sfile.filename' is wanted", prefix);
  if (protocol != NULL)
    parse_format (protocol);
  *lower_format = driver;
  if (driver != NULL && parse_format (driver) == DISK_RAW)
    *lower_format = "raw";
  members_take (m, prefix, "node-name");
  members_take_bool (m, prefix, "read-only", true);
  if (secret != NULL)
    *secret = members_take (m, prefix, "encrypt.key-secret");
}

static void
take_qcow2 (struct disk *d, struct members *m, const char *prefix)
{
  /* How it is done, not what. */
  static const char *const ignored[] = {
    "lazy-refcounts", "overlap-check", "cache-size", "l2-cache-size",
    "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval",
    "pass-discard-request", "pass-discard-snapshot", "encrypt.format",
  };
  const char *none;
  char *backing = format ("%sbacking.", prefix);
  char *data = format ("%sdata-file.", prefix);
  unsigned i;

  for (i = 0; i < sizeof ignored / sizeof ignored[0]; ++i)
    members_take (m, prefix, ignored[i]);
  d->secret = members_take (m, prefix, "encrypt.key-secret");
  d->no_backing = members_take_null (m, prefix, "backing");
  if (members_have (m, backing))
    take_lower (m, backing, &d->backing, &d->backing_format,
                &d->backing_secret);
  if (members_have (m, data))
    take_lower (m, data, &d->data_file, &none, NULL);
  free (backing);
  free (data);
}

/* A driver that is on top of another. */
static void
take_format (struct disk *d, struct members *m, const char *prefix,
             const char *driver)
{
  enum disk_format f;

  if (strcmp (driver, "compress") == 0) {
    d->compress = true;
    return;
  }
  f = parse_format (driver);
  if (d->format != DISK_ANY && d->format != DISK_RAW)
    die ("'%sdriver=%s': one format in another is not supported", prefix,
         driver);
  d->format = f;
  if (f == DISK_QCOW2)
    take_qcow2 (d, m, prefix);
  else if (f == DISK_LUKS)
    d->secret = members_take (m, prefix, "key-secret");
  else if (f == DISK_RAW) {
    d->offset = members_take (m, prefix, "offset");
    d->size = members_take (m, prefix, "size");
  }
}

static void
take_nodes (struct disk *d, struct request *r, struct members *m)
{
  char *prefix = format ("%s", "");

  for (;;) {
    const char *driver = members_take (m, prefix, "driver");
    const char *filename = members_take (m, prefix, "filename");

    take_common (d, r, m, prefix);
    if (filename != NULL) {
      take_file (d, m, prefix, driver, filename);
      break;
    }
    if (driver != NULL)
      take_format (d, m, prefix, driver);
    prefix = format ("%sfile.", prefix);
    if (!members_have (m, prefix))
      die ("'%sfilename' is wanted", prefix);
  }
  free (prefix);
  members_end (m, r->image_opts ? "--image-opts" : "json:");
}

/* ------------------------------------------------------------------- all */

void
disk_parse (struct disk *d, struct request *r)
{
  struct members m = { 0 };

  *d = (struct disk) { .format = DISK_ANY };
  if (r->image_opts) {
    members_parse (&m, "--image-opts", r->image, "file");
    take_nodes (d, r, &m);
  }
  else if (strncmp (r->image, "json:", 5) == 0) {
    members_parse_json (&m, "json:", r->image + 5);
    take_nodes (d, r, &m);
  }
  else
    d->file = parse_name (r->image);
  if (r->format != NULL) {
    if (d->format != DISK_ANY && d->format != parse_format (r->format))
      die ("-f %s contradicts the driver in '%s'", r->format, r->image);
    d->format = parse_format (r->format);
  }
  if (r->detect_zeroes != NULL && strcmp (r->detect_zeroes, "unmap") == 0 &&
      (r->discard == NULL || strcmp (r->discard, "unmap") != 0))
    die ("setting detect-zeroes to unmap is not allowed without setting discard "
         "operation to unmap");
}
