/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "formats.h"
#include "qcow2/qcow2.h"
#include "storage/open.h"
#include "tool.h"

#define NAME "nbdkit-qcow2-tool"

static const char usage[] =
  "Usage: " NAME " COMMAND [OPTION...] IMAGE\n"
  "\n"
  "  check    find what is wrong with an image, and repair it\n"
  "  info     print its header, snapshots, bitmaps and backing files\n"
  "  map      print what is where in it\n"
  "  snapshot list, make, apply and delete internal snapshots\n"
  "  resize   give its disk another size\n"
  "  increment\n"
  "           make an image of what an NBD export says has changed\n"
  "\n"
  "      --output=human|json  how to print that (default: human)\n"
  "  -U, --force-share        even if another process writes the image\n"
  "  -q, --quiet              check: print errors of this program only\n"
  "  -f qcow2|qed             the format, which is recognized without this\n"
  "  -r, --repair=leaks|all   check: repair the image\n"
  "      --messages=N         check: print at most N findings (100)\n"
  "  -p, --progress           check: print how far it is\n"
  "      --follow=none|beneath|any\n"
  "                           info, map: which backing files and external\n"
  "                           data files to open (none)\n"
  "      --data-file=PATH     info, map: the image's external data file\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           info, map: the format of the backing file; again\n"
  "                           for each below it\n"
  "      --help, --version\n"
  "\n"
  NAME " help COMMAND tells more of each.\n"
  "\n"
  "check exits with 0 if all is well, 1 if it could not be completed, 2 if\n"
  "there are errors, 3 if there are only leaks.\n";

static void
print_note (const char *text)
{
  fprintf (stderr, NAME ": note: %s\n", text);
}

static const char check_usage[] =
  "Usage: " NAME " check [-r leaks|all] [OPTION...] IMAGE\n"
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

static const char info_usage[] =
  "Usage: " NAME " info [OPTION...] IMAGE\n"
  "\n"
  "Prints the header, snapshots, bitmaps and the names of the backing file and\n"
  "the external data file.\n"
  "\n"
  "      --follow=beneath     the backing files, too, as far as they are in\n"
  "                           the image's directory or below it\n"
  "      --follow=any         the backing files, wherever they are\n"
  "      --data-file=PATH     for --follow: the image's external data file\n"
  "      --output=human|json  how to print that (human)\n"
  "  -U, --force-share        even if another process writes the image\n";

static const char map_usage[] =
  "Usage: " NAME " map [OPTION...] IMAGE\n"
  "\n"
  "Prints which parts of the disk are data or zeros, and where they are.\n"
  "\n"
  "      --follow=beneath     look into backing files, as far as they are in\n"
  "                           the image's directory or below it\n"
  "      --follow=any         look into backing files, wherever they are\n"
  "      --data-file=PATH     this is the image's external data file\n"
  "      --output=human|json  how to print that (human)\n"
  "  -U, --force-share        even if another process writes the image\n";

static const char snapshot_usage[] =
  "Usage: " NAME " snapshot [-l | -c NAME | -a NAME | -d NAME] IMAGE\n"
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

static const char resize_usage[] =
  "Usage: " NAME " resize [--shrink] [OPTION...] IMAGE [+|-]SIZE\n"
  "\n"
  "Gives the disk of an image that nobody serves another size: SIZE bytes, or so\n"
  "many more (+) or fewer (-); suffixes k, M, G, T, P and E are powers of 1024.\n"
  "\n"
  "      --shrink             what is beyond a smaller size may be lost\n"
  "      --follow=none|beneath|any\n"
  "                           for growing an image with a backing file, whose\n"
  "                           size must be known (none)\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           the format of that; again for each below it\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "After a power cut the size is as before or as after, and clusters may be\n"
  "leaked.  Images that are marked as dirty or corrupt want a repair first.\n";

