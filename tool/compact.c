/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
#include "manage/compact.h"
#include "manage/door.h"
#include "passphrase.h"
#include "tool.h"

const char tool_compact_usage[] =
  "Usage: " TOOL_NAME " compact [OPTION...] IMAGE\n"
  "\n"
  "Moves clusters from the end of the file of an image that nobody serves to free\n"
  "ones before them, and cuts it off.\n"
  "\n"
  "      --passphrase=+FILE|-|-FD|TEXT\n"
  "                           of an image that is encrypted with LUKS: the first\n"
  "                           line of a file, asked for, from a descriptor; or\n"
  "                           itself, which everybody can see\n"
  "  -p, --progress           print how far it is, on standard error\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "The image reads as before all the time.  After a power cut clusters may be\n"
  "leaked; after Ctrl-C a part is done.  Images that are marked as dirty or\n"
  "corrupt, or have leaked clusters, want a repair first.\n";

static int
compact (const struct tool_options *o, struct storage *s)
{
  struct tool_progress progress = { .wanted = o->progress };
  struct compact_options options = {
    .progress = tool_progress, .opaque = &progress,
  };
  const struct passphrases *passphrases;
  int r;

  if (tool_check_qcow2 (o, s) == -1)
    return -1;
  r = passphrases_read (o, &passphrases) == -1 ? -1
    : door_open (s, passphrases, &options.data);
  passphrases_wipe ();
  if (r == 0)
    r = compact_image (s, &options);
  storage_close (options.data);
  return r;
}

int
tool_compact (const struct tool_options *o)
{
  struct storage *s = tool_open (o, true);
  uint64_t before, after;
  int r;

  if (s == NULL)
    return tool_failed ();
  tool_catch_signals ();
  before = s->size;
  r = compact (o, s);
  after = s->size;
  storage_close (s);
  if (r == -1)
    return tool_failed ();
  if (!o->quiet)
    printf ("Image compacted: %" PRIu64 " bytes, of %" PRIu64 ".\n", after,
            before);
  return TOOL_OK;
}
