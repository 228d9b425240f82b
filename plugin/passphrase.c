/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-plugin.h>

#include "crypto/secret.h"
#include "passphrase.h"
#include "qcow2/misfits.h"

/* What a passphrase has at most, with the newline that may end it. */
#define SECRET_MAX 4096

/* The image's first, if it was given, then those of the backing files. */
static struct passphrase image_secret;
static struct passphrase backing_secret[CHAIN_MAX_DEPTH];
static struct misfits misfits = MISFITS_INIT;
static struct passphrases given = {
  .backing = backing_secret, .misfits = &misfits,
};

/* ----------------------------------------------------------------- reading */

/* Read up to the end of a file, or so much of it. */
static ssize_t
read_up_to (int fd, char *buf, size_t max)
{
  size_t got = 0;
  ssize_t r;

  while (got < max) {
    r = read (fd, buf + got, max - got);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    if (r == 0)
      break;
    got += r;
  }
  return got;
}

/* nbdkit_read_password would leave a copy in the buffer of a stream. */
static int
read_fd (const char *key, int fd, char *secret, size_t *count)
{
  const ssize_t r = read_up_to (fd, secret, SECRET_MAX);
  const char *newline;

  if (r == -1) {
    nbdkit_error ("%s=: reading the passphrase: %m", key);
    return -1;
  }
  newline = memchr (secret, '\n', r);
  *count = newline != NULL ? newline - secret : r;
  if (*count == SECRET_MAX) {
    nbdkit_error ("%s=: the passphrase is longer than %d bytes", key,
                  SECRET_MAX - 1);
    return -1;
  }
  if (memchr (secret, '\0', *count) != NULL) {
    nbdkit_error ("%s=: the passphrase has a zero byte in it", key);
    return -1;
  }
  return 0;
}

static int
read_file (const char *key, const char *path, char *secret, size_t *count)
{
  const int fd = open (path, O_RDONLY | O_CLOEXEC);
  int r;

  if (fd == -1) {
    nbdkit_error ("%s=+%s: %m", key, path);
    return -1;
  }
  r = read_fd (key, fd, secret, count);
  close (fd);
  return r;
}

static int
read_number (const char *key, const char *number, char *secret, size_t *count)
{
  int fd, r;

  if (nbdkit_parse_int (key, number, &fd) == -1)
    return -1;
  if (fd <= STDERR_FILENO) {
    nbdkit_error ("%s=-%s: the descriptor must be above 2", key, number);
    return -1;
  }
  r = read_fd (key, fd, secret, count);
  close (fd);
  return r;
}

/* From the terminal, or the value itself. */
static int
read_other (const char *key, const char *value, char *secret, size_t *count)
{
  char *text;
  int r = 0;

  if (nbdkit_read_password (value, &text) == -1)
    return -1;
  *count = strlen (text);
  if (*count < SECRET_MAX)
    memcpy (secret, text, *count);
  else {
    nbdkit_error ("%s=: the passphrase is longer than %d bytes", key,
                  SECRET_MAX - 1);
    r = -1;
  }
  secret_wipe (text, strlen (text));
  free (text);
  return r;
}

static int
read_secret (const char *key, const char *value, struct passphrase *p)
{
  char *secret = secret_new (SECRET_MAX);
  int r;

  if (secret == NULL) {
    nbdkit_error ("out of memory");
    return -1;
  }
  p->bytes = secret; /* so that it is wiped */
  if (value[0] == '+')
    r = read_file (key, value + 1, secret, &p->count);
  else if (value[0] == '-' && value[1] != '\0')
    r = read_number (key, value + 1, secret, &p->count);
  else
    r = read_other (key, value, secret, &p->count);
  return r;
}

/* -------------------------------------------------------------- parameters */

int
passphrase_set (const char *key, const char *value)
{
  if (strcmp (key, "passphrase") == 0) {
    if (image_secret.bytes != NULL) {
      nbdkit_error ("%s= was given twice", key);
      return -1;
    }
    if (read_secret (key, value, &image_secret) == -1)
      return -1;
    given.image = image_secret;
    return 1;
  }
  if (strcmp (key, "backing-passphrase") != 0)
    return 0;
  if (given.nr_backing == CHAIN_MAX_DEPTH) {
    nbdkit_error ("%s= was given more than %d times: no backing chain is that "
                  "deep", key, CHAIN_MAX_DEPTH);
    return -1;
  }
  return read_secret (key, value, &backing_secret[given.nr_backing++]) == -1
    ? -1 : 1;
}

const struct passphrases *
passphrases_given (void)
{
  return &given;
}

int
passphrases_check_below (const struct image *im, const char *file)
{
  bool image, backing;

  image_is_encrypted (im, &image, &backing);
  if (given.nr_backing == 0 || backing)
    return 0;
  nbdkit_error ("%s: backing-passphrase= was given, but no backing file is "
                "encrypted", file);
  return -1;
}

int
passphrases_check (const struct image *im, const char *file)
{
  bool image, backing;

  image_is_encrypted (im, &image, &backing);
  if (given.image.bytes == NULL || image)
    return passphrases_check_below (im, file);
  nbdkit_error ("%s: passphrase= was given, but the image is not encrypted",
                file);
  return -1;
}

void
passphrases_wipe (void)
{
  unsigned i;

  secret_free ((void *) image_secret.bytes, SECRET_MAX);
  image_secret = given.image = (struct passphrase) { NULL, 0 };
  for (i = 0; i < given.nr_backing; ++i) {
    secret_free ((void *) backing_secret[i].bytes, SECRET_MAX);
    backing_secret[i] = (struct passphrase) { NULL, 0 };
  }
  given.nr_backing = 0;
}
