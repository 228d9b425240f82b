/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "json.h"
#include "manage/bitmap-ranges.h"
#include "qcow2/qcow2.h"
#include "tool.h"

const char tool_bitmap_usage[] =
  "Usage: nbdkit-qcow2-tool bitmap ACTION... [OPTION...] IMAGE NAME\n"
  "       nbdkit-qcow2-tool bitmap --dump [OPTION...] IMAGE NAME\n"
  "       nbdkit-qcow2-tool bitmap [--list] [OPTION...] IMAGE\n"
  "\n"
  "Makes, changes or removes a persistent bitmap of an image that nobody serves;\n"
  "prints what it calls dirty; or lists them.  Several actions are done in their\n"
  "order: all of them, or none.\n"
  "\n"
  "      --add                make it, enabled; nothing is dirty\n"
  "  -g, --granularity=SIZE   --add: of the disk for each bit, a power of 2\n"
  "                           from 512 to 2G (as the clusters, 4k to 64k)\n"
  "      --remove             remove it, even if it is in use\n"
  "      --clear              have nothing dirty\n"
  "      --enable, --disable  let it follow what is written, or not\n"
  "      --merge=SOURCE       have dirty what the bitmap SOURCE calls so, too\n"
  "  -b, --source-file=FILE   --merge: the image that has SOURCE (this one)\n"
  "  -F, --source-format=qcow2\n"
  "                           -b: the format of that\n"
  "      --dump               print the ranges that are dirty\n"
  "  -l, --list               list all bitmaps (the default)\n"
  "      --output=human|json  how to print that (human)\n"
  "  -U, --force-share        --dump, -l: even if another process writes it\n"
  "\n"
  "After a power cut all bitmaps are as before or as after, and clusters may be\n"
  "leaked.  Images that are marked as dirty or corrupt want a repair first.\n";

/* ------------------------------------------------------------------ printing */

void
tool_print_bitmap (const struct bitmap_info *b, bool json)
{
  if (json) {
    json_open (NULL, '{');
    json_string ("name", b->name);
    json_number ("granularity", UINT64_C (1) << b->granularity_bits);
    json_open ("flags", '[');
    if (b->in_use)
      json_string (NULL, "in-use");
    if (b->automatic)
      json_string (NULL, "auto");
    json_close (']');
    json_close ('}');
    return;
  }
  putchar ('"');
  tool_print_name (b->name);
  printf ("\", granularity %" PRIu64 "%s%s\n",
          UINT64_C (1) << b->granularity_bits,
          b->in_use ? ", in use" : "", b->automatic ? ", auto" : "");
}

struct printing {
  const struct tool_options *o;
  bool begun; /* the JSON array */
};

static void
begin (struct printing *p)
{
  if (p->o->json && !p->begun)
    json_open (NULL, '[');
  p->begun = true;
}

static int
print_bitmap (void *opaque, const struct bitmap_info *b)
{
  struct printing *p = opaque;

  begin (p);
  tool_print_bitmap (b, p->o->json);
  return 0;
}

static int
print_range (void *opaque, uint64_t start, uint64_t length)
{
  struct printing *p = opaque;

  begin (p);
  if (p->o->json) {
    json_open (NULL, '{');
    json_number ("start", start);
    json_number ("length", length);
    json_close ('}');
  }
  else
    printf ("%#14" PRIx64 " %#14" PRIx64 "\n", start, length);
  return 0;
}

/* After an error nothing on stdout looks complete: an array that is empty, or
 * ends too early, would say that the rest is clean.
 */
static int
print (const struct tool_options *o, struct storage *s)
{
  struct printing p = { .o = o };
  struct header h;

  if (qcow2_read_header (s, &h) == -1 ||
      (o->dump ? bitmap_ranges (s, &h, o->name, print_range, &p)
       : bitmaps_list (s, &h, print_bitmap, &p)) == -1)
    return -1;
  begin (&p);
  if (o->json)
    json_close (']');
  return 0;
}

/* ------------------------------------------------------------------ changing */

static int
change (const struct tool_options *o, struct storage *s,
        struct storage *source)
{
  struct bitmap_change c = {
    .name = o->name, .action = o->bitmap_actions, .nr = o->nr_bitmap_actions,
    .source = source,
  };

  /* 0 stands for no size at all. */
  if (o->granularity != NULL &&
      (!tool_parse_size (o->granularity, &c.granularity) ||
       c.granularity == 0)) {
    error_set (EINVAL, "'%s' is no size: bytes, or with a suffix k, M, G, T, P "
               "or E", o->granularity);
    return -1;
  }
  return bitmap_change (s, &c);
}

static int
open_source (const struct tool_options *o, struct storage **source)
{
  struct tool_options of_source = { .file = o->base };

  *source = NULL;
  if (o->base == NULL)
    return 0;
  *source = tool_open (&of_source, false);
  if (*source == NULL)
    return -1;
  return tool_check_qcow2 (&of_source, *source);
}

static int
run (const struct tool_options *o, struct storage *s)
{
  struct storage *source;
  int r;

  if (tool_check_qcow2 (o, s) == -1)
    return -1;
  if (o->nr_bitmap_actions == 0)
    return print (o, s);
  r = open_source (o, &source);
  if (r == 0)
    r = change (o, s, source);
  storage_close (source);
  return r;
}

/* ------------------------------------------------------------------- options */

static bool
has_action (const struct tool_options *o, enum bitmap_action_kind kind)
{
  size_t i;

  for (i = 0; i < o->nr_bitmap_actions; ++i)
    if (o->bitmap_actions[i].kind == kind)
      return true;
  return false;
}

/* What is wrong with them; NULL: nothing. */
static const char *
check_options (const struct tool_options *o)
{
  const bool acts = o->nr_bitmap_actions > 0;

  if (acts + o->dump + o->acts > 1)
    return "actions, --dump and --list exclude each other";
  if (acts && o->force_share)
    return "--force-share is only for --dump and --list";
  if (acts && o->json)
    return "--output=json is only for --dump and --list";
  if ((acts || o->dump) != (o->name != NULL))
    return o->name == NULL ? "the name of a bitmap is wanted"
      : "an action or --dump is wanted";
  if (o->granularity != NULL && !has_action (o, BITMAP_ADD))
    return "--granularity is only for --add";
  if (o->base != NULL && !has_action (o, BITMAP_MERGE))
    return "--source-file is only for --merge";
  if (o->base_format != NULL && o->base == NULL)
    return "--source-format is only for --source-file";
  if (o->base_format != NULL && strcmp (o->base_format, "qcow2") != 0)
    return "-F must be qcow2: other formats have no bitmaps";
  return NULL;
}

int
tool_bitmap (const struct tool_options *o)
{
  const char *why = check_options (o);
  struct storage *s;
  int r;

  if (why != NULL) {
    error_set (EINVAL, "bitmap: %s", why);
    return tool_failed ();
  }
  s = tool_open (o, o->nr_bitmap_actions > 0);
  if (s == NULL)
    return tool_failed ();
  r = run (o, s);
  storage_close (s);
  return r == -1 ? tool_failed () : TOOL_OK;
}