static const char increment_usage[] =
  "Usage: " NAME " increment URI NEW --backing=FULL [OPTION...]\n"
  "\n"
  "Makes an image of what has changed since a full copy was made, as the extents\n"
  "of an NBD export tell (bitmap/NAME or changed/SNAPSHOT of the plugin).\n"
  "\n"
  "      --backing=FULL       the copy, as the image is to record it: a path\n"
  "                           from its own directory\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           its format (qcow2); again for each below it\n"
  "      --follow=none|beneath|any\n"
  "                           which backing files of that to open (none)\n"
  "      --compress=zlib|zstd store compressed clusters\n"
  "      --resized            the copy's disk may have another size\n"
  "  -p, --progress           print how far it is, on standard error\n"
  "\n"
  "The image gets its name when it is complete and durable.\n";

void
tool_print_name (const char *name)
{
  char one[ERROR_ESCAPE_BYTES];

  while (*name != '\0') {
    name += error_escape (one, name);
    fputs (one, stdout);
  }
}

int
tool_failed (void)
{
  fflush (stdout);
  fprintf (stderr, NAME ": %s\n", error_message ());
  return TOOL_FAILED;
}

int
tool_check_format (const struct tool_options *o, const char *format)
{
  if (o->format == NULL || strcmp (o->format, format) == 0)
    return 0;
  error_set (EINVAL, "%s: it is a %s image, and -f says %s", o->file, format,
             o->format);
  return -1;
}

int
tool_check_qcow2 (const struct tool_options *o, struct storage *s)
{
  const struct format_ops *format =
    format_recognize (all_formats, &qcow2_format, s);
  char name[1024];

  if (format == NULL || tool_check_format (o, format->name) == -1)
    return -1;
  if (format == &qcow2_format)
    return 0;
  error_set (ENOTSUP, "%s: it is a %s image, and this is for qcow2 only",
             error_printable (name, sizeof name, o->file), format->name);
  return -1;
}

struct storage *
tool_open (const struct tool_options *o, bool write)
{
  const unsigned uses = STORAGE_CONSISTENT_READ;
  const unsigned writes = STORAGE_WRITE | STORAGE_RESIZE;
  const struct nbd_options nbd = NBD_DEFAULTS;
  struct storage *s = storage_open (o->file, &nbd);
  int r;

  if (s == NULL)
    return NULL;
  r = write ? storage_make_writable (s, uses | writes, writes)
    : storage_lock (s, uses, o->force_share ? 0 : writes);
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
  if (strcmp (value, "raw") != 0 && strcmp (value, "qcow2") != 0 &&
      strcmp (value, "qed") != 0)
    wrong ("--backing-format must be ", "raw, qcow2 or qed");
  if (o->nr_formats == CHAIN_MAX_DEPTH - 1)
    wrong ("--backing-format was given more often than ",
           "any backing chain is deep");
  o->formats[o->nr_formats++] = value;
}

