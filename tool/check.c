/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "formats.h"
#include "json.h"
#include "qcow2/check/check.h"
#include "qcow2/qcow2.h"
#include "qed/check.h"
#include "qed/qed.h"
#include "tool.h"

const char tool_check_usage[] =
  "Usage: " TOOL_NAME " check [-r leaks|all] [OPTION...] IMAGE\n"
  "\n"
  "Looks at all metadata of the image, and compares its refcounts with what\n"
  "is in use.  Nothing is written without -r.\n"
  "\n"
  "  -r, --repair=leaks       free leaked clusters, if nothing else is wrong\n"
  "  -r, --repair=all         repair all that is wrong; see the man page\n"
  "      --messages=N         print at most N findings (100)\n"
  "  -p, --progress           print how far it is, on standard error\n"
  "  -q, --quiet              print neither findings nor the result\n"
  "      --output=human|json  how to print the result (human)\n"
  "  -U, --force-share        even if another process writes the image\n"
  "\n"
  "exits with 0 if all is well, 1 if it could not be completed, 2 if there\n"
  "are errors, 3 if there are only leaks.\n";

struct listing {
  struct tool_progress progress; /* first: they have one opaque pointer */
  unsigned listed;               /* findings that were printed */
};

static void
print_finding (void *opaque, enum check_kind kind, const char *text)
{
  struct listing *l = opaque;

  l->listed++;
  fprintf (stderr, "%s: %s\n",
           kind == CHECK_LEAK ? "leak" :
           kind == CHECK_NO_ANSWER ? "unchecked" : "error", text);
}

static const char *
mode_name (enum repair_mode mode)
{
  return mode == REPAIR_ALL ? "all" : "leaks";
}

/* By how much the number has decreased, if it has. */
static uint64_t
fixed (uint64_t before, uint64_t after)
{
  return before > after ? before - after : 0;
}

static void
print_json (const struct tool_options *o, const char *format,
            const struct repair_report *r)
{
  const struct check_report *c = &r->after;

  json_open (NULL, '{');
  json_string ("filename", o->file);
  json_string ("format", format);
  json_number ("check-errors", c->check_errors);
  json_number ("corruptions", c->corruptions);
  json_number ("leaks", c->leaks);
  if (o->repair) {
    json_number ("corruptions-fixed",
                 fixed (r->before.corruptions, c->corruptions));
    json_number ("leaks-fixed", fixed (r->before.leaks, c->leaks));
    if (r->why_not != NULL)
      json_string ("not-repaired", r->why_not);
  }
  json_number ("image-end-offset", c->image_end);
  json_number ("total-clusters", c->total_clusters);
  json_number ("allocated-clusters", c->allocated_clusters);
  json_number ("fragmented-clusters", c->fragmented_clusters);
  json_number ("compressed-clusters", c->compressed_clusters);
  json_bool ("dirty", c->dirty);
  json_bool ("corrupt", c->corrupt);
  json_close ('}');
}

static void
print_counts (const char *when, const struct check_report *c)
{
  printf ("%s%" PRIu64 " errors, %" PRIu64 " leaked clusters", when,
          c->corruptions, c->leaks);
  if (c->check_errors > 0)
    printf (", %" PRIu64 " refcounts that can't be read", c->check_errors);
  putchar ('\n');
}

static void
print_human (const struct tool_options *o, const struct repair_report *r)
{
  const struct check_report *c = &r->after;

  if (o->repair)
    print_counts ("before:  ", &r->before);
  print_counts (o->repair ? "now:     " : "found:   ", c);
  if (r->why_not != NULL)
    printf ("not repaired: %s\n", r->why_not);
  if (c->dirty || c->corrupt)
    printf ("marked:  %s%s%s\n", c->dirty ? "dirty" : "",
            c->dirty && c->corrupt ? ", " : "", c->corrupt ? "corrupt" : "");
  printf ("mapped:  %" PRIu64 " of %" PRIu64 " clusters, %" PRIu64
          " fragmented, %" PRIu64 " compressed\n", c->allocated_clusters,
          c->total_clusters, c->fragmented_clusters, c->compressed_clusters);
  printf ("ends at: %" PRIu64 "\n", c->image_end);
}

/* That there may be more findings than were printed. */
static void
tell_limit (const struct listing *l, const struct check_options *options,
            const struct check_report *c)
{
  const unsigned most = options->messages < CHECK_MAX_MESSAGES
    ? options->messages : CHECK_MAX_MESSAGES;

  if (most > 0 && l->listed >= most &&
      c->corruptions + c->leaks + c->check_errors > most)
    fprintf (stderr, "no more than %u findings are listed%s\n", most,
             most < CHECK_MAX_MESSAGES ? ": see --messages" : "");
}

static int
run (const struct tool_options *o, struct storage *s, struct repair_report *r,
     const char **name)
{
  const struct format_ops *format =
    format_recognize (all_formats, &qcow2_format, s);
  struct listing l = { .progress.wanted = o->progress };
  const struct check_options options = {
    .messages = o->quiet ? 0 : o->messages,
    .found = print_finding,
    .progress = tool_progress,
    .opaque = &l,
  };
  int ret;

  if (format == NULL || tool_check_format (o, format->name) == -1)
    return -1;
  *name = format->name;
  *r = (struct repair_report) { 0 };
  if (format == &qed_format)
    ret = o->repair ? qed_repair_storage (s, o->mode, &options, r)
      : qed_check_storage (s, &options, &r->after);
  else
    ret = o->repair ? repair_storage (s, o->mode, &options, r)
      : check_storage (s, &options, &r->after);
  if (ret == 0)
    tell_limit (&l, &options, o->repair ? &r->before : &r->after);
  return ret;
}

int
tool_check (const struct tool_options *o)
{
  struct storage *s = tool_open (o, o->repair);
  const char *format;
  struct repair_report r;
  int ret;

  if (s == NULL)
    return tool_failed ();
  ret = run (o, s, &r, &format);
  storage_close (s);
  if (ret == -1)
    return tool_failed ();
  if (o->quiet)
    ;
  else if (o->json)
    print_json (o, format, &r);
  else
    print_human (o, &r);
  if (o->repair && r.why_not != NULL) {
    char name[1024];

    fprintf (stderr, "%s: --repair=%s left damage: %s\n",
             error_printable (name, sizeof name, o->file), mode_name (o->mode),
             r.why_not);
  }
  return r.after.check_errors > 0 ? TOOL_FAILED
    : r.after.corruptions > 0 ? TOOL_CORRUPT
    : r.after.leaks > 0 ? TOOL_LEAKS : TOOL_OK;
}
