/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "servers.h"
#include "values.h"

static struct nbd_options options = NBD_DEFAULTS;
static const char *first_key; /* of a parameter that is only for servers */

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

int
servers_set (const char *key, const char *value)
{
  static const struct {
    const char *key;
    int (*set) (const char *key, const char *value);
  } keys[] = {
    { "retry", set_retry },
    { "timeout", set_timeout },
    { "connections", set_connections },
    { "unsafe-no-flush", set_no_flush },
  };
  size_t i;

  for (i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
    if (strcmp (key, keys[i].key) != 0)
      continue;
    if (first_key == NULL)
      first_key = keys[i].key;
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
servers_complete (bool used)
{
  if (used || first_key == NULL)
    return 0;
  nbdkit_error ("%s= is only for images on NBD servers: neither uri= nor "
                "backing= names one", first_key);
  return -1;
}

struct nbd_options
servers_options (void)
{
  return options;
}
