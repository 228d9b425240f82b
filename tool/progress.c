/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>

#include "tool.h"

void
tool_show_progress (struct tool_progress *p, uint64_t done, uint64_t total)
{
  const unsigned percent = total > 0 ? (double) done / total * 100 : 100;

  if (!p->wanted || (p->shown && percent == p->percent))
    return;
  p->shown = true;
  p->percent = percent;
  fprintf (stderr, "\r%3u%%%s", percent, done == total ? "\n" : "");
}

bool
tool_progress (void *opaque, uint64_t done, uint64_t total)
{
  tool_show_progress (opaque, done, total);
  return !tool_is_stopped ();
}
