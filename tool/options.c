/* SPDX-License-Identifier: BSD-3-Clause */

/* Options may be anywhere among the other arguments, as with qemu-img.  Which ones
 * a command takes is in main.c's table of commands, by these names.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* That the arguments are for; NULL: none that there is. */
static const char *command_name;

/* Say where it is told how to do better, and exit. */
static void fail_with_hint (void) __attribute__ ((__noreturn__));
static void
fail_with_hint (void)
{
  if (command_name != NULL)
    fprintf (stderr, "Try `" TOOL_NAME " help %s'.\n", command_name);
  else
    fputs ("Try `" TOOL_NAME " --help'.\n", stderr);
  exit (TOOL_FAILED);
}

void
tool_wrong (const char *what, const char *accepted)
{
  fprintf (stderr, TOOL_NAME ": %s%s\n", what, accepted);
  fail_with_hint ();
}

enum {
  OPT_OUTPUT = 256,
  OPT_MESSAGES,
  OPT_FOLLOW,
  OPT_BACKING_FORMAT,
  OPT_DATA_FILE,
  OPT_SHRINK,
  OPT_PREALLOCATION,
  OPT_KEEP, /* -d without an argument */
  OPT_ADD,
  OPT_REMOVE,
  OPT_CLEAR,
  OPT_ENABLE,
  OPT_DISABLE,
  OPT_MERGE,
  OPT_DUMP,
  OPT_BACKING,
  OPT_COMPRESS,
  OPT_RESIZED,
  OPT_SIZE,
  OPT_PASSPHRASE,
  OPT_BACKING_PASSPHRASE,
  OPT_SNAPSHOT, /* -l with an argument */
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
  { "passphrase", required_argument, NULL, OPT_PASSPHRASE },
  { "backing-passphrase", required_argument, NULL, OPT_BACKING_PASSPHRASE },
  { "shrink", no_argument, NULL, OPT_SHRINK },
  { "preallocation", required_argument, NULL, OPT_PREALLOCATION },
  { "list", no_argument, NULL, 'l' },
  { "create", required_argument, NULL, 'c' },
  { "apply", required_argument, NULL, 'a' },
  { "delete", required_argument, NULL, 'd' },
  { "add", no_argument, NULL, OPT_ADD },
  { "remove", no_argument, NULL, OPT_REMOVE },
  { "clear", no_argument, NULL, OPT_CLEAR },
  { "enable", no_argument, NULL, OPT_ENABLE },
  { "disable", no_argument, NULL, OPT_DISABLE },
  { "merge", required_argument, NULL, OPT_MERGE },
  { "dump", no_argument, NULL, OPT_DUMP },
  { "granularity", required_argument, NULL, 'g' },
  { "source-file", required_argument, NULL, 'b' },
  { "source-format", required_argument, NULL, 'F' },
  { "backing", required_argument, NULL, OPT_BACKING },
  { "compress", required_argument, NULL, OPT_COMPRESS },
  { "size", required_argument, NULL, OPT_SIZE },
  { "snapshot", required_argument, NULL, OPT_SNAPSHOT },
  { "resized", no_argument, NULL, OPT_RESIZED },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, OPT_VERSION },
  { NULL, 0, NULL, 0 },
};

/* The + ends them at the command. */
static const char short_options[] = "+Ur:pqf:lc:a:d:g:ub:F:o:O:";

/* The same without that; as with qemu-img, -d and -l of one command have an
 * argument, and those of another one have none.
 */
static const char *
short_options_of (const char *command)
{
  if (command != NULL && strcmp (command, "commit") == 0)
    return "Ur:pqf:lc:a:dg:ub:F:o:O:";
  if (command != NULL && strcmp (command, "measure") == 0)
    return "Ur:pqf:l:c:a:d:g:ub:F:o:O:";
  return short_options + 1;
}

/* ------------------------------------------------------------------- values */

static void
parse_output (struct tool_options *o, const char *value)
{
  if (strcmp (value, "json") != 0 && strcmp (value, "human") != 0)
    tool_wrong ("--output must be ", "human or json");
  o->json = strcmp (value, "json") == 0;
}

static void
parse_repair (struct tool_options *o, const char *value)
{
  if (strcmp (value, "leaks") != 0 && strcmp (value, "all") != 0)
    tool_wrong ("--repair must be ", "leaks or all");
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
    tool_wrong ("--follow must be ", "none, beneath or any");
}

static void
parse_format (struct tool_options *o, const char *value)
{
  if (strcmp (value, "qcow2") != 0 && strcmp (value, "qed") != 0 &&
      strcmp (value, "raw") != 0)
    tool_wrong ("-f must be qcow2 or qed: ",
                "other formats are not known here");
  o->format = value;
}

