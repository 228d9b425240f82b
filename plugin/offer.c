/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "offer.h"

/* How often one that waits looks whether it may go on. */
#define WAIT_NS 10000000

/* nbdkit keeps the values of parameters until it ends. */
static const char *only;        /* core's name */
static const char *export_name; /* for clients */

static unsigned max_clients; /* 0: no limit */
static unsigned clients;
static pthread_mutex_t clients_lock = PTHREAD_MUTEX_INITIALIZER;

int
offer_set (const char *key, const char *value)
{
  if (strcmp (key, "only") == 0)
    only = value;
  else if (strcmp (key, "export-name") == 0)
    export_name = value;
  else if (strcmp (key, "clients") == 0)
    return nbdkit_parse_unsigned (key, value, &max_clients) == -1 ? -1 : 1;
  else
    return 0;
  return 1;
}

const char *
offer_only (const char **name)
{
  if (only == NULL && export_name == NULL)
    return NULL;
  *name = export_name != NULL ? export_name : "";
  return only != NULL ? only : "";
}

const char *
offer_find (const char *asked)
{
  const char *name, *found = offer_only (&name);

  if (found == NULL)
    return asked;
  if (strcmp (asked, name) == 0)
    return found;
  nbdkit_error ("there is no export of the name that a client asks for: only "
                "one is offered (only=, export-name=)");
  nbdkit_set_error (ENOENT);
  return NULL;
}

static bool
try_to_enter (void)
{
  bool may;

  pthread_mutex_lock (&clients_lock);
  may = max_clients == 0 || clients < max_clients;
  if (may)
    clients++;
  pthread_mutex_unlock (&clients_lock);
  return may;
}

int
offer_enter (void)
{
  while (!try_to_enter ())
    if (nbdkit_nanosleep (0, WAIT_NS) == -1)
      return -1;
  return 0;
}

void
offer_leave (void)
{
  pthread_mutex_lock (&clients_lock);
  clients--;
  pthread_mutex_unlock (&clients_lock);
}

bool
offer_several (void)
{
  return max_clients != 1;
}
