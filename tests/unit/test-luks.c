/* SPDX-License-Identifier: BSD-3-Clause */

/* crypto/: known answers, the splitter, and LUKS headers that ask for what they
 * must not have.  That QEMU means the same is for tests/test-encrypted.sh.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "crypto/effort.h"
#include "crypto/luks-new.h"
#include "crypto/luks.h"
#include "crypto/secret.h"
#include "crypto/split.h"

/* ------------------------------------------------------------ known answers */

static void
check_hex (const uint8_t *bytes, size_t count, const char *hex)
{
  char text[2 * 128 + 1] = "";
  size_t i;

  for (i = 0; i < count; ++i)
    snprintf (text + 2 * i, 3, "%02x", bytes[i]);
  CHECK_STR (text, hex);
}

/* RFC 6070 and the like. */
static void
test_pbkdf2 (void)
{
  uint8_t out[32];

  CHECK_OK (crypto_pbkdf2 (CRYPTO_SHA1, "password", 8, (uint8_t *) "salt", 4,
                           2, out, 20));
  check_hex (out, 20, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957");
  CHECK_OK (crypto_pbkdf2 (CRYPTO_SHA256, "password", 8, (uint8_t *) "salt", 4,
                           1, out, 32));
  check_hex (out, 32, "120fb6cffcf8b32c43e7225256c4f837a86548c92ccc35480805987c"
             "b70be17b");
}

/* FIPS 180-2, RFC 1321. */
static void
test_hashes (void)
{
  uint8_t out[CRYPTO_MAX_DIGEST];
  enum crypto_hash hash;

  CHECK_OK (crypto_digest (CRYPTO_SHA1, NULL, "abc", 3, out));
  check_hex (out, 20, "a9993e364706816aba3e25717850c26c9cd0d89d");
  CHECK_OK (crypto_digest (CRYPTO_MD5, NULL, "abc", 3, out));
  check_hex (out, 16, "900150983cd24fb0d6963f7d28e17f72");
  CHECK (crypto_find_hash ("sha512", &hash) && hash == CRYPTO_SHA512);
  CHECK (!crypto_find_hash ("ripemd160", &hash));
  CHECK (!crypto_find_hash ("", &hash));
  CHECK_EQ (crypto_digest_bytes (CRYPTO_SHA384), 48);
}

/* IEEE 1619, vector 2; NIST SP 800-38A, F.2.1. */
static void
test_ciphers (void)
{
  uint8_t key[32], iv[16] = { 0x33, 0x33, 0x33, 0x33, 0x33 }, buf[32];
  const uint8_t cbc_key[16] = {
    0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88,
    0x09, 0xcf, 0x4f, 0x3c,
  };
  const uint8_t cbc_text[16] = {
    0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11,
    0x73, 0x93, 0x17, 0x2a,
  };
  struct crypto_cipher *c;
  unsigned i;

  memset (key, 0x11, 16);
  memset (key + 16, 0x22, 16);
  memset (buf, 0x44, sizeof buf);
  c = crypto_cipher_new (CRYPTO_XTS, key, 32);
  CHECK (crypto_encipher (c, iv, buf, buf, sizeof buf));
  check_hex (buf, 32, "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ec"
             "d6d394f0");
  CHECK (crypto_decipher (c, iv, buf, buf, sizeof buf));
  CHECK_EQ (buf[31], 0x44);
  crypto_cipher_free (c);

  for (i = 0; i < 16; ++i)
    iv[i] = i;
  c = crypto_cipher_new (CRYPTO_CBC, cbc_key, 16);
  CHECK (crypto_encipher (c, iv, cbc_text, buf, 16));
  check_hex (buf, 16, "7649abac8119b246cee98e9b12e9197d");
  crypto_cipher_free (c);
}

static void
test_equal (void)
{
  CHECK (secret_equal ((uint8_t *) "abc", (uint8_t *) "abc", 3));
  CHECK (!secret_equal ((uint8_t *) "abc", (uint8_t *) "abd", 3));
  CHECK (!secret_equal ((uint8_t *) "xbc", (uint8_t *) "abc", 3));
}

/* ------------------------------------------------------------------- header */

#define HEADER_BYTES (UINT64_C (4096) + 8 * LUKS_MAX_MATERIAL)

/* Fields of slot i. */
#define SLOT(i) (208 + 48 * (i))

static void
put_slot (uint8_t *h, unsigned i, uint32_t state, uint32_t iterations,
          uint64_t offset, uint32_t stripes)
{
  put_be32 (h + SLOT (i), state);
  put_be32 (h + SLOT (i) + 4, iterations);
  memset (h + SLOT (i) + 8, i + 1, LUKS_SALT_BYTES);
  put_be32 (h + SLOT (i) + 40, offset / 512);
  put_be32 (h + SLOT (i) + 44, stripes);
}

/* aes-xts-plain64, sha256, with slots 1 and 2 in use. */
static void
make_header (uint8_t *h)
{
  unsigned i;

  memset (h, 0, LUKS_HEADER_BYTES);
  memcpy (h, "LUKS\xba\xbe\0\1", 8);
  memcpy (h + 8, "aes", 3);
  memcpy (h + 40, "xts-plain64", 11);
  memcpy (h + 72, "sha256", 6);
  put_be32 (h + 104, HEADER_BYTES / 512);
  put_be32 (h + 108, 64);
  put_be32 (h + 164, 1000);
  for (i = 0; i < LUKS_SLOTS; ++i)
    put_slot (h, i, i == 1 || i == 2 ? 0x00ac71f3 : 0xdead, 1000,
              4096 + i * LUKS_MAX_MATERIAL, 4000);
}

/* A number or a text in a field, and what becomes of it. */
static const struct {
  unsigned field;
  const char *text; /* NULL: a number of 32 bits */
  uint32_t number;
  int err;          /* 0: it is fine */
  const char *part; /* of the message */
} cases[] = {
  { 0, "LUKT", 0, EINVAL, "no LUKS header at offset 0x30000" },
  { 4, NULL, 0xbabe0002, ENOTSUP, "version 2" },
  { 4, NULL, 0xbabe0000, ENOTSUP, "version 0" },
  { 8, "serpent", 0, ENOTSUP, "cipher \"serpent\" at offset 0x30008" },
  { 8, "01234567890123456789012345678901", 0, EINVAL, "cipher, at offset" },
  { 40, "01234567890123456789012345678901", 0, EINVAL, "cipher mode, at" },
  { 72, "01234567890123456789012345678901", 0, EINVAL, "hash, at offset" },
  { 40, "ecb", 0, ENOTSUP, "mode \"ecb\"" },
  { 40, "ctr-plain64", 0, ENOTSUP, "mode \"ctr\"" },
  { 40, "xts", 0, ENOTSUP, "without IV generator" },
  { 40, "xts-benbi", 0, ENOTSUP, "IV generator \"benbi\"" },
  { 40, "xts-essiv", 0, ENOTSUP, "without a hash" },
  { 40, "xts-essiv:sha1", 0, ENOTSUP, "hash of the IV generator \"sha1\"" },
  { 40, "xts-essiv:sha256", 0, 0, NULL },
  { 40, "xts-essiv:md5", 0, 0, NULL },
  { 40, "xts-plain:nonsense", 0, 0, NULL },
  { 40, "cbc-plain64", 0, ENOTSUP, "key of 64 bytes" },
  { 72, "ripemd160", 0, ENOTSUP, "hash \"ripemd160\"" },
  { 108, NULL, 0, ENOTSUP, "key of 0 bytes" },
  { 108, NULL, 48, ENOTSUP, "key of 48 bytes" },
  { 108, NULL, 32, 0, NULL },
  { 108, NULL, 0x80000000, ENOTSUP, "key of 2147483648 bytes" },
  { 164, NULL, 0, EINVAL, "0 iterations at offset 0x300a4" },
  { 164, NULL, 0x7fffffff, 0, NULL },
  { SLOT (0), NULL, 0xdeae, EINVAL, "neither active" },
  { SLOT (0) + 44, NULL, 1, 0, NULL }, /* which is not active */
  { SLOT (1) + 4, NULL, 0, EINVAL, "key slot 1 at offset 0x30100: 0 iter" },
  { SLOT (1) + 4, NULL, UINT32_MAX, 0, NULL },
  { SLOT (1) + 40, NULL, 0, EINVAL, "its material" },
  { SLOT (1) + 40, NULL, 1, EINVAL, "its material" },
  { SLOT (1) + 40, NULL, UINT32_MAX, EINVAL, "not within the header's" },
  { SLOT (2) + 40, NULL, 9 + 500, EINVAL, "slots 1 and 2 overlap" },
  { SLOT (2) + 40, NULL, 8 + 2 * 500, 0, NULL },
  { SLOT (7), NULL, 0x00ac71f3, 0, NULL },
  { SLOT (2) + 44, NULL, 3999, EINVAL, "3999 stripes" },
  { SLOT (2) + 44, NULL, UINT32_MAX, EINVAL, "4294967295 stripes" },
};

/* A text ends with zeros, unless it fills its field. */
static void
put (uint8_t *h, unsigned field, const char *text, uint32_t number)
{
  if (text == NULL) {
    put_be32 (h + field, number);
    return;
  }
  if (field >= 8)
    memset (h + field, 0, 32);
  memcpy (h + field, text, strlen (text));
}

static void
test_header (void)
{
  uint8_t h[LUKS_HEADER_BYTES];
  struct luks luks;
  size_t i;

  make_header (h);
  CHECK_OK (luks_decode ("test", 0x30000, h, HEADER_BYTES, &luks));
  CHECK (luks.slot[1].active && !luks.slot[3].active);
  CHECK_STR (luks.cipher, "aes-xts-plain64");
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    int r;

    make_header (h);
    put (h, cases[i].field, cases[i].text, cases[i].number);
    r = luks_decode ("test", 0x30000, h, HEADER_BYTES, &luks);
    CHECK_EQ (r, cases[i].err != 0 ? -1 : 0);
    if (cases[i].err != 0)
      CHECK_ERROR (cases[i].err, cases[i].part);
  }
  /* The last slot's material ends with the header. */
  make_header (h);
  put_slot (h, 7, 0x00ac71f3, 1000, 4096 + 7 * LUKS_MAX_MATERIAL, 4000);
  CHECK_OK (luks_decode ("test", 0x30000, h, HEADER_BYTES, &luks));
  CHECK_EQ (luks_decode ("test", 0x30000, h, HEADER_BYTES - 1, &luks), -1);
  CHECK_ERROR (EINVAL, "key slot 7");
}

