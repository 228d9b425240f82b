/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/error.h"
#include "report.h"

/* Pass core/'s error on to nbdkit: the errno to the client, and the message
 * to the log unless it is there already.
 */
void
report_error (void)
{
  if (error_repeated ())
    nbdkit_debug ("%s", error_message ());
  else
    nbdkit_error ("%s", error_message ());
  nbdkit_set_error (error_errno ());
}

/* Notes are not errors but must be seen.  nbdkit logs only errors, apart from
 * what -v shows; and stderr may be a client's socket (nbdkit -s).
 */
void
report_note (const char *text)
{
  nbdkit_error ("(not an error) note: %s", text);
}

void
report_debug (const char *text)
{
  nbdkit_debug ("%s", text);
}
