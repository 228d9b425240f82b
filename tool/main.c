/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/advice.h"
#include "base/error.h"
#include "formats.h"
#include "qcow2/qcow2.h"
#include "storage/open.h"
#include "tool.h"

static const char usage[] =
  "Usage: " TOOL_NAME " COMMAND [OPTION...] IMAGE\n"
  "\n"
  "  check    find what is wrong with an image, and repair it\n"
  "  info     print its header, snapshots, bitmaps and backing files\n"
  "  map      print what is where in it\n"
  "  measure  print how large a new image will be\n"
  "  snapshot list, make, apply and delete internal snapshots\n"
  "  resize   give its disk another size\n"
  "  bitmap   list, make, change and remove persistent bitmaps\n"
  "  commit   copy what it has into its backing file\n"
  "  compact  make its file as small as its clusters\n"
  "  rebase   give it another backing file\n"
  "  amend    change its version and features\n"
  "  increment\n"
  "           make an image of what an NBD export says has changed\n"
  "\n"
  "      --output=human|json  how to print that (default: human)\n"
  "  -U, --force-share        even if another process writes the image\n"
  "  -q, --quiet              check: print errors of this program only\n"
  "  -f qcow2|qed             the format, which is recognized without this\n"
  "  -r, --repair=leaks|all   check: repair the image\n"
  "      --messages=N         check: print at most N findings (100)\n"
  "  -p, --progress           check, commit, compact, rebase: print how far\n"
  "                           it is\n"
  "      --follow=none|beneath|any\n"
  "                           info, map: which backing files and external\n"
  "                           data files to open (none)\n"
  "      --data-file=PATH     info, map: the image's external data file\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           info, map: the format of the backing file; again\n"
  "                           for each below it\n"
  "      --help, --version\n"
  "\n"
  TOOL_NAME " help COMMAND tells more of each.\n"
  "\n"
  "New images, and copies of disks, are made by nbdkit and its plugin:\n"
  "    nbdkit qcow2 NEW create=true size=SIZE\n"
  "    nbdkit -r -U - qcow2 IMAGE --run 'nbdcopy \"$uri\" disk.raw'\n"
  "\n"
  "check exits with 0 if all is well, 1 if it could not be completed, 2 if\n"
  "there are errors, 3 if there are only leaks.\n";

static void
print_note (const char *text)
{
  fprintf (stderr, TOOL_NAME ": note: %s\n", text);
}

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
  fprintf (stderr, TOOL_NAME ": %s\n", error_message ());
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

/* takes: the options, besides --quiet and -f, by their names in options.c; and raw
 * if that is a format for -f.
 */
static const struct command {
  const char *name;
  int (*run) (const struct tool_options *o);
  const char *usage;
  const char *takes;
} commands[] = {
  { "check", tool_check, tool_check_usage,
    "--output --force-share --repair --messages --progress" },
  { "info", tool_info, tool_info_usage,
    "--output --force-share --follow --backing-format --data-file" },
  { "map", tool_map, tool_map_usage,
    "--output --force-share --follow --backing-format --data-file" },
  { "measure", tool_measure, tool_measure_usage,
    "--output --force-share --follow --backing-format --data-file --size "
    "--snapshot -o -O raw" },
  { "snapshot", tool_snapshot, tool_snapshot_usage,
    "--output --force-share --list --create --apply --delete" },
  { "resize", tool_resize, tool_resize_usage,
    "--shrink --follow --backing-format --preallocation --passphrase "
    "--backing-passphrase" },
  { "bitmap", tool_bitmap, tool_bitmap_usage,
    "--output --force-share --list --dump --add --remove --clear --enable "
    "--disable --merge --granularity -b -F" },
  { "commit", tool_commit, tool_commit_usage,
    "-b -d --follow --backing-format --progress --passphrase "
    "--backing-passphrase" },
  { "compact", tool_compact, tool_compact_usage, "--progress --passphrase" },
  { "rebase", tool_rebase, tool_rebase_usage,
    "-b -F -u --follow --backing-format --progress --passphrase "
    "--backing-passphrase" },
  { "amend", tool_amend, tool_amend_usage, "-o" },
  { "increment", tool_increment, tool_increment_usage,
    "--backing --backing-format --follow --compress --resized --progress" },
};

