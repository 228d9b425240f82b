/* SPDX-License-Identifier: BSD-3-Clause */

/* qemu-nbd's command line. */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

/* NBD's limit, in bytes. */
#define MAX_STRING 4096

static const char usage[] =
  "Usage: %s [OPTION...] IMAGE\n"
  "\n"
  "Takes the options of qemu-nbd, and runs nbdkit with its qcow2 plugin.\n"
  "\n"
  "  -k, --socket=PATH        listen on a Unix socket\n"
  "  -p, --port=PORT          or on this TCP port (10809)\n"
  "  -b, --bind=ADDRESS       at this address (0.0.0.0)\n"
  "  -e, --shared=N           at most N clients at once (1); 0: any number\n"
  "  -t, --persistent         don't exit when the last client has left\n"
  "  -x, --export-name=NAME   what the export is called (the empty string)\n"
  "  -D, --description=TEXT   and what it is said to be\n"
  "      --tls-creds=ID       an earlier --object\n"
  "      --selinux-label=LABEL  of the socket\n"
  "\n"
  "      --fork               exit when the server is running\n"
  "      --pid-file=PATH      write its process ID to this file\n"
  "  -v, --verbose            have nbdkit tell what it does\n"
  "\n"
  "  -f, --format=FORMAT      qcow2, qed, raw or luks\n"
  "      --image-opts         the image is KEY=VALUE,... as in QEMU\n"
  "      --object=TYPE,id=ID,...  secret, tls-creds-x509, tls-creds-psk\n"
  "  -r, --read-only          only read it\n"
  "  -s, --snapshot           write to a temporary file in its place\n"
  "  -l, --load-snapshot=SNAPSHOT  serve this internal snapshot\n"
  "  -o, --offset=OFFSET      leave out so many bytes\n"
  "  -P, --partition=N        serve only this partition\n"
  "  -n, --nocache, --cache=MODE, --aio=MODE\n"
  "      --discard=MODE       ignore (default) or unmap\n"
  "      --detect-zeroes=MODE off (default), on or unmap\n"
  "\n"
  "What nbdkit can't do is refused: see nbdkit-qcow2-nbd(1).\n";

enum {
  OPT_CACHE = 256, OPT_AIO, OPT_DISCARD, OPT_DETECT_ZEROES, OPT_OBJECT,
  OPT_TLS_CREDS, OPT_IMAGE_OPTS, OPT_FORK, OPT_PID_FILE, OPT_SELINUX_LABEL,
  OPT_REFUSED, /* and one for each of the list below */
};

/* Those that can't be done, and why. */
static const struct {
  const char *option, *why;
} refused[] = {
  { "-A (--allocation-depth)",
    "nbdkit has no metadata context but base:allocation" },
  { "-B (--bitmap)",
    "nbdkit has no metadata context but base:allocation; \"nbdkit qcow2\" has "
    "bitmaps as exports, which are called bitmap/NAME" },
  { "-c (--connect)",
    "this starts no kernel client: serve a socket, and say \"nbd-client -unix "
    "SOCKET DEVICE\"" },
  { "-d (--disconnect)", "say \"nbd-client -d DEVICE\"" },
  { "-L (--list)", "say \"nbdinfo --list URI\"" },
  { "-T (--trace)", "there are no trace events; -v logs what nbdkit does" },
  { "--tls-authz", "nbdkit has no lists of who is authorized" },
  { "--tls-hostname", "it is for -L, and that is not done" },
};
enum { ALLOCATION_DEPTH, BITMAP, CONNECT, DISCONNECT, LIST, TRACE, TLS_AUTHZ,
       TLS_HOSTNAME };

static const struct option long_options[] = {
  { "help", no_argument, NULL, 'h' },
  { "version", no_argument, NULL, 'V' },
  { "bind", required_argument, NULL, 'b' },
  { "port", required_argument, NULL, 'p' },
  { "socket", required_argument, NULL, 'k' },
  { "offset", required_argument, NULL, 'o' },
  { "partition", required_argument, NULL, 'P' },
  { "read-only", no_argument, NULL, 'r' },
  { "allocation-depth", no_argument, NULL, OPT_REFUSED + ALLOCATION_DEPTH },
  { "bitmap", required_argument, NULL, OPT_REFUSED + BITMAP },
  { "connect", required_argument, NULL, OPT_REFUSED + CONNECT },
  { "disconnect", no_argument, NULL, OPT_REFUSED + DISCONNECT },
  { "list", no_argument, NULL, OPT_REFUSED + LIST },
  { "snapshot", no_argument, NULL, 's' },
  { "load-snapshot", required_argument, NULL, 'l' },
  { "nocache", no_argument, NULL, 'n' },
  { "cache", required_argument, NULL, OPT_CACHE },
  { "aio", required_argument, NULL, OPT_AIO },
  { "discard", required_argument, NULL, OPT_DISCARD },
  { "detect-zeroes", required_argument, NULL, OPT_DETECT_ZEROES },
  { "shared", required_argument, NULL, 'e' },
  { "format", required_argument, NULL, 'f' },
  { "persistent", no_argument, NULL, 't' },
  { "verbose", no_argument, NULL, 'v' },
  { "object", required_argument, NULL, OPT_OBJECT },
  { "export-name", required_argument, NULL, 'x' },
  { "description", required_argument, NULL, 'D' },
  { "tls-creds", required_argument, NULL, OPT_TLS_CREDS },
  { "tls-hostname", required_argument, NULL, OPT_REFUSED + TLS_HOSTNAME },
  { "tls-authz", required_argument, NULL, OPT_REFUSED + TLS_AUTHZ },
  { "image-opts", no_argument, NULL, OPT_IMAGE_OPTS },
  { "trace", required_argument, NULL, OPT_REFUSED + TRACE },
  { "fork", no_argument, NULL, OPT_FORK },
  { "pid-file", required_argument, NULL, OPT_PID_FILE },
  { "selinux-label", required_argument, NULL, OPT_SELINUX_LABEL },
  { NULL, 0, NULL, 0 },
};

