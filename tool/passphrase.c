/* SPDX-License-Identifier: BSD-3-Clause */

/* Passphrases are read once they are needed, into memory that is wiped (I15). */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/error.h"
#include "crypto/secret.h"
#include "passphrase.h"
#include "tool.h"

/* What a passphrase has at most, with the newline that may end it. */
#define SECRET_MAX 4096

static struct passphrase secrets[1 + CHAIN_MAX_DEPTH]; /* the image's first */
static struct passphrases given = { .backing = secrets + 1 };

/* ------------------------------------------------------------------ reading */

/* Read the first line, or up to the end; no further than the line's, if the file
 * can't be read as a whole: others may read on.
 */
static int
read_line (const char *option, int fd, char *secret, size_t *count)
{
  for (*count = 0; *count < SECRET_MAX; ++*count) {
    const ssize_t r = read (fd, secret + *count, 1);

    if (r == -1 && errno == EINTR && !tool_is_stopped ()) {
      --*count;
      continue;
    }
    if (r == -1) {
      error_set (errno, "%s: reading the passphrase: %s", option,
                 strerror (errno));
      return -1;
    }
    if (r == 0 || secret[*count] == '\n')
      break;
    if (secret[*count] == '\0') {
      error_set (EINVAL, "%s: the passphrase has a zero byte in it", option);
      return -1;
    }
  }
  if (*count < SECRET_MAX)
    return 0;
  error_set (EINVAL, "%s: the passphrase is longer than %d bytes", option,
             SECRET_MAX - 1);
  return -1;
}

static int
read_file (const char *option, const char *path, char *secret, size_t *count)
{
  const int fd = open (path, O_RDONLY | O_CLOEXEC);
  char name[1024];
  int r;

  if (fd == -1) {
    error_set (errno, "%s=+%s: %s", option,
               error_printable (name, sizeof name, path), strerror (errno));
    return -1;
  }
  r = read_line (option, fd, secret, count);
  close (fd);
  return r;
}

static int
read_number (const char *option, const char *number, char *secret,
             size_t *count)
{
  unsigned long fd;
  char *end;
  int r;

  errno = 0;
  fd = strtoul (number, &end, 10);
  /* What it is if it is none may be a passphrase with a minus before it. */
  if (errno != 0 || *end != '\0' || *number < '0' || *number > '9' ||
      fd <= STDERR_FILENO || fd > INT32_MAX) {
    error_set (EINVAL, "%s=-FD: the number of a descriptor above 2 is wanted",
               option);
    return -1;
  }
  r = read_line (option, fd, secret, count);
  close (fd);
  return r;
}

/* Without an echo, if it is a terminal, whose echo comes back after Ctrl-C, too. */
static int
ask (const char *option, char *secret, size_t *count)
{
  struct termios old, quiet;
  const bool echoes = tcgetattr (STDIN_FILENO, &old) == 0;
  int r;

  if (echoes) {
    tool_catch_signals ();
    fprintf (stderr, "%s: ", strcmp (option, "--passphrase") == 0
             ? "passphrase" : "passphrase of the backing file");
    quiet = old;
    quiet.c_lflag &= ~(tcflag_t) ECHO;
    (void) tcsetattr (STDIN_FILENO, TCSAFLUSH, &quiet);
  }
  r = read_line (option, STDIN_FILENO, secret, count);
  if (echoes) {
    (void) tcsetattr (STDIN_FILENO, TCSAFLUSH, &old);
    putc ('\n', stderr);
  }
  return r;
}

static int
copy_text (const char *option, const char *text, char *secret, size_t *count)
{
  *count = strlen (text);
  if (*count < SECRET_MAX) {
    memcpy (secret, text, *count);
    return 0;
  }
  error_set (EINVAL, "%s: the passphrase is longer than %d bytes", option,
             SECRET_MAX - 1);
  return -1;
}

static int
read_secret (const char *option, const char *value, struct passphrase *p)
{
  char *secret = secret_new (SECRET_MAX);

  if (secret == NULL)
    return -1;
  p->bytes = secret; /* so that it is wiped */
  if (value[0] == '+')
    return read_file (option, value + 1, secret, &p->count);
  if (strcmp (value, "-") == 0)
    return ask (option, secret, &p->count);
  if (value[0] == '-')
    return read_number (option, value + 1, secret, &p->count);
  return copy_text (option, value, secret, &p->count);
}

/* --------------------------------------------------------------------- all */

int
passphrases_read (const struct tool_options *o,
                  const struct passphrases **passphrases)
{
  unsigned i;

  *passphrases = &given;
  if (o->passphrase != NULL &&
      read_secret ("--passphrase", o->passphrase, &secrets[0]) == -1)
    return -1;
  given.image = secrets[0];
  for (i = 0; i < o->nr_backing_passphrases; ++i) {
    if (read_secret ("--backing-passphrase", o->backing_passphrases[i],
                     &secrets[1 + i]) == -1)
      return -1;
  }
  given.nr_backing = o->nr_backing_passphrases;
  return 0;
}

void
passphrases_wipe (void)
{
  unsigned i;

  for (i = 0; i < sizeof secrets / sizeof secrets[0]; ++i) {
    secret_free ((void *) secrets[i].bytes, SECRET_MAX);
    secrets[i] = (struct passphrase) { NULL, 0 };
  }
  given.image = secrets[0];
  given.nr_backing = 0;
}

bool
passphrases_are_given (const struct tool_options *o)
{
  return o->passphrase != NULL || o->nr_backing_passphrases > 0;
}

int
passphrases_check (const struct tool_options *o, const struct image *im,
                   const struct image *below)
{
  bool image, backing, none, other = false;

  image_is_encrypted (im, &image, &backing);
  if (below != NULL)
    image_is_encrypted (below, &none, &other);
  if (o->passphrase != NULL && !image)
    error_set (EINVAL, "%s: --passphrase was given, but the image is not "
               "encrypted", o->file);
  else if (o->nr_backing_passphrases > 0 && !backing && !other)
    error_set (EINVAL, "%s: --backing-passphrase was given, but no backing file "
               "is encrypted", o->file);
  else
    return 0;
  return -1;
}