static void
parse_backing_format (struct tool_options *o, const char *value)
{
  if (strcmp (value, "raw") != 0 && strcmp (value, "qcow2") != 0 &&
      strcmp (value, "qed") != 0)
    tool_wrong ("--backing-format must be ", "raw, qcow2 or qed");
  if (o->nr_formats == CHAIN_MAX_DEPTH - 1)
    tool_wrong ("--backing-format was given more often than ",
                "any backing chain is deep");
  o->formats[o->nr_formats++] = value;
}

static void
parse_passphrase (struct tool_options *o, const char *value)
{
  if (o->passphrase != NULL)
    tool_wrong ("--passphrase ", "was given twice");
  o->passphrase = value;
}

static void
parse_backing_passphrase (struct tool_options *o, const char *value)
{
  if (o->nr_backing_passphrases == CHAIN_MAX_DEPTH)
    tool_wrong ("--backing-passphrase was given more often than ",
                "any backing chain is deep");
  o->backing_passphrases[o->nr_backing_passphrases++] = value;
}

bool
tool_parse_preallocation (const char *name, enum preallocation *preallocation)
{
  static const char *const names[] = {
    [PREALLOCATION_OFF] = "off",
    [PREALLOCATION_METADATA] = "metadata",
    [PREALLOCATION_FALLOC] = "falloc",
    [PREALLOCATION_FULL] = "full",
  };
  unsigned i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    if (strcmp (name, names[i]) == 0) {
      *preallocation = i;
      return true;
    }
  }
  return false;
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
    tool_wrong ("--messages must be ", "a number from 0 to 1000");
  o->messages = n;
}

static void
parse_compress (struct tool_options *o, const char *value)
{
  if (strcmp (value, "zlib") != 0 && strcmp (value, "zstd") != 0)
    tool_wrong ("--compress must be ", "zlib or zstd");
  o->compress = value;
}

static void
parse_features (struct tool_options *o, const char *value)
{
  if (o->features != NULL)
    tool_wrong ("-o can be given once: ", "options are separated by commas");
  o->features = value;
}

static void
parse_snapshot (struct tool_options *o, enum tool_snapshot action)
{
  if (o->acts)
    tool_wrong ("-l, -c, -a and -d ", "exclude each other");
  o->acts = true;
  o->snapshot = action;
  o->name = optarg;
}

static void
parse_action (struct tool_options *o, enum bitmap_action_kind kind)
{
  const size_t nr = o->nr_bitmap_actions;
  struct bitmap_action *p = realloc (o->bitmap_actions, (nr + 1) * sizeof *p);

  if (p == NULL)
    tool_wrong ("out of ", "memory");
  p[nr] = (struct bitmap_action) { kind, optarg };
  o->bitmap_actions = p;
  o->nr_bitmap_actions = nr + 1;
}

/* ------------------------------------------------------------------ options */

/* Those of `snapshot' and of `bitmap'.  Returns false if it is none of them. */
static bool
parse_acting_option (struct tool_options *o, int option)
{
  switch (option) {
  case 'l':
    parse_snapshot (o, SNAPSHOT_LIST);
    return true;
  case 'c':
    parse_snapshot (o, SNAPSHOT_CREATE);
    return true;
  case 'a':
    parse_snapshot (o, SNAPSHOT_APPLY);
    return true;
  case 'd':
    parse_snapshot (o, SNAPSHOT_DELETE);
    return true;
  case OPT_ADD:
    parse_action (o, BITMAP_ADD);
    return true;
  case OPT_REMOVE:
    parse_action (o, BITMAP_REMOVE);
    return true;
  case OPT_CLEAR:
    parse_action (o, BITMAP_CLEAR);
    return true;
  case OPT_ENABLE:
    parse_action (o, BITMAP_ENABLE);
    return true;
  case OPT_DISABLE:
    parse_action (o, BITMAP_DISABLE);
    return true;
  case OPT_MERGE:
    parse_action (o, BITMAP_MERGE);
    return true;
  default:
    return false;
  }
}

/* Those with a value.  Returns false if it is none of them. */
static bool
parse_value (struct tool_options *o, int option)
{
  switch (option) {
  case OPT_OUTPUT:
    parse_output (o, optarg);
    return true;
  case 'r':
    parse_repair (o, optarg);
    return true;
  case OPT_MESSAGES:
    parse_messages (o, optarg);
    return true;
  case 'f':
    parse_format (o, optarg);
    return true;
  case OPT_FOLLOW:
    parse_follow (o, optarg);
    return true;
  case OPT_BACKING_FORMAT:
    parse_backing_format (o, optarg);
    return true;
  case OPT_DATA_FILE:
    o->data_file = optarg;
    return true;
  case OPT_PASSPHRASE:
    parse_passphrase (o, optarg);
    return true;
  case OPT_BACKING_PASSPHRASE:
    parse_backing_passphrase (o, optarg);
    return true;
  case 'g':
    o->granularity = optarg;
    return true;
  case 'b':
  case OPT_BACKING:
    o->base = optarg;
    return true;
  case 'F':
    o->base_format = optarg;
    return true;
  case 'o':
    parse_features (o, optarg);
    return true;
  case 'O':
    o->new_format = optarg;
    return true;
  case OPT_SIZE:
    o->new_size = optarg;
    return true;
  case OPT_SNAPSHOT:
    o->of = optarg;
    return true;
  case OPT_COMPRESS:
    parse_compress (o, optarg);
    return true;
  default:
    return false;
  }
}

