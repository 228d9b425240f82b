/* SPDX-License-Identifier: BSD-3-Clause */

/* create_far, and what is looked at before it: nothing is written to a server
 * that holds something, has no room, or may be what the image is to lie on.
 */

#include <config.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "far-server.h"
#include "image.h"
#include "manage/create.h"
#include "storage/nbd.h"

#define SIZE (UINT64_C (4) << 20)

static const struct nbd_options defaults = NBD_DEFAULTS;
static uint8_t before[SIZE], after[SIZE];

static void
read_all (const struct far_nbdkit *server, uint8_t *buf)
{
  struct storage *s = storage_nbd_open (server->uri, &defaults, "far");

  if (s == NULL)
    abort ();
  CHECK_OK (storage_read (s, buf, SIZE, (struct host_off) { 0 }));
  storage_close (s);
}

static void
write_byte (const struct far_nbdkit *server, uint64_t offset)
{
  struct storage *s = storage_nbd_open (server->uri, &defaults, "far");

  if (s == NULL)
    abort ();
  CHECK_OK (storage_make_writable (s, 0, 0));
  CHECK_OK (storage_write (s, "x", 1, (struct host_off) { offset }));
  CHECK_OK (storage_flush (s));
  storage_close (s);
}

static void
make (const struct far_nbdkit *server, bool overwrite,
      const struct create_options *o)
{
  struct storage *s = storage_nbd_open (server->uri, &defaults, server->uri);

  CHECK (s != NULL);
  CHECK_OK (create_far (s, overwrite, o));
  storage_close (s);
}

static void
check_refused (const struct far_nbdkit *server, const struct create_options *o,
               int err, const char *part)
{
  struct storage *s;

  read_all (server, before);
  s = storage_nbd_open (server->uri, &defaults, server->uri);
  CHECK (s != NULL);
  CHECK_EQ (create_far (s, err != EEXIST, o), (uint64_t) -1);
  CHECK_ERROR (err, part);
  storage_close (s);
  read_all (server, after);
  CHECK (memcmp (before, after, SIZE) == 0);
}

static void
test_data (void)
{
  static const uint64_t offsets[] = { 0, 4096, 65535, 65536, 1048575 };
  struct create_options o = CREATE_DEFAULTS;
  struct far_nbdkit server;
  unsigned i;

  o.size = 65536;
  for (i = 0; i < sizeof offsets / sizeof offsets[0]; ++i) {
    far_start (&server, "memory 4M");
    write_byte (&server, offsets[i]);
    check_refused (&server, &o, EEXIST, "create=overwrite");
    make (&server, true, &o);
    far_end (&server);
  }
  far_start (&server, "memory 4M");
  write_byte (&server, 1048576);
  make (&server, false, &o);
  far_end (&server);
}

static void
test_room (void)
{
  struct create_options o = CREATE_DEFAULTS;
  struct far_nbdkit server;
  const char *at;

  o.size = 3 * SIZE;
  far_start (&server, "memory 4M");
  write_byte (&server, 0);
  check_refused (&server, &o, ENOSPC, "would fit");
  at = strstr (error_message (), "size=");
  o.size = at != NULL ? strtoull (at + 5, NULL, 10) : 0;
  CHECK (o.size > SIZE / 2 && o.size < SIZE);
  o.size++;
  check_refused (&server, &o, ENOSPC, "would fit");
  o.size--;
  make (&server, true, &o);
  far_end (&server);
}

static void
check_below_refused (const struct image_options *options, const char *part)
{
  struct image *below = image_open_below (options);

  CHECK (below == NULL);
  if (below == NULL)
    CHECK_ERROR (EINVAL, part);
  (void) image_close (below);
}

/* Another URI that leads to the same. */
static char other[256];

static void
name_other (const struct far_nbdkit *server)
{
  snprintf (other, sizeof other, "nbd+unix:///other?%s",
            strchr (server->uri, '?') + 1);
}

/* Two URIs may lead to the same, of which the first byte that is not zero is
 * anywhere.
 */
static void
test_same (uint64_t offset)
{
  struct image_options options = { .cache_size = CACHE_MIN_BYTES };
  struct far_nbdkit server;
  struct image *below;

  far_start (&server, "memory 4M");
  name_other (&server);
  options.chain.file = other;
  options.chain.backing = server.uri;
  options.chain.backing_format = "raw";
  options.chain.nbd = defaults;
  below = image_open_below (&options); /* zeros tell nothing */
  CHECK (below != NULL);
  (void) image_close (below);
  write_byte (&server, offset);
  check_below_refused (&options, "may be the same");
  options.chain.file = server.uri;
  check_below_refused (&options, "its own backing file");
  far_end (&server);
}

/* What is compared with the backing file is what will be formatted, not what its
 * name leads to now.
 */
static void
test_same_connected (void)
{
  struct image_options options = { .cache_size = CACHE_MIN_BYTES };
  struct far_nbdkit base, innocent;

  far_start (&base, "memory 4M");
  far_start (&innocent, "memory 4M");
  write_byte (&base, 4095);
  name_other (&base);
  options.chain.file = innocent.uri;
  options.chain.backing = base.uri;
  options.chain.backing_format = "raw";
  options.chain.nbd = defaults;
  options.chain.far = storage_nbd_open (other, &defaults, other);
  CHECK (options.chain.far != NULL);
  check_below_refused (&options, "may be the same");
  storage_close (options.chain.far);
  far_end (&innocent);
  far_end (&base);
}

/* What would be written to the data file would be written to the image. */
static void
test_data_in_itself (void)
{
  struct image_options options = { .cache_size = CACHE_MIN_BYTES };
  struct create_options o = CREATE_DEFAULTS;
  struct far_nbdkit server, data;
  struct image *im;

  o.size = 65536;
  o.data_file = "/nowhere";
  far_start (&server, "memory 4M");
  far_start (&data, "memory 4M");
  name_other (&server);
  make (&server, false, &o);
  options.chain.file = server.uri;
  options.chain.data_file = other;
  options.chain.nbd = defaults;
  im = image_open (&options);
  CHECK (im == NULL);
  if (im == NULL)
    CHECK_ERROR (EINVAL, "may be the same");
  (void) image_close (im);
  options.chain.data_file = data.uri;
  im = image_open (&options);
  CHECK (im != NULL);
  CHECK_OK (image_close (im));
  far_end (&data);
  far_end (&server);
}

int
main (void)
{
  check_time_limit (60);
  (void) signal (SIGPIPE, SIG_IGN);
  if (storage_nbd_library () == NULL || !have_nbdkit ()) {
    printf ("SKIP: no libnbd, or no nbdkit\n");
    return 77;
  }
  test_data ();
  test_room ();
  test_same (4095);
  test_same (1048575);
  test_same_connected ();
  test_data_in_itself ();
  return check_result ();
}