/* ------------------------------------------------------------------- effort */

/* On a machine of this speed. */
#define SPEED UINT64_C (7000000)

/* All slots as QEMU makes them by default, in two seconds and a quarter, on a
 * machine that is so many percent as fast.
 */
static void
make_qemu_header (struct luks *luks, unsigned percent)
{
  uint8_t h[LUKS_HEADER_BYTES];
  const uint64_t second = SPEED / 100 * percent;
  unsigned i;

  make_header (h);
  put_be32 (h + 164, second / 4);
  for (i = 0; i < LUKS_SLOTS; ++i) /* two blocks each */
    put_slot (h, i, 0x00ac71f3, second, 4096 + i * LUKS_MAX_MATERIAL, 4000);
  CHECK_OK (luks_decode ("test", 0, h, HEADER_BYTES, luks));
}

static unsigned
slots_tried (const struct luks *luks, struct effort *e)
{
  unsigned i, nr = 0;

  *e = (struct effort) {
    .per_second = SPEED, .left = EFFORT_MAX_SECONDS * 1000, .skipped = -1,
  };
  for (i = 0; i < LUKS_SLOTS; ++i)
    nr += effort_take (e, luks, i);
  return nr;
}

static void
test_effort (void)
{
  struct luks luks;
  struct effort e;

  make_qemu_header (&luks, 100);
  CHECK_EQ (slots_tried (&luks, &e), LUKS_SLOTS);
  make_qemu_header (&luks, 250);
  CHECK_EQ (slots_tried (&luks, &e), LUKS_SLOTS);
  CHECK_EQ (e.skipped, -1);
  make_qemu_header (&luks, 300);
  CHECK_EQ (slots_tried (&luks, &e), 6);
  CHECK_EQ (e.skipped, 6);
  CHECK_EQ (e.skipped_seconds, 7);
  /* One that takes too long hides no other. */
  make_qemu_header (&luks, 100);
  luks.slot[0].iterations = luks.slot[5].iterations = UINT32_MAX;
  CHECK_EQ (slots_tried (&luks, &e), LUKS_SLOTS - 2);
  CHECK_EQ (e.skipped, 0);
  CHECK_EQ (e.skipped_seconds, 2 * (uint64_t) UINT32_MAX / SPEED + 1);
  luks.iterations = UINT32_MAX;
  CHECK_EQ (slots_tried (&luks, &e), 0);
  /* A machine that can be measured is neither asleep nor a miracle. */
  CHECK_OK (effort_measure (&e, CRYPTO_SHA256));
  CHECK (e.per_second > 1000 && e.per_second < UINT64_C (1) << 34);
  CHECK_EQ (e.left, EFFORT_MAX_SECONDS * 1000);
}

