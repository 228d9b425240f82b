/* SPDX-License-Identifier: BSD-3-Clause */

/* base/hash.c: keys, and how they spread values that were chosen to collide. */

#include <config.h>

#include <stdlib.h>
#include <sys/random.h>

#include "base/hash.h"
#include "check.h"
#include "random.h"

/* getrandom fails, as in a container that knows no such call. */
static bool has_getrandom = true;

extern ssize_t __real_getrandom (void *buf, size_t len, unsigned flags);
extern ssize_t __wrap_getrandom (void *buf, size_t len, unsigned flags);

ssize_t
__wrap_getrandom (void *buf, size_t len, unsigned flags)
{
  if (has_getrandom)
    return __real_getrandom (buf, len, flags);
  errno = EPERM;
  return -1;
}

/* Each process has its own key, and keeps it. */
static void
print_key (bool getrandom_works)
{
  const struct hash_key key = (has_getrandom = getrandom_works, hash_key ());
  const struct hash_key again = hash_key ();

  CHECK (key.word[0] == again.word[0] && key.word[1] == again.word[1]);
  CHECK ((key.word[0] & key.word[1] & 1) == 1);
  printf ("%016" PRIx64 " %016" PRIx64 "\n", key.word[0], key.word[1]);
}

/* Where another machine is emulated, its programs are not started by their names:
 * see scripts/check-words.
 */
static void
read_key (const char *program, const char *how, char *line, size_t size)
{
  const char *emulator = getenv ("TEST_EMULATOR");
  char command[4096];
  FILE *f;

  snprintf (command, sizeof command, "%s '%s' %s",
            emulator != NULL ? emulator : "", program, how);
  f = popen (command, "r");
  CHECK (f != NULL && fgets (line, size, f) != NULL);
  CHECK_EQ (pclose (f), 0);
}

static void
test_process (const char *program)
{
  static const char *const how[] = { "key", "key", "no-getrandom",
                                     "no-getrandom" };
  char line[4][64] = { "" };
  unsigned i, j;

  for (i = 0; i < 4; ++i) {
    read_key (program, how[i], line[i], sizeof line[i]);
    for (j = 0; j < i; ++j)
      CHECK (strcmp (line[i], line[j]) != 0);
  }
}

/* Values whose products with the first word of one key have the same top bits:
 * with another key they have not.
 */
#define NR 4096
#define BITS 12

static void
test_spread (void)
{
  const struct hash_key known = {
    { UINT64_C (0x9e3779b97f4a7c15), UINT64_C (0xbf58476d1ce4e5b9) }
  };
  static unsigned top[1 << BITS], mixed[1 << BITS];
  uint64_t inverse = known.word[0], i;
  unsigned worst_top = 0, worst_mixed = 0;
  struct hash_key key;

  for (i = 0; i < 6; ++i) /* Newton: each step doubles the right bits */
    inverse *= 2 - known.word[0] * inverse;
  CHECK_EQ (inverse * known.word[0], 1);
  key = hash_key ();
  for (i = 0; i < NR; ++i) {
    const uint64_t value = (i << 20 | mix (i) >> 44) * inverse;

    CHECK_EQ (hash_top (&known, value, BITS), 0);
    top[hash_top (&key, value, BITS)]++;
    mixed[hash_mix (&key, value) >> (64 - BITS)]++;
  }
  for (i = 0; i < 1 << BITS; ++i) {
    worst_top = top[i] > worst_top ? top[i] : worst_top;
    worst_mixed = mixed[i] > worst_mixed ? mixed[i] : worst_mixed;
  }
  /* One in each, if they were even; by chance, 7. */
  CHECK (worst_top < 200);
  CHECK (worst_mixed < 30);
}

static void
test_set_key (void)
{
  const struct hash_key key = { { 3, 5 } };

  hash_set_key (key);
  CHECK_EQ (hash_key ().word[0], 3);
  CHECK_EQ (hash_key ().word[1], 5);
}

int
main (int argc, char *argv[])
{
  if (argc > 1)
    print_key (strcmp (argv[1], "key") == 0);
  else {
    test_process (argv[0]);
    test_spread ();
    test_set_key ();
  }
  return check_result ();
}