static void
parse_compress (struct tool_options *o, const char *value)
{
  if (strcmp (value, "zlib") != 0 && strcmp (value, "zstd") != 0)
    wrong ("--compress must be ", "zlib or zstd");
  o->compress = value;
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

static void
parse_snapshot (struct tool_options *o, enum tool_snapshot action)
{
  if (o->acts)
    wrong ("-l, -c, -a and -d ", "exclude each other");
  o->acts = true;
  o->snapshot = action;
  o->name = optarg;
}

enum {
  OPT_OUTPUT = 256,
  OPT_MESSAGES,
  OPT_FOLLOW,
  OPT_BACKING_FORMAT,
  OPT_DATA_FILE,
  OPT_SHRINK,
  OPT_BACKING,
  OPT_COMPRESS,
  OPT_RESIZED,
  OPT_HELP,
  OPT_VERSION,
};

static const struct option long_options[] = {
  { "output", required_argument, NULL, OPT_OUTPUT },
  { "force-share", no_argument, NULL, 'U' },
  { "repair", required_argument, NULL, 'r' },
  { "quiet", no_argument, NULL, 'q' },
  { "messages", required_argument, NULL, OPT_MESSAGES },
  { "progress", no_argument, NULL, 'p' },
  { "follow", required_argument, NULL, OPT_FOLLOW },
  { "backing-format", required_argument, NULL, OPT_BACKING_FORMAT },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  { "shrink", no_argument, NULL, OPT_SHRINK },
  { "backing", required_argument, NULL, OPT_BACKING },
  { "compress", required_argument, NULL, OPT_COMPRESS },
  { "resized", no_argument, NULL, OPT_RESIZED },
  { "list", no_argument, NULL, 'l' },
  { "create", required_argument, NULL, 'c' },
  { "apply", required_argument, NULL, 'a' },
  { "delete", required_argument, NULL, 'd' },
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
  case 'q':
    o->quiet = true;
    break;
  case 'f':
    if (strcmp (optarg, "qcow2") != 0 && strcmp (optarg, "qed") != 0)
      wrong ("-f must be qcow2 or qed: ", "other formats are not known here");
    o->format = optarg;
    break;
  case OPT_FOLLOW:
    parse_follow (o, optarg);
    break;
  case OPT_BACKING_FORMAT:
    parse_backing_format (o, optarg);
    break;
  case OPT_DATA_FILE:
    o->data_file = optarg;
    break;
  case OPT_SHRINK:
    o->shrink = true;
    break;
  case OPT_BACKING:
    o->backing = optarg;
    break;
  case OPT_COMPRESS:
    parse_compress (o, optarg);
    break;
  case OPT_RESIZED:
    o->resized = true;
    break;
  case 'l':
    parse_snapshot (o, SNAPSHOT_LIST);
    break;
  case 'c':
    parse_snapshot (o, SNAPSHOT_CREATE);
    break;
  case 'a':
    parse_snapshot (o, SNAPSHOT_APPLY);
    break;
  case 'd':
    parse_snapshot (o, SNAPSHOT_DELETE);
    break;
  case OPT_HELP:
    o->help = true;
    break;
  case OPT_VERSION:
    puts (PACKAGE_STRING);
    exit (TOOL_OK);
  default:
    exit (TOOL_FAILED);
  }
}

/* Options that a command does not use are errors. */
static void
check_options_of (const char *command, const struct tool_options *o)
{
  const bool check = strcmp (command, "check") == 0;
  const bool snapshot = strcmp (command, "snapshot") == 0;
  const bool resize = strcmp (command, "resize") == 0;
  const bool increment = strcmp (command, "increment") == 0;
  const bool one_file = check || snapshot;

  if (!check && !increment && (o->repair || o->progress))
    wrong (command, " takes neither --repair nor --progress");
  if (increment && o->repair)
    wrong (command, " does not take --repair");
  if (!increment && (o->backing != NULL || o->compress != NULL || o->resized))
    wrong (command, " takes none of --backing, --compress and --resized");
  if (increment && o->format != NULL)
    wrong (command, " does not take -f: it makes qcow2 images");
  if (!snapshot && o->acts)
    wrong (command, " takes none of -l, -c, -a and -d");
  if (one_file && o->follow != FOLLOW_NONE)
    wrong (command, " does not take --follow: it looks at one file");
  if (one_file && o->nr_formats > 0)
    wrong (command, " does not take --backing-format: it looks at one file");
  if ((one_file || resize || increment) && o->data_file != NULL)
    wrong (command, " does not take --data-file");
  if (!resize && o->shrink)
    wrong (command, " does not take --shrink");
  if ((resize || increment) && o->force_share)
    wrong (command, " does not take --force-share");
  if ((resize || increment) && o->json)
    wrong (command, " does not take --output=json");
  if (o->repair && o->force_share)
    wrong ("--repair and --force-share ", "exclude each other");
  if (snapshot && o->snapshot != SNAPSHOT_LIST && o->force_share)
    wrong ("snapshot takes --force-share ", "only with -l");
  if (snapshot && o->snapshot != SNAPSHOT_LIST && o->json)
    wrong ("snapshot takes --output=json ", "only with -l");
}

static const struct command {
  const char *name;
  int (*run) (const struct tool_options *o);
  const char *usage;
} commands[] = {
  { "check", tool_check, check_usage },
  { "info", tool_info, info_usage },
  { "map", tool_map, map_usage },
  { "snapshot", tool_snapshot, snapshot_usage },
  { "resize", tool_resize, resize_usage },
  { "increment", tool_increment, increment_usage },
};