/* One of these words, up to a NULL. */
static const char *
word (const char *option, const char *value, const char *const *words)
{
  unsigned i;

  for (i = 0; words[i] != NULL; ++i)
    if (strcmp (value, words[i]) == 0)
      return words[i];
  die ("Invalid value of %s: '%s'", option, value);
}

/* Durable writes are all that differs: what is flushed always is durable, and
 * the page cache is used, which others see.
 */
static void
set_cache (struct request *r, const char *value)
{
  static const char *const words[] = {
    "none", "off", "writeback", "writethrough", "directsync", "unsafe", NULL,
  };

  value = word ("--cache", value, words);
  r->writethrough = strcmp (value, "writethrough") == 0 ||
                    strcmp (value, "directsync") == 0;
}

static const char *
parse_discard (const char *value)
{
  static const char *const words[] = { "ignore", "off", "unmap", "on", NULL };

  value = word ("--discard", value, words);
  return strcmp (value, "unmap") == 0 || strcmp (value, "on") == 0 ? "unmap"
    : "keep";
}

static void
set_clients (struct request *r, const char *value)
{
  char *end;
  long n;

  errno = 0;
  n = strtol (value, &end, 0);
  if (errno != 0 || end == value || *end != '\0' || n < 0 || n > INT32_MAX)
    die ("Invalid shared device number '%s'", value);
  r->clients = n;
}

static const char *
short_string (const char *option, const char *value)
{
  if (strlen (value) > MAX_STRING)
    die ("%s is too long: '%s'", option, value);
  return value;
}

/* Options that say how clients are served.  False: it is none of these. */
static bool
set_server (struct request *r, int c, const char *value)
{
  switch (c) {
  case 'b': r->address = value; break;
  case 'p': r->port = value; break;
  case 'k':
    if (value[0] != '/')
      die ("socket path must be absolute");
    r->socket = value;
    break;
  case 'e': set_clients (r, value); break;
  case 't': r->persistent = true; break;
  case 'v': r->verbose = true; break;
  case 'x': r->export_name = short_string ("export name", value); break;
  case 'D': r->description = short_string ("export description", value); break;
  case OPT_OBJECT: objects_add (value); break;
  case OPT_TLS_CREDS: r->tls_creds = value; break;
  case OPT_FORK: r->background = true; break;
  case OPT_PID_FILE: r->pid_file = value; break;
  case OPT_SELINUX_LABEL: r->selinux_label = value; break;
  default: return false;
  }
  return true;
}

/* Options that say what is served. */
static bool
set_disk (struct request *r, int c, const char *value)
{
  static const char *const aio[] = { "threads", "native", "io_uring", NULL };
  static const char *const zeroes[] = { "off", "on", "unmap", NULL };

  switch (c) {
  case 'f': r->format = value; break;
  case 'l': r->snapshot = value; r->read_only = true; break;
  case 'n': set_cache (r, "none"); break;
  case 'o': r->offset = value; break;
  case 'P': r->partition = value; break;
  case 'r': r->read_only = true; break;
  case 's': r->throw_away = true; break;
  case OPT_CACHE: set_cache (r, value); break;
  case OPT_AIO: word ("--aio", value, aio); break;
  case OPT_DISCARD: r->discard = parse_discard (value); break;
  case OPT_DETECT_ZEROES:
    r->detect_zeroes = word ("--detect-zeroes", value, zeroes);
    break;
  case OPT_IMAGE_OPTS: r->image_opts = true; break;
  default: return false;
  }
  return true;
}

static void
check (const struct request *r)
{
  if (r->image_opts && r->format != NULL)
    die ("--image-opts and -f are mutually exclusive");
  if (r->selinux_label != NULL && r->socket == NULL)
    die ("--selinux-label is not permitted without --socket");
  if (getenv ("LISTEN_FDS") == NULL)
    return;
  if (r->socket != NULL || r->address != NULL || r->port != NULL)
    die ("socket activation: -k, -b and -p can't be set as well");
  if (r->background)
    die ("socket activation: --fork can't be set as well");
}

void
request_parse (struct request *r, int argc, char **argv)
{
  int c;

  *r = (struct request) { .clients = 1, .export_name = "" };
  while ((c = getopt_long (argc, argv, "hVb:o:p:P:rsnAB:c:dvk:e:f:tl:x:T:D:L",
                           long_options, NULL)) != -1) {
    static const char short_refused[] = "ABcdLT";
    const char *found = c < 256 ? strchr (short_refused, c) : NULL;

    if (found != NULL)
      c = OPT_REFUSED + (found - short_refused);
    if (c >= OPT_REFUSED)
      die ("%s is not supported: %s", refused[c - OPT_REFUSED].option,
           refused[c - OPT_REFUSED].why);
    if (c == 'h' || c == 'V') {
      if (c == 'h')
        printf (usage, program_invocation_short_name);
      else
        printf ("nbdkit-qcow2-nbd %s, in place of qemu-nbd\n", PACKAGE_VERSION);
      exit (EXIT_SUCCESS);
    }
    if (c == '?')
      die ("Try `%s --help' for more information.",
           program_invocation_short_name);
    if (!set_server (r, c, optarg))
      set_disk (r, c, optarg);
  }
  if (argc - optind != 1)
    die ("Invalid number of arguments\nTry `%s --help' for more information.",
         program_invocation_short_name);
  r->image = argv[optind];
  check (r);
}
