/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
#include "image.h"
#include "images.h"
#include "json.h"
#include "tool.h"

const char tool_map_usage[] =
  "Usage: " TOOL_NAME " map [OPTION...] IMAGE\n"
  "\n"
  "Prints which parts of the disk are data or zeros, and where they are.\n"
  "\n"
  "      --follow=beneath     look into backing files, as far as they are in\n"
  "                           the image's directory or below it\n"
  "      --follow=any         look into backing files, wherever they are\n"
  "      --data-file=PATH     this is the image's external data file\n"
  "      --output=human|json  how to print that (human)\n"
  "  -U, --force-share        even if another process writes the image\n";

struct piece {
  uint64_t start;
  struct run run;
  const struct layer *owner;
  bool present; /* some layer has it */
};

static unsigned
depth (const struct layer *top, const struct layer *owner)
{
  unsigned n = 0;

  for (; top != owner && top != NULL; top = top->backing)
    n++;
  return n;
}

static bool
has_offset (const struct run *r)
{
  return r->kind == RUN_DATA || r->kind == RUN_ZERO_ALLOC ||
    r->kind == RUN_COMPRESSED;
}

/* The file that an offset is in. */
static const struct storage *
file_of (const struct piece *p)
{
  return p->run.kind == RUN_DATA || p->run.kind == RUN_ZERO_ALLOC
    ? p->owner->data : p->owner->tables;
}

static const char *
kind_name (enum run_kind kind)
{
  static const char *const name[] = {
    [RUN_UNALLOCATED] = "unallocated",
    [RUN_ZERO_PLAIN] = "zero",
    [RUN_ZERO_ALLOC] = "zero,allocated",
    [RUN_DATA] = "data",
    [RUN_COMPRESSED] = "compressed",
    [RUN_DAMAGED] = "damaged",
  };

  return name[kind];
}

static void
print_json (const struct layer *top, const struct piece *p)
{
  const enum run_kind kind = p->run.kind;

  json_open (NULL, '{');
  json_number ("start", p->start);
  json_number ("length", p->run.length);
  json_number ("depth", depth (top, p->owner));
  json_bool ("present", p->present);
  json_bool ("zero", kind == RUN_ZERO_PLAIN || kind == RUN_ZERO_ALLOC);
  json_bool ("data", kind == RUN_DATA || kind == RUN_COMPRESSED);
  json_bool ("compressed", kind == RUN_COMPRESSED);
  if (kind == RUN_DAMAGED)
    json_bool ("damaged", true);
  if (has_offset (&p->run))
    json_number ("offset", p->run.host.v);
  json_close ('}');
}

static void
print_human (const struct layer *top, const struct piece *p)
{
  printf ("%#14" PRIx64 " %#14" PRIx64 "  %-14s", p->start, p->run.length,
          kind_name (p->run.kind));
  if (has_offset (&p->run))
    printf (" %#14" PRIx64 " ", p->run.host.v);
  else if (depth (top, p->owner) > 0)
    printf (" %14s ", "");
  if (has_offset (&p->run) || depth (top, p->owner) > 0)
    tool_print_name (file_of (p)->name);
  putchar ('\n');
}

static void
print (const struct tool_options *o, const struct layer *top,
       const struct piece *p)
{
  if (p->run.length == 0)
    return;
  if (o->json)
    print_json (top, p);
  else
    print_human (top, p);
}

/* Whether b continues a. */
static bool
go_together (const struct piece *a, const struct piece *b)
{
  if (a->run.length == 0 || a->run.kind != b->run.kind ||
      a->owner != b->owner || a->present != b->present ||
      a->run.kind == RUN_COMPRESSED)
    return false;
  return !has_offset (&a->run) ||
    a->run.host.v + a->run.length == b->run.host.v;
}

/* layer_lookup attributes zeros that no layer has to the last one.  qemu-img
 * calls them not present, and attributes them to the layer above if the last
 * one is too short.
 */
static int
find_present (const struct layer *top, struct piece *p)
{
  const struct guest_off at = { p->start };
  const struct layer *owner = p->owner, *l;
  struct run run;

  p->present = true;
  if (p->run.kind != RUN_ZERO_PLAIN)
    return 0;
  if (at.v >= owner->size) {
    for (l = top; l != owner; l = l->backing)
      p->owner = l;
    p->present = false;
    return 0;
  }
  if (owner->format->lookup (owner, at, p->run.length, &run) == -1)
    return -1;
  p->present = run.kind != RUN_UNALLOCATED;
  return 0;
}

static int
look_up (const struct layer *top, uint64_t at, struct piece *p)
{
  struct epoch *epoch = top->shared->epoch;
  const unsigned token = epoch_enter (epoch);
  int r;

  p->start = at;
  r = layer_lookup (top, (struct guest_off) { at }, top->size - at, &p->run,
                    &p->owner);
  if (r == 0 && p->run.kind == RUN_GUEST_DATA) /* which is data all the same */
    p->run.kind = RUN_DATA;
  if (r == 0)
    r = find_present (top, p);
  epoch_leave (epoch, token);
  return r;
}

static int
print_all (const struct tool_options *o, const struct layer *top)
{
  struct piece last = { .run.length = 0 }, next;
  uint64_t at;

  for (at = 0; at < top->size; at += next.run.length) {
    if (look_up (top, at, &next) == -1)
      return -1;
    if (go_together (&last, &next))
      last.run.length += next.run.length;
    else {
      print (o, top, &last);
      last = next;
    }
  }
  print (o, top, &last);
  return 0;
}

int
tool_map (const struct tool_options *o)
{
  const struct image_options options = tool_image_options (o);
  struct image *im = image_open (&options);
  struct layer *disk;
  int r;

  if (im == NULL)
    return tool_failed ();
  disk = image_open_disk (im, "");
  if (disk == NULL || tool_check_format (o, disk->format->name) == -1) {
    image_close_disk (disk);
    image_close (im);
    return tool_failed ();
  }
  if (o->json)
    json_open (NULL, '[');
  else
    printf ("%14s %14s  %-14s %14s file\n", "start", "length", "what",
            "offset");
  r = print_all (o, disk);
  if (o->json)
    json_close (']');
  image_close_disk (disk);
  image_close (im);
  return r == -1 ? tool_failed () : TOOL_OK;
}