static const struct command *
look_for_command (const char *name)
{
  unsigned i;

  for (i = 0; i < sizeof commands / sizeof commands[0]; ++i)
    if (strcmp (name, commands[i].name) == 0)
      return &commands[i];
  return NULL;
}

bool
tool_is_command (const char *name)
{
  return look_for_command (name) != NULL;
}

static const struct command *
find_command (const char *name)
{
  const struct command *c = look_for_command (name);
  const char *other = "";

  if (c != NULL)
    return c;
  if (strcmp (name, "create") == 0)
    other = ": nbdkit qcow2 IMAGE create=true size=SIZE makes an image";
  else if (strcmp (name, "convert") == 0)
    other = ": nbdcopy copies from and to what nbdkit serves";
  fprintf (stderr, TOOL_NAME ": no such command '%s'%s\nTry `" TOOL_NAME " --help'.\n",
           name, other);
  exit (TOOL_FAILED);
}

/* Advice is to do what the command can. */
static void
choose_advice (const struct command *c)
{
  static const char *words[ADVICE_NR];

  memcpy (words, tool_advice, sizeof words);
  if (strstr (c->takes, "--force-share") == NULL)
    words[ADVICE_SHARE] = NULL;
  advice_choose (words);
}

static int
help (int argc, char *argv[])
{
  if (argc > 1)
    tool_wrong ("help takes ", "one command");
  fputs (argc == 0 ? usage : find_command (argv[0])->usage, stdout);
  return TOOL_OK;
}

static void
take_uri (const struct command *c, int argc, char *argv[],
          struct tool_options *o)
{
  if (argc != 2)
    tool_wrong (c->name, ": a URI and a new image are wanted");
  if (o->base == NULL)
    tool_wrong (c->name, ": --backing is wanted: a full copy");
  o->uri = argv[0];
  o->file = argv[1];
}

/* Whether the other arguments, image included, are as many as the command wants.
 */
static void
check_arguments (const struct command *c, int argc, char *argv[],
                 struct tool_options *o)
{
  if (c->run == tool_increment) {
    take_uri (c, argc, argv, o);
    return;
  }
  if (argc == 0 && c->run == tool_measure) /* a size will do */
    return;
  if (argc == 0)
    tool_wrong (c->name, ": an image is wanted");
  if (c->run == tool_resize && o->size == NULL)
    tool_wrong (c->name, ": a size is wanted");
  if (argc == 2 && c->run == tool_bitmap)
    o->name = argv[1];
  else if (argc > 1)
    tool_wrong (c->name, ": one image at a time");
  o->file = argv[0];
}

static int
run (int argc, char *argv[], struct tool_options *o)
{
  const struct command *c;
  char takes[256];

  if (o->help)
    return help (argc > 0, argv);
  if (argc == 0)
    tool_wrong ("a command and an image are ", "wanted");
  if (strcmp (argv[0], "help") == 0)
    return help (argc - 1, argv + 1);
  c = find_command (argv[0]);
  check_arguments (c, argc - 1, argv + 1, o);
  snprintf (takes, sizeof takes, "--quiet -f %s", c->takes);
  tool_check_options (o, c->name, takes);
  choose_advice (c);
  return c->run (o);
}

int
main (int argc, char *argv[])
{
  struct tool_options o = { .messages = 100 };
  int ret;

  debug_hooks.note = print_note;
  /* Exceeding the limit on file sizes makes the write fail instead. */
  signal (SIGXFSZ, SIG_IGN);
  argc = tool_parse (&o, argc, argv);
  ret = run (argc - optind, argv + optind, &o);
  if (fflush (stdout) != 0 || ferror (stdout))
    tool_wrong ("standard output: ", strerror (errno));
  return ret;
}
