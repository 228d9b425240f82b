/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "storage/nbd.h"

/* nbd, nbds, and those with a transport, such as nbd+unix.  Which transports
 * there are is for libnbd to know.
 */
bool
storage_nbd_is_uri (const char *name)
{
  size_t n;

  if (strncmp (name, "nbd", 3) != 0)
    return false;
  n = name[3] == 's' ? 4 : 3;
  if (name[n] == '+')
    n += 1 + strspn (name + n + 1, "abcdefghijklmnopqrstuvwxyz0123456789");
  return strncmp (name + n, "://", 3) == 0;
}
