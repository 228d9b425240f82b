/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "servers.h"
#include "values.h"

static struct nbd_options options = NBD_DEFAULTS;
static const char *first_key; /* of a parameter that is only for servers */
static const char *uri_key;   /* of one that is only for those with a URI */

static char **argv; /* NULL: no command= and no arg=; argv[0] may be NULL yet */
static size_t nr_args;

static int
set_retry (const char *key, const char *value)
{
  if (nbdkit_parse_unsigned (key, value, &options.retries) == -1)
    return -1;
  options.opening_retries = options.retries;
  return 1;
}

static int
set_timeout (const char *key, const char *value)
{
  if (nbdkit_parse_unsigned (key, value, &options.timeout) == -1)
    return -1;
  if (options.timeout >= 1 && options.timeout <= NBD_MAX_TIMEOUT)
    return 1;
  nbdkit_error ("%s=%s: must be from 1 to %d seconds", key, value,
                NBD_MAX_TIMEOUT);
  return -1;
}

static int
set_connections (const char *key, const char *value)
{
  if (nbdkit_parse_unsigned (key, value, &options.connections) == -1)
    return -1;
  if (options.connections >= 1 && options.connections <= NBD_MAX_CONNECTIONS)
    return 1;
  nbdkit_error ("%s=%s: must be from 1 to %d", key, value,
                NBD_MAX_CONNECTIONS);
  return -1;
}

static int
set_no_flush (const char *key, const char *value)
{
  return value_parse_bool (key, value, &options.without_flush) == -1 ? -1 : 1;
}

/* Have room in argv for one argument more and the NULL at its end. */
static int
grow_argv (void)
{
  char **more = realloc (argv, (nr_args + 3) * sizeof *argv);

  if (more == NULL) {
    nbdkit_error ("out of memory");
    return -1;
  }
  if (argv == NULL)
    more[0] = NULL;
  more[nr_args + 1] = more[nr_args + 2] = NULL;
  argv = more;
  return 0;
}

static int
set_arg (const char *key, const char *value)
{
  if (grow_argv () == -1)
    return -1;
  argv[nr_args + 1] = strdup (value);
  if (argv[++nr_args] != NULL)
    return 1;
  nbdkit_error ("out of memory");
  return -1;
}

/* nbdkit may change its directory before the command is started. */
int
servers_set_command (const char *key, const char *value)
{
  if (value[0] == '\0') {
    nbdkit_error ("%s=: which command?", key);
    return -1;
  }
  if (grow_argv () == -1)
    return -1;
  argv[0] = strchr (value, '/') != NULL ? nbdkit_absolute_path (value)
    : strdup (value);
  return argv[0] != NULL ? 0 : -1;
}

int
servers_set (const char *key, const char *value)
{
  static const struct {
    const char *key;
    int (*set) (const char *key, const char *value);
    bool uri; /* only for servers that are connected to */
  } keys[] = {
    { "arg", set_arg, false },
    { "retry", set_retry, true },
    { "timeout", set_timeout, false },
    { "connections", set_connections, true },
    { "unsafe-no-flush", set_no_flush, false },
  };
  size_t i;

  for (i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
    if (strcmp (key, keys[i].key) != 0)
      continue;
    if (first_key == NULL)
      first_key = keys[i].key;
    if (uri_key == NULL && keys[i].uri)
      uri_key = keys[i].key;
    return keys[i].set (key, value);
  }
  return 0;
}

/* Paths in a URI must be absolute: nbdkit changes its directory, and connects
 * again later.
 */
static int
check_paths (const char *key, const char *value)
{
  static const char *const names[] = {
    "socket=", "tls-certificates=", "tls-psk-file=",
  };
  const char *p = strchr (value, '?');
  size_t i;

  for (; p != NULL; p = strpbrk (p, "&;")) {
    p++;
    for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
      const size_t length = strlen (names[i]);

      if (strncasecmp (p, names[i], length) != 0 || p[length] == '/' ||
          strncasecmp (p + length, "%2f", 3) == 0)
        continue;
      nbdkit_error ("%s=%s: the path in %.*s must be absolute", key, value,
                    (int) length, names[i]);
      return -1;
    }
  }
  return 0;
}

int
servers_set_uri (const char *key, const char *value, char **uri)
{
  if (!storage_nbd_is_uri (value)) {
    nbdkit_error ("%s=%s: must be an NBD URI, such as nbd://host/export or "
                  "nbd+unix:///export?socket=/path", key, value);
    return -1;
  }
  if (check_paths (key, value) == -1)
    return -1;
  *uri = strdup (value);
  if (*uri != NULL)
    return 0;
  nbdkit_error ("out of memory");
  return -1;
}

int
servers_complete (bool uris)
{
  const bool started = servers_command () != NULL;

  if (nr_args > 0 && !started)
    nbdkit_error ("arg= without command=");
  else if (uri_key != NULL && started && !uris)
    nbdkit_error ("%s= is not for a server that command= starts: it has one "
                  "connection, and is started once", uri_key);
  else if (first_key != NULL && !started && !uris)
    nbdkit_error ("%s= is only for images on NBD servers: neither uri=, "
                  "backing= nor data-file= names one", first_key);
  else
    return 0;
  return -1;
}

char *const *
servers_command (void)
{
  return argv != NULL && argv[0] != NULL ? argv : NULL;
}

struct nbd_options
servers_options (void)
{
  return options;
}

void
servers_free (void)
{
  size_t i;

  for (i = 0; argv != NULL && i <= nr_args; ++i)
    free (argv[i]);
  free (argv);
  argv = NULL;
}
