/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "base/error.h"
#include "formats.h"
#include "json.h"
#include "manage/snapshots.h"
#include "qcow2/qcow2.h"
#include "qcow2/snapshot.h"
#include "tool.h"

const char tool_snapshot_usage[] =
  "Usage: " TOOL_NAME " snapshot [-l | -c NAME | -a NAME | -d NAME] IMAGE\n"
  "\n"
  "Lists the internal snapshots of an image that nobody serves, or changes them.\n"
  "\n"
  "  -l, --list               list them (the default)\n"
  "  -c, --create=NAME        make one of the disk as it is now\n"
  "  -a, --apply=NAME         have the disk be as it was, in content and size;\n"
  "                           NAME is an ID, or else a name\n"
  "  -d, --delete=NAME        delete the first one of that name\n"
  "      --output=human|json  how to print the list (human)\n"
  "  -U, --force-share        -l: even if another process writes the image\n"
  "\n"
  "After a power cut the image is as before or as after, and clusters may be\n"
  "leaked.  Images that are marked as dirty or corrupt want a repair first.\n";

static void
print_json (const struct snapshot *sn)
{
  json_open (NULL, '{');
  json_string ("id", sn->id);
  json_string ("name", sn->name);
  json_number ("vm-state-size", sn->vm_state_size);
  json_number ("date-sec", sn->date_sec);
  json_number ("date-nsec", sn->date_nsec);
  json_number ("vm-clock-nsec", sn->vm_clock_nsec);
  if (sn->icount != UINT64_MAX)
    json_number ("icount", sn->icount);
  json_number ("virtual-size", sn->disk_size);
  json_close ('}');
}

/* In units of 1024, to three digits, as qemu-img has it. */
static void
format_size (uint64_t bytes, char *buf, size_t len)
{
  static const char *const units[] = {
    "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"
  };
  double n = bytes;
  unsigned i;

  for (i = 0; n >= 999.5 && i < sizeof units / sizeof units[0] - 1; ++i)
    n /= 1024;
  snprintf (buf, len, "%.3g %s", n, units[i]);
}

/* As wide as a column, at least. */
static void
print_column (const char *name, int width)
{
  char printable[4096];
  const char *text = error_printable (printable, sizeof printable, name);

  printf ("%-*s ", width, text);
}

static void
print_human (const struct snapshot *sn)
{
  const time_t t = sn->date_sec;
  const uint64_t s = sn->vm_clock_nsec / 1000000000;
  char size[32], date[32] = "", clock[64], icount[32] = "";
  struct tm tm;

  format_size (sn->vm_state_size, size, sizeof size);
  if (localtime_r (&t, &tm) != NULL)
    strftime (date, sizeof date, "%F %T", &tm);
  snprintf (clock, sizeof clock, "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64
            ".%03" PRIu64, s / 3600, s / 60 % 60, s % 60,
            sn->vm_clock_nsec / 1000000 % 1000);
  if (sn->icount != UINT64_MAX)
    snprintf (icount, sizeof icount, "%" PRIu64, sn->icount);
  print_column (sn->id, 9);
  print_column (sn->name, 16);
  printf ("%8s%20s%13s%11s\n", size, date, clock, icount);
}

static void
print_list (const struct tool_options *o, const struct snapshots *t)
{
  uint32_t i;

  if (o->json)
    json_open (NULL, '[');
  else if (t->nr > 0)
    printf ("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG",
            "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  for (i = 0; i < t->nr; ++i) {
    if (o->json)
      print_json (&t->snapshot[i]);
    else
      print_human (&t->snapshot[i]);
  }
  if (o->json)
    json_close (']');
}

static int
list (const struct tool_options *o, struct storage *s)
{
  struct snapshots t;
  struct header h;

  if (qcow2_read_header (s, &h) == -1 || snapshots_read (&t, &h, s) == -1)
    return -1;
  print_list (o, &t);
  snapshots_free (&t);
  return 0;
}

static int
run (const struct tool_options *o, struct storage *s)
{
  struct timespec now;

  if (tool_check_qcow2 (o, s) == -1)
    return -1;
  switch (o->snapshot) {
  case SNAPSHOT_LIST:
    return list (o, s);
  case SNAPSHOT_CREATE:
    clock_gettime (CLOCK_REALTIME, &now);
    return snapshot_create (s, o->name, &now);
  case SNAPSHOT_APPLY:
    return snapshot_apply (s, o->name);
  case SNAPSHOT_DELETE:
    return snapshot_delete (s, o->name);
  }
  return -1;
}

int
tool_snapshot (const struct tool_options *o)
{
  struct storage *s = tool_open (o, o->snapshot != SNAPSHOT_LIST);
  int r;

  if (s == NULL)
    return tool_failed ();
  r = run (o, s);
  storage_close (s);
  return r == -1 ? tool_failed () : TOOL_OK;
}