/* ---------------------------------------------------------------- unlocking */

static void
test_split (void)
{
  static uint8_t material[LUKS_MAX_MATERIAL];
  uint8_t key[CRYPTO_MAX_KEY], merged[CRYPTO_MAX_KEY];
  enum crypto_hash hash;

  memset (key, 0x5a, sizeof key);
  for (hash = CRYPTO_MD5; hash <= CRYPTO_SHA512; ++hash) {
    CHECK_OK (split_key (hash, key, 64, LUKS_STRIPES, material));
    CHECK_OK (split_merge (hash, material, 64, LUKS_STRIPES, merged));
    CHECK (memcmp (key, merged, 64) == 0);
    material[12345] ^= 1; /* any of it is needed */
    CHECK_OK (split_merge (hash, material, 64, LUKS_STRIPES, merged));
    CHECK (memcmp (key, merged, 64) != 0);
  }
}

/* Put a key into slot 2. */
static void
put_key (uint8_t *h, const uint8_t *key, const char *passphrase,
         uint8_t *material)
{
  uint8_t slot_key[CRYPTO_MAX_KEY];
  struct luks luks;
  struct sectors *s;

  CHECK_OK (crypto_pbkdf2 (CRYPTO_SHA256, key, 64, h + 132, LUKS_SALT_BYTES,
                           1000, h + 112, LUKS_DIGEST_BYTES));
  CHECK_OK (luks_decode ("test", 0, h, HEADER_BYTES, &luks));
  CHECK_OK (split_key (luks.hash, key, 64, LUKS_STRIPES, material));
  CHECK_OK (crypto_pbkdf2 (luks.hash, passphrase, strlen (passphrase),
                           luks.slot[2].salt, LUKS_SALT_BYTES, 1000, slot_key,
                           64));
  s = sectors_new (&luks.format, slot_key);
  CHECK_OK (sectors_encipher (s, material, material, LUKS_MAX_MATERIAL, 0));
  sectors_free (s);
}

