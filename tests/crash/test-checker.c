/* SPDX-License-Identifier: BSD-3-Clause */

/* Whether checker.c and `qemu-img check' agree about images that are sound
 * and about images that are damaged at random, and whether what maker.c
 * makes is sound.
 *
 * test-checker [STATES [SEED]]
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "build.h"
#include "checker.h"
#include "content.h"
#include "maker.h"
#include "qcow2/entry.h"
#include "random.h"
#include "seconds.h"

static unsigned failures;
static unsigned damaged_found, leaks_found, sound_found;

/* Where files are made: images name a backing file, which must be there. */
static char directory[] = "test-checker-XXXXXX";

static bool
have_qemu_img (void)
{
  return system ("qemu-img --version > /dev/null 2>&1") == 0;
}

static void
write_file (const char *path, const void *bytes, uint64_t size)
{
  FILE *f = fopen (path, "wb");

  if (f == NULL || fwrite (bytes, 1, size, f) != size || fclose (f) != 0) {
    perror (path);
    exit (EXIT_FAILURE);
  }
}

/* What qemu-img's JSON says about one field; 0 if nothing. */
static uint64_t
field (const char *text, const char *name)
{
  char key[64];
  const char *p;

  snprintf (key, sizeof key, "\"%s\":", name);
  p = strstr (text, key);
  return p != NULL ? strtoull (p + strlen (key), NULL, 10) : 0;
}

struct verdict {
  uint64_t corruptions, leaks, errors;
};

/* Returns false if qemu-img can't even open it, for which it wants the
 * passphrase of an encrypted image.
 */
static bool
ask_qemu_img (const char *path, bool encrypted, struct verdict *v)
{
  char command[320], text[4096];
  size_t n;
  FILE *p;

  snprintf (command, sizeof command,
            "qemu-img check --output=json %s%s 2>/dev/null", encrypted
            ? "--object secret,id=s,data=secret --image-opts driver=qcow2,"
              "encrypt.format=aes,encrypt.key-secret=s,file.filename="
            : "-f qcow2 ", path);
  p = popen (command, "r");
  if (p == NULL)
    abort ();
  n = fread (text, 1, sizeof text - 1, p);
  text[n] = '\0';
  pclose (p);
  v->corruptions = field (text, "corruptions");
  v->leaks = field (text, "leaks");
  v->errors = field (text, "check-errors");
  return strstr (text, "check-errors") != NULL;
}

static void
complain (const char *image, uint64_t number, const char *damage,
          const struct check_result *r, bool opens, const struct verdict *v)
{
  failures++;
  fprintf (stderr, "%s, state %" PRIu64 " (%s): the checker says opens %d, "
           "corruptions %" PRIu64 ", leaks %" PRIu64 ", errors %" PRIu64
           " (%s); qemu-img says opens %d, %" PRIu64 ", %" PRIu64 ", %" PRIu64
           "\n", image, number, damage, r->opens, r->corruptions, r->leaks,
           r->errors, r->why, opens, v->corruptions, v->leaks, v->errors);
}

static void
compare (const char *image, const uint8_t *bytes, uint64_t size,
         uint64_t number, const char *damage)
{
  struct check_result r;
  struct verdict v = { 0 };
  char path[64];
  bool opens;

  snprintf (path, sizeof path, "%s/image", directory);
  check_image (bytes, size, 0, &r);
  write_file (path, bytes, size);
  opens = ask_qemu_img (path, strstr (image, "-aes") != NULL, &v);
  if (opens != r.opens || (v.corruptions > 0) != (r.corruptions > 0) ||
      (v.errors > 0) != (r.errors > 0) ||
      (opens && v.errors == 0 &&
       (v.leaks != r.leaks || v.corruptions != r.corruptions)))
    complain (image, number, damage, &r, opens, &v);
  unlink (path);
  if (r.corruptions > 0 || r.errors > 0)
    damaged_found++;
  else if (r.leaks > 0)
    leaks_found++;
  else
    sound_found++;
}

/* Something that is a raw file, and a qcow2 image. */
static void
make_backing_file (void)
{
  char path[64];
  struct made m;

  if (mkdtemp (directory) == NULL || !made_image (&m, "v3-c512"))
    abort ();
  snprintf (path, sizeof path, "%s/backing", directory);
  write_file (path, m.bytes, m.size);
  made_free (&m);
}

static void
remove_backing_file (void)
{
  char path[64];

  snprintf (path, sizeof path, "%s/backing", directory);
  unlink (path);
  rmdir (directory);
}

/* A random place of a kind of cluster; 0 if there is none. */
static uint64_t
random_place (const uint16_t *roles, uint64_t nr, unsigned role,
              unsigned bits, uint64_t *random)
{
  const uint64_t start = random_below (random, nr);
  uint64_t i;

  for (i = 0; i < nr; ++i) {
    const uint64_t k = (start + i) % nr;

    if (roles[k] & role)
      return (k << bits) +
        random_below (random, UINT64_C (1) << (bits - 3)) * 8;
  }
  return 0;
}