static const struct command *
find_command (const char *name)
{
  unsigned i;

  for (i = 0; i < sizeof commands / sizeof commands[0]; ++i)
    if (strcmp (name, commands[i].name) == 0)
      return &commands[i];
  fprintf (stderr, NAME ": no such command '%s'%s\nTry `" NAME " --help'.\n",
           name, strcmp (name, "create") == 0
           ? ": nbdkit qcow2 IMAGE create=true size=SIZE makes an image" : "");
  exit (TOOL_FAILED);
}

static int
help (int argc, char *argv[])
{
  if (argc > 1)
    wrong ("help takes ", "one command");
  fputs (argc == 0 ? usage : find_command (argv[0])->usage, stdout);
  return TOOL_OK;
}

static int
run_increment (int argc, char *argv[], struct tool_options *o)
{
  if (argc != 3)
    wrong (argv[0], ": a URI and a new image are wanted");
  if (o->backing == NULL)
    wrong (argv[0], ": --backing is wanted: a full copy");
  o->uri = argv[1];
  o->file = argv[2];
  check_options_of (argv[0], o);
  return tool_increment (o);
}

static int
run (int argc, char *argv[], struct tool_options *o)
{
  const struct command *c;

  if (o->help)
    return help (argc > 0, argv);
  if (argc == 0)
    wrong ("a command and an image are ", "wanted");
  if (strcmp (argv[0], "help") == 0)
    return help (argc - 1, argv + 1);
  c = find_command (argv[0]);
  if (argc == 1)
    wrong (c->name, ": an image is wanted");
  if (c->run == tool_resize && o->size == NULL)
    wrong (c->name, ": a size is wanted");
  if (c->run == tool_increment)
    return run_increment (argc, argv, o);
  if (argc > 2)
    wrong (c->name, ": one image at a time");
  o->file = argv[1];
  check_options_of (c->name, o);
  return c->run (o);
}

/* The + ends them at the command. */
static const char short_options[] = "+Ur:pqf:lc:a:d:";

/* Whether an argument says by how much: it looks like an option. */
static bool
is_difference (const char *arg)
{
  return (arg[0] == '-' || arg[0] == '+') && arg[1] >= '0' && arg[1] <= '9';
}

/* Take the size that `resize' is to give out of the arguments: +N or -N, or else
 * the last that is no option.
 */
static void
take_size (struct tool_options *o, int *argc, char *argv[])
{
  int command, size = 0, nr = 0, i;

  opterr = 0;
  while (getopt_long (*argc, argv, short_options, long_options, NULL) != -1)
    ;
  command = optind;
  opterr = 1;
  optind = 0; /* begin again */
  if (command >= *argc || strcmp (argv[command], "resize") != 0)
    return;
  for (i = command + 1; i < *argc; ++i) {
    if (argv[i][0] != '-' || is_difference (argv[i])) {
      size = i;
      nr++;
    }
    if (is_difference (argv[i]))
      break;
  }
  if (nr < 2 && (nr == 0 || !is_difference (argv[size])))
    return;
  o->size = argv[size];
  memmove (argv + size, argv + size + 1, (*argc - size) * sizeof *argv);
  --*argc;
}

int
main (int argc, char *argv[])
{
  struct tool_options o = { .messages = 100 };
  int option, ret;

  debug_hooks.note = print_note;
  /* Exceeding the limit on file sizes makes the write fail instead. */
  signal (SIGXFSZ, SIG_IGN);
  advice_choose (tool_advice);
  take_size (&o, &argc, argv);
  /* Without the +: options may come last. */
  while ((option = getopt_long (argc, argv, short_options + 1, long_options,
                                NULL)) != -1)
    parse_option (&o, option);
  ret = run (argc - optind, argv + optind, &o);
  if (fflush (stdout) != 0 || ferror (stdout))
    wrong ("standard output: ", strerror (errno));
  return ret;
}