static void
test_try (void)
{
  static uint8_t material[LUKS_MAX_MATERIAL], copy[LUKS_MAX_MATERIAL];
  static const uint8_t zeros[LUKS_MAX_MATERIAL];
  uint8_t h[LUKS_HEADER_BYTES], key[CRYPTO_MAX_KEY], found[CRYPTO_MAX_KEY];
  struct luks luks;
  bool fits;

  memset (key, 0xc3, 32);
  memset (key + 32, 0x3c, 32);
  make_header (h);
  put_key (h, key, "secret", material);
  CHECK_OK (luks_decode ("test", 0, h, HEADER_BYTES, &luks));

  memcpy (copy, material, sizeof copy);
  CHECK_OK (luks_try (&luks, &luks.slot[2], "secret", 6, copy, found, &fits));
  CHECK (fits && memcmp (found, key, 64) == 0);
  CHECK (memcmp (copy, zeros, sizeof copy) == 0); /* I15 */

  memcpy (copy, material, sizeof copy);
  CHECK_OK (luks_try (&luks, &luks.slot[2], "secreT", 6, copy, found, &fits));
  CHECK (!fits && memcmp (found, zeros, sizeof found) == 0);
  CHECK (memcmp (copy, zeros, sizeof copy) == 0);

  memcpy (copy, material, sizeof copy); /* the salt of another slot */
  CHECK_OK (luks_try (&luks, &luks.slot[1], "secret", 6, copy, found, &fits));
  CHECK (!fits);
}