/* Prefer words that are in use. */
static uint64_t
random_word (const struct made *m, const uint16_t *roles, uint64_t nr,
             unsigned role, uint64_t *random)
{
  uint64_t place = 0;
  unsigned i;

  for (i = 0; i < 50; ++i) {
    place = random_place (roles, nr, role, m->cluster_bits, random);
    if (place == 0 || (place + 8 <= m->size &&
                       get_be64 (m->bytes + place) != 0))
      break;
  }
  return place;
}

static const unsigned damaged_roles[] = {
  ROLE_L1, ROLE_L2, ROLE_L2, ROLE_L2, ROLE_REFCOUNT_TABLE,
  ROLE_REFCOUNT_BLOCK, ROLE_REFCOUNT_BLOCK, ROLE_SNAPSHOT_TABLE, ROLE_BITMAP,
};

#define NR_DAMAGED_ROLES (sizeof damaged_roles / sizeof damaged_roles[0])

static uint64_t
damaged_word (uint64_t word, uint64_t other, unsigned bits, uint64_t *random)
{
  static const uint64_t flags[] = {
    QCOW2_ENTRY_COPIED, QCOW2_L2_COMPRESSED, QCOW2_L2_ZERO,
  };

  switch (random_below (random, 8)) {
  case 0:
  case 1:
    return word ^ UINT64_C (1) << random_below (random, 64);
  case 2:
    return 0;
  case 3:
    return other;
  case 4: /* to the next cluster, or the one before */
    return word + (UINT64_C (1) << bits);
  case 5:
    return word - (UINT64_C (1) << bits);
  case 6:
    return word ^ flags[random_below (random, 3)];
  default: /* another offset */
    return (word & ~QCOW2_ENTRY_OFFSET_MASK) |
      random_below (random, 400) << bits;
  }
}

/* Snapshots and bitmaps have fields that qemu-img won't open an image with;
 * only L1 tables and small things in them are changed.
 */
static void
damage_one (struct made *m, const uint16_t *roles, uint64_t nr,
            uint64_t *random, char *text, size_t size)
{
  const unsigned role = damaged_roles[random_below (random, NR_DAMAGED_ROLES)];
  const uint64_t place = random_word (m, roles, nr, role, random);
  const uint64_t from = random_word (m, roles, nr, role, random);
  uint64_t word;

  if (role == ROLE_SNAPSHOT_TABLE || role == ROLE_BITMAP ||
      place == 0 || place + 8 > m->size || from + 8 > m->size)
    return;
  word = damaged_word (get_be64 (m->bytes + place),
                       get_be64 (m->bytes + from), m->cluster_bits, random);
  snprintf (text + strlen (text), size - strlen (text),
            "role 0x%x at 0x%" PRIx64 ": 0x%" PRIx64 " -> 0x%" PRIx64 "; ",
            role, place, get_be64 (m->bytes + place), word);
  put_be64 (m->bytes + place, word);
}

static void
damage (struct made *m, uint64_t *random, char *text, size_t size)
{
  uint64_t nr, n = 1 + random_below (random, 3);
  uint16_t *roles = check_roles (m->bytes, m->size, &nr);

  while (n-- > 0)
    damage_one (m, roles, nr, random, text, size);
  if (random_below (random, 8) == 0) {
    m->size -= random_below (random, m->size / 8);
    snprintf (text + strlen (text), size - strlen (text),
              "cut to 0x%" PRIx64, m->size);
  }
  free (roles);
}

static void
test_state (uint64_t number, uint64_t seed)
{
  uint64_t random = mix (seed ^ mix (number));
  unsigned nr = 0;
  struct made m;
  char text[512] = "";

  while (made_names[nr] != NULL)
    nr++;
  if (!made_image (&m, made_names[number % nr]))
    abort ();
  if (number >= nr)
    damage (&m, &random, text, sizeof text);
  compare (m.name, m.bytes, m.size, number, text);
  made_free (&m);
}

/* What is made has nothing wrong, and no leaks but those that are meant. */
static void
test_made (void)
{
  struct check_result r;
  struct made m;
  unsigned i;

  for (i = 0; made_names[i] != NULL; ++i) {
    if (!made_image (&m, made_names[i]))
      abort ();
    check_image (m.bytes, m.size, 0, &r);
    if (!check_is_sound (&r) || r.leaks != m.leaks) {
      failures++;
      fprintf (stderr, "%s: %s; leaks %" PRIu64 ", not %" PRIu64 "\n",
               m.name, r.why, r.leaks, m.leaks);
    }
    made_free (&m);
  }
}

int
main (int argc, char *argv[])
{
  const uint64_t states = argc > 1 ? strtoull (argv[1], NULL, 0)
    : 300 / TEST_EACH (3);
  const uint64_t seed = argc > 2 ? strtoull (argv[2], NULL, 0) : 1;
  uint64_t i;

  test_made ();
  if (failures > 0)
    return EXIT_FAILURE;
  if (!have_qemu_img ()) {
    fprintf (stderr, "qemu-img is not here to compare with\n");
    return 77;
  }
  make_backing_file ();
  for (i = 0; i < states; ++i)
    test_state (i, seed);
  remove_backing_file ();
  printf ("%" PRIu64 " states compared with qemu-img: %u damaged, %u with "
          "leaks, %u sound; %u differences\n", states, damaged_found,
          leaks_found, sound_found, failures);
  return failures > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
