/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check/report.h"

#define MESSAGE_BYTES 256

void
check_findings_init (struct check_findings *f,
                     const struct check_options *options)
{
  memset (f, 0, sizeof *f);
  f->options = options;
}

void
check_findings_clear (struct check_findings *f)
{
  unsigned i;

  for (i = 0; i < f->nr; ++i)
    free (f->message[i]);
  free (f->message);
  free (f->kind);
  f->message = NULL;
  f->kind = NULL;
  f->nr = 0;
  memset (&f->report, 0, sizeof f->report);
}

/* Without memory for its message a finding is only counted. */
static void
keep (struct check_findings *f, enum check_kind kind, const char *text)
{
  if (f->message == NULL) {
    f->message = calloc (CHECK_MAX_MESSAGES, sizeof *f->message);
    f->kind = calloc (CHECK_MAX_MESSAGES, sizeof *f->kind);
  }
  if (f->message == NULL || f->kind == NULL)
    return;
  f->message[f->nr] = strdup (text);
  f->kind[f->nr] = kind;
  if (f->message[f->nr] != NULL)
    f->nr++;
}

bool
check_findings_wanted (const struct check_findings *f)
{
  const unsigned said = f->said + f->nr;

  return f->options->found != NULL && said < f->options->messages &&
    said < CHECK_MAX_MESSAGES;
}

void
check_found (struct check_findings *f, enum check_kind kind, uint64_t n,
             const char *fmt, ...)
{
  struct check_report *r = &f->report;
  char text[MESSAGE_BYTES];
  va_list ap;

  r->found[kind] += n;
  if (kind == CHECK_LEAK)
    r->leaks += n;
  else if (kind == CHECK_NO_ANSWER)
    r->check_errors += n;
  else
    r->corruptions += n;
  if (!check_findings_wanted (f))
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  keep (f, kind, text);
}

static void
add (struct check_report *to, const struct check_report *from)
{
  unsigned i;

  to->corruptions += from->corruptions;
  to->leaks += from->leaks;
  to->check_errors += from->check_errors;
  to->total_clusters += from->total_clusters;
  to->allocated_clusters += from->allocated_clusters;
  to->fragmented_clusters += from->fragmented_clusters;
  to->compressed_clusters += from->compressed_clusters;
  if (from->image_end > to->image_end)
    to->image_end = from->image_end;
  for (i = 0; i < CHECK_KINDS; ++i)
    to->found[i] += from->found[i];
  to->blind |= from->blind;
  to->l1_cut |= from->l1_cut;
  to->odd_snapshots += from->odd_snapshots;
  to->bitmaps_damaged |= from->bitmaps_damaged;
  to->windows++;
  if (from->counts_memory > to->counts_memory)
    to->counts_memory = from->counts_memory;
}

void
check_findings_commit (struct check_findings *f, struct check_report *report)
{
  unsigned i;

  add (report, &f->report);
  for (i = 0; i < f->nr; ++i)
    f->options->found (f->options->opaque, f->kind[i], f->message[i]);
  f->said += f->nr;
  check_findings_clear (f);
}