static void
parse_option (struct tool_options *o, int option)
{
  switch (option) {
  case 'U':
    o->force_share = true;
    break;
  case 'p':
    o->progress = true;
    break;
  case 'q':
    o->quiet = true;
    break;
  case 'u':
    o->unsafe = true;
    break;
  case OPT_KEEP:
    o->keep = true;
    break;
  case OPT_SHRINK:
    o->shrink = true;
    break;
  case OPT_PREALLOCATION:
    if (!tool_parse_preallocation (optarg, &o->preallocation))
      tool_wrong ("--preallocation must be ", "off, metadata, falloc or full");
    break;
  case OPT_DUMP:
    o->dump = true;
    break;
  case OPT_RESIZED:
    o->resized = true;
    break;
  case OPT_HELP:
    o->help = true;
    break;
  case OPT_VERSION:
    puts (PACKAGE_STRING);
    exit (TOOL_OK);
  default: /* getopt has said what is wrong */
    fail_with_hint ();
  }
}

/* What an option is called in a table of commands, and by messages: its long name,
 * unless it has several meanings.
 */
static void
name_option (int option, char *buf, size_t size)
{
  const struct option *p;

  if (option == OPT_KEEP || (option < 256 && strchr ("bF", option) != NULL)) {
    snprintf (buf, size, "-%c", option == OPT_KEEP ? 'd' : option);
    return;
  }
  for (p = long_options; p->name != NULL; ++p) {
    if (p->val == option) {
      snprintf (buf, size, "--%s", p->name);
      return;
    }
  }
  snprintf (buf, size, "-%c", option);
}

static void
note_given (struct tool_options *o, int option)
{
  unsigned i;

  if (option == OPT_HELP || option == OPT_VERSION)
    return;
  for (i = 0; i < o->nr_given; ++i) {
    if (o->given[i] == option)
      return;
  }
  if (o->nr_given < TOOL_MAX_OPTIONS)
    o->given[o->nr_given++] = option;
}

/* ---------------------------------------------------------------- arguments */

/* Where the command is among the arguments, which begin with options perhaps;
 * argc: there is none.
 */
static int
find_command_word (int argc, char *argv[])
{
  int command;

  opterr = 0;
  while (getopt_long (argc, argv, short_options, long_options, NULL) != -1)
    ;
  command = optind;
  opterr = 1;
  optind = 0; /* begin again */
  return command;
}

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
  const int command = find_command_word (*argc, argv);
  int size = 0, nr = 0, i;

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
tool_parse (struct tool_options *o, int argc, char *argv[])
{
  const char *options, *command;
  int option;

  take_size (o, &argc, argv);
  command = argv[find_command_word (argc, argv)];
  if (command != NULL && tool_is_command (command))
    command_name = command;
  options = short_options_of (command);
  while ((option = getopt_long (argc, argv, options, long_options,
                                NULL)) != -1) {
    if (option == 'd' && optarg == NULL)
      option = OPT_KEEP;
    if (option == 'l' && optarg != NULL)
      option = OPT_SNAPSHOT;
    if (!parse_acting_option (o, option) && !parse_value (o, option))
      parse_option (o, option);
    note_given (o, option);
  }
  return argc;
}

static bool
has_word (const char *words, const char *word)
{
  const size_t n = strlen (word);
  const char *p = words;

  while ((p = strstr (p, word)) != NULL) {
    if ((p == words || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\0'))
      return true;
    p += n;
  }
  return false;
}

void
tool_check_options (const struct tool_options *o, const char *command,
                    const char *takes)
{
  char name[32], text[64];
  unsigned i;

  for (i = 0; i < o->nr_given; ++i) {
    name_option (o->given[i], name, sizeof name);
    if (has_word (takes, name))
      continue;
    snprintf (text, sizeof text, " does not take %s", name);
    tool_wrong (command, text);
  }
  if (o->format != NULL && strcmp (o->format, "raw") == 0 &&
      !has_word (takes, "raw"))
    tool_wrong ("-f must be qcow2 or qed: ", "raw files are for measure only");
  if (o->repair && o->force_share)
    tool_wrong ("--repair and --force-share ", "exclude each other");
  if (o->acts && o->snapshot != SNAPSHOT_LIST && o->force_share)
    tool_wrong (command, " takes --force-share only with -l");
  if (o->acts && o->snapshot != SNAPSHOT_LIST && o->json)
    tool_wrong (command, " takes --output=json only with -l");
}
