/* SPDX-License-Identifier: BSD-3-Clause */

/* --object: secrets, and credentials of TLS. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "standin.h"

/* The longest passphrase that the plugin takes, in bytes. */
#define SECRET_MAX 4095

/* Base64 of that, with white space. */
#define ENCODED_MAX 8192

struct object {
  const char *type, *id;
  struct members members;
};
static struct object *objects;
static unsigned nr_objects;

void
objects_add (const char *text)
{
  struct object o = { 0 };

  members_parse (&o.members, "--object", text, "qom-type");
  o.type = members_take (&o.members, "", "qom-type");
  o.id = members_take (&o.members, "", "id");
  if (o.type == NULL || o.id == NULL)
    die ("--object: a type and id= are wanted");
  if (strcmp (o.type, "secret") != 0 &&
      strcmp (o.type, "tls-creds-x509") != 0 &&
      strcmp (o.type, "tls-creds-psk") != 0)
    die ("--object: the type '%s' is not supported: only secret, "
         "tls-creds-x509 and tls-creds-psk are", o.type);
  objects = grow (objects, (nr_objects + 1) * sizeof *objects);
  objects[nr_objects++] = o;
}

static struct object *
find (const char *id)
{
  unsigned i;

  for (i = 0; i < nr_objects; ++i)
    if (strcmp (objects[i].id, id) == 0)
      return &objects[i];
  die ("there is no --object with the id '%s'", id);
}

/* ---------------------------------------------------------------- secrets */

/* Read a file, of at most max bytes. */
static size_t
read_file (const char *path, char *buf, size_t max)
{
  const int fd = open (path, O_RDONLY | O_CLOEXEC);
  size_t n = 0;
  ssize_t r;

  if (fd == -1)
    die ("--object secret: %s: %s", path, strerror (errno));
  do {
    r = read (fd, buf + n, max + 1 - n);
    if (r == -1)
      die ("--object secret: %s: %s", path, strerror (errno));
    n += r;
  } while (r > 0 && n <= max);
  close (fd);
  if (n > max)
    die ("--object secret: %s: it is longer than %zu bytes", path, max);
  return n;
}

/* In place.  Returns the number of bytes, or dies. */
static size_t
decode_base64 (char *buf, size_t n)
{
  static const char digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  size_t i, to = 0, padding = 0;
  unsigned nr = 0;
  uint32_t bits = 0;

  for (i = 0; i < n; ++i) {
    const char *digit = buf[i] != '\0' ? strchr (digits, buf[i]) : NULL;

    if (buf[i] == '\n' || buf[i] == '\r')
      continue;
    if (buf[i] == '=')
      padding++;
    else if (digit == NULL || padding > 0)
      die ("--object secret: this is no base64");
    bits = bits << 6 | (digit != NULL ? digit - digits : 0);
    if (++nr % 4 == 0) {
      buf[to++] = bits >> 16;
      buf[to++] = bits >> 8;
      buf[to++] = bits;
    }
  }
  if (nr % 4 != 0 || padding > 2 || padding > to)
    die ("--object secret: this is no base64");
  return to - padding;
}

/* The secret itself: all bytes count.  A newline, which is part of it, would be
 * the end of what nbdkit reads.
 */
static size_t
get_secret (struct object *o, char buf[ENCODED_MAX + 1])
{
  struct members *m = &o->members;
  const char *data = members_take (m, "", "data");
  const char *file = members_take (m, "", "file");
  const char *encoding = members_take (m, "", "format");
  size_t n;

  members_end (m, "--object secret");
  if ((data == NULL) == (file == NULL))
    die ("--object secret: either data= or file= is wanted");
  if (data != NULL && strlen (data) > ENCODED_MAX)
    die ("--object secret: data= is too long");
  n = file != NULL ? read_file (file, buf, ENCODED_MAX)
    : (size_t) sprintf (buf, "%s", data);
  if (encoding != NULL && strcmp (encoding, "base64") == 0)
    n = decode_base64 (buf, n);
  else if (encoding != NULL && strcmp (encoding, "raw") != 0)
    die ("--object secret: format=%s is not supported", encoding);
  if (n > SECRET_MAX)
    die ("--object secret: it is longer than %d bytes", SECRET_MAX);
  if (memchr (buf, '\n', n) != NULL || memchr (buf, '\0', n) != NULL)
    die ("--object secret: a newline or zero byte is part of the secret '%s': "
         "that is not supported (the newline at the end of a file counts, too)",
         o->id);
  return n;
}

int
objects_open_secret (const char *id)
{
  struct object *o = find (id);
  char buf[ENCODED_MAX + 1];
  size_t n;
  int fds[2];

  if (strcmp (o->type, "secret") != 0)
    die ("the --object '%s' is no secret", id);
  n = get_secret (o, buf);
  /* It fits in a pipe. */
  if (pipe (fds) == -1 || write (fds[1], buf, n) != (ssize_t) n)
    die ("pipe: %s", strerror (errno));
  explicit_bzero (buf, sizeof buf);
  close (fds[1]);
  return fds[0];
}

/* -------------------------------------------------------------------- TLS */

void
objects_add_tls (struct arguments *a, const char *id)
{
  struct object *o = find (id);
  struct members *m = &o->members;
  const bool psk = strcmp (o->type, "tls-creds-psk") == 0;
  const char *endpoint = members_take (m, "", "endpoint");
  const char *dir = members_take (m, "", "dir");

  if (!psk && strcmp (o->type, "tls-creds-x509") != 0)
    die ("the --object '%s' has no credentials of TLS", id);
  if (endpoint == NULL || strcmp (endpoint, "server") != 0)
    die ("Expecting TLS credentials with a server endpoint");
  if (dir == NULL)
    die ("--object %s: dir= is wanted", o->type);
  arguments_add (a, "--tls=require");
  if (psk)
    arguments_add (a, format ("--tls-psk=%s/keys.psk", dir));
  else {
    arguments_add (a, format ("--tls-certificates=%s", dir));
    members_take_bool (m, "", "sanity-check", true);
    if (members_take_bool (m, "", "verify-peer", true))
      arguments_add (a, "--tls-verify-peer");
  }
  members_end (m, "--object");
}
