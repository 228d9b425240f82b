/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "tool.h"

#define NAME "nbdkit-qcow2-tool"

static const char usage[] =
  "Usage: " NAME " COMMAND [OPTION...] IMAGE\n"
  "\n"
  "  check    find what is wrong with a qcow2 image, and repair it\n"
  "  info     print its header, snapshots, bitmaps and backing files\n"
  "  map      print what is where in it\n"
  "\n"
  "      --output=human|json  how to print that (default: human)\n"
  "  -U, --force-share        even if another process writes the image\n"
  "  -r, --repair=leaks|all   check: repair the image\n"
  "      --messages=N         check: print at most N findings (100)\n"
  "  -p, --progress           check: print how far it is\n"
  "      --follow=none|beneath|any\n"
  "                           info, map: which backing files to open (none)\n"
  "      --backing-format=raw|qcow2\n"
  "                           info, map: the format of the backing file; again\n"
  "                           for each below it\n"
  "      --help, --version\n"
  "\n"
  "check exits with 0 if all is well, 1 if it could not be completed, 2 if\n"
  "there are errors, 3 if there are only leaks.\n";

int
tool_failed (void)
{
  fflush (stdout);
  fprintf (stderr, NAME ": %s\n", error_message ());
  return TOOL_FAILED;
}

struct storage *
tool_open (const struct tool_options *o, bool write)
{
  const unsigned uses = STORAGE_CONSISTENT_READ;
  const unsigned writes = STORAGE_WRITE | STORAGE_RESIZE;
  struct storage *s = storage_file_open (AT_FDCWD, o->file, 0, o->file);
  int r;

  if (s == NULL)
    return NULL;
  r = write ? storage_file_make_writable (s, uses | writes, writes)
    : storage_file_lock (s, uses, o->force_share ? 0 : writes);
  if (r == 0)
    return s;
  storage_close (s);
  return NULL;
}

static void __attribute__ ((__noreturn__))
wrong (const char *what, const char *accepted)
{
  fprintf (stderr, NAME ": %s%s\nTry `" NAME " --help'.\n", what, accepted);
  exit (TOOL_FAILED);
}

static void
parse_output (struct tool_options *o, const char *value)
{
  if (strcmp (value, "json") != 0 && strcmp (value, "human") != 0)
    wrong ("--output must be ", "human or json");
  o->json = strcmp (value, "json") == 0;
}

static void
parse_repair (struct tool_options *o, const char *value)
{
  if (strcmp (value, "leaks") != 0 && strcmp (value, "all") != 0)
    wrong ("--repair must be ", "leaks or all");
  o->repair = true;
  o->mode = strcmp (value, "all") == 0 ? REPAIR_ALL : REPAIR_LEAKS;
}

static void
parse_follow (struct tool_options *o, const char *value)
{
  if (strcmp (value, "none") == 0)
    o->follow = FOLLOW_NONE;
  else if (strcmp (value, "beneath") == 0)
    o->follow = FOLLOW_BENEATH;
  else if (strcmp (value, "any") == 0)
    o->follow = FOLLOW_ANY;
  else
    wrong ("--follow must be ", "none, beneath or any");
}

static void
parse_backing_format (struct tool_options *o, const char *value)
{
  if (strcmp (value, "raw") != 0 && strcmp (value, "qcow2") != 0)
    wrong ("--backing-format must be ", "raw or qcow2");
  if (o->nr_formats == CHAIN_MAX_DEPTH - 1)
    wrong ("--backing-format was given more often than ",
           "any backing chain is deep");
  o->formats[o->nr_formats++] = value;
}

static void
parse_messages (struct tool_options *o, const char *value)
{
  unsigned long n;
  char *end;

  errno = 0;
  n = strtoul (value, &end, 10);
  if (errno != 0 || *end != '\0' || end == value || *value == '-' ||
      n > CHECK_MAX_MESSAGES)
    wrong ("--messages must be ", "a number from 0 to 1000");
  o->messages = n;
}

enum {
  OPT_OUTPUT = 256,
  OPT_MESSAGES,
  OPT_FOLLOW,
  OPT_BACKING_FORMAT,
  OPT_HELP,
  OPT_VERSION,
};

static const struct option long_options[] = {
  { "output", required_argument, NULL, OPT_OUTPUT },
  { "force-share", no_argument, NULL, 'U' },
  { "repair", required_argument, NULL, 'r' },
  { "messages", required_argument, NULL, OPT_MESSAGES },
  { "progress", no_argument, NULL, 'p' },
  { "follow", required_argument, NULL, OPT_FOLLOW },
  { "backing-format", required_argument, NULL, OPT_BACKING_FORMAT },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, OPT_VERSION },
  { NULL, 0, NULL, 0 },
};

static void
parse_option (struct tool_options *o, int option)
{
  switch (option) {
  case OPT_OUTPUT:
    parse_output (o, optarg);
    break;
  case 'U':
    o->force_share = true;
    break;
  case 'r':
    parse_repair (o, optarg);
    break;
  case OPT_MESSAGES:
    parse_messages (o, optarg);
    break;
  case 'p':
    o->progress = true;
    break;
  case OPT_FOLLOW:
    parse_follow (o, optarg);
    break;
  case OPT_BACKING_FORMAT:
    parse_backing_format (o, optarg);
    break;
  case OPT_HELP:
    fputs (usage, stdout);
    exit (TOOL_OK);
  case OPT_VERSION:
    puts (PACKAGE_STRING);
    exit (TOOL_OK);
  default:
    exit (TOOL_FAILED);
  }
}

/* Options that a command has no use for are errors. */
static void
check_options_of (const char *command, const struct tool_options *o)
{
  const bool check = strcmp (command, "check") == 0;

  if (!check && (o->repair || o->progress))
    wrong (command, " takes neither --repair nor --progress");
  if (check && o->follow != FOLLOW_NONE)
    wrong (command, " does not take --follow: it looks at one file");
  if (check && o->nr_formats > 0)
    wrong (command, " does not take --backing-format: it looks at one file");
  if (o->repair && o->force_share)
    wrong ("--repair and --force-share ", "exclude each other");
}

int
main (int argc, char *argv[])
{
  static const struct {
    const char *name;
    int (*run) (const struct tool_options *o);
  } commands[] = {
    { "check", tool_check }, { "info", tool_info }, { "map", tool_map },
  };
  struct tool_options o = { .messages = 100 };
  unsigned i;
  int option, ret;

  while ((option = getopt_long (argc, argv, "Ur:p", long_options, NULL)) != -1)
    parse_option (&o, option);
  if (argc - optind != 2)
    wrong ("a command and an image are ", "wanted");
  o.file = argv[optind + 1];
  for (i = 0; i < sizeof commands / sizeof commands[0]; ++i) {
    if (strcmp (argv[optind], commands[i].name) != 0)
      continue;
    check_options_of (commands[i].name, &o);
    ret = commands[i].run (&o);
    if (fflush (stdout) != 0 || ferror (stdout))
      wrong ("standard output: ", strerror (errno));
    return ret;
  }
  wrong (argv[optind], ": no such command");
}