/* ---------------------------------------------------------------- new ones */

static unsigned
slots_active (const struct luks *luks)
{
  unsigned i, nr = 0;

  for (i = 0; i < LUKS_SLOTS; ++i)
    nr += luks->slot[i].active;
  return nr;
}

/* Its passphrase opens it, and nothing else does; no two have anything in
 * common that is random; and it takes the time that was asked for.
 */
static void
test_new (void)
{
  static struct luks_new made[2];
  const struct passphrase p = { "secret", 6 };
  uint8_t key[2][CRYPTO_MAX_KEY], none[CRYPTO_MAX_KEY];
  struct luks luks[2];
  struct effort e;
  unsigned i;
  bool fits;

  for (i = 0; i < 2; ++i) {
    CHECK_OK (luks_make (&p, i == 0 ? 1 : 80, &made[i]));
    CHECK_OK (luks_decode ("test", 0, made[i].header, LUKS_NEW_BYTES,
                           &luks[i]));
    CHECK_EQ (slots_active (&luks[i]), 1);
    CHECK_EQ (luks[i].slot[0].offset, LUKS_NEW_MATERIAL);
    CHECK_EQ (luks[i].payload_sector, 4040); /* as QEMU has it */
    CHECK_STR (luks[i].cipher, "aes-xts-plain64");
    CHECK_EQ (strlen ((char *) made[i].header + 168), 36);
  }
  CHECK_OK (luks_try (&luks[1], &luks[1].slot[0], "secret", 6,
                      made[1].material, key[1], &fits));
  CHECK (fits);
  for (i = 0; i < 2; ++i) {
    static uint8_t copy[LUKS_MAX_MATERIAL];

    memcpy (copy, made[0].material, sizeof copy);
    CHECK_OK (luks_try (&luks[0], &luks[0].slot[0], "secret", 5 + i, copy,
                        i == 0 ? none : key[0], &fits));
    CHECK_EQ (fits, i == 1);
  }
  CHECK (memcmp (key[0], key[1], sizeof key[0]) != 0);
  CHECK (memcmp (luks[0].salt, luks[1].salt, LUKS_SALT_BYTES) != 0);
  CHECK (memcmp (luks[0].slot[0].salt, luks[1].slot[0].salt,
                 LUKS_SALT_BYTES) != 0);
  CHECK (memcmp (luks[0].salt, luks[0].slot[0].salt, LUKS_SALT_BYTES) != 0);
  CHECK (memcmp (made[0].header + 168, made[1].header + 168, 36) != 0);
  CHECK_EQ (luks[0].iterations, 1000);
  CHECK_EQ (luks[0].slot[0].iterations >= 1000, true);
  CHECK_OK (effort_measure (&e, CRYPTO_SHA256));
  CHECK (luks[1].slot[0].iterations >= e.per_second / 1000 * 80 / 2 / 4);
}

int
main (void)
{
  if (crypto_library () == NULL) {
    test_header (); /* which needs none */
    return check_any_failed () ? check_result () : 77;
  }
  test_pbkdf2 ();
  test_hashes ();
  test_ciphers ();
  test_equal ();
  test_header ();
  test_effort ();
  test_split ();
  test_try ();
  test_new ();
  return check_result ();
}
