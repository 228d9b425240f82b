/* SPDX-License-Identifier: BSD-3-Clause */

/* disk/backing-name.c: which names of backing files are paths. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "disk/backing-name.h"
#include "random.h"

struct accepted {
  int line;
  const char *name, *path, *format;
};

static const struct accepted accepted[] = {
  { __LINE__, "base.raw", "base.raw", NULL },
  { __LINE__, "./a:b", "./a:b", NULL },
  { __LINE__, "/a:b", "/a:b", NULL },
  { __LINE__, "a%20b", "a%20b", NULL },
  { __LINE__, "json", "json", NULL },
  { __LINE__, "./json:{}", "./json:{}", NULL },

  /* What follows file: is taken as it is. */
  { __LINE__, "file:base.raw", "base.raw", NULL },
  { __LINE__, "file:/a/b", "/a/b", NULL },
  { __LINE__, "file:///a/b", "///a/b", NULL },
  { __LINE__, "file:a:b", "a:b", NULL },
  { __LINE__, "file:nbd:b", "nbd:b", NULL },
  { __LINE__, "file:a%20b", "a%20b", NULL },
  { __LINE__, "file:json:{}", "json:{}", NULL },

  { __LINE__, "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
    "\"filename\":\"/a/b\"}}", "/a/b", "qcow2" },
  { __LINE__, "json:{\"file\":{\"filename\":\"b\",\"driver\":\"file\"},"
    "\"driver\":\"raw\"}", "b", "raw" },
  { __LINE__, "json:{\"driver\":\"qcow2\",\"file.driver\":\"file\","
    "\"file.filename\":\"b\"}", "b", "qcow2" },
  { __LINE__, "json:{\"file\":{\"driver\":\"file\"},\"file.filename\":\"b\"}",
    "b", NULL },
  { __LINE__, "json:{\"file.filename\":\"b\"}", "b", NULL },
  { __LINE__, "json:{\"driver\":\"file\",\"filename\":\"b\"}", "b", "raw" },
  { __LINE__, "json:{'driver':'raw','file.filename':'it\\'s \"b\"'}",
    "it's \"b\"", "raw" },
  { __LINE__, "json: \t\r\n{ \"driver\" : \"raw\" , \"file\" : { \"filename\" "
    ":\n\"b\" } } ", "b", "raw" },
  /* In there a path is a path, whatever it looks like. */
  { __LINE__, "json:{\"file.filename\":\"file:b\"}", "file:b", NULL },
  { __LINE__, "json:{\"file.filename\":\"nbd://b\"}", "nbd://b", NULL },
  { __LINE__, "json:{\"file.filename\":\"json:{}\"}", "json:{}", NULL },
  { __LINE__, "json:{\"file.filename\":\"a%20b\"}", "a%20b", NULL },
  { __LINE__, "json:{\"file.filename\":\"\\u0061\\u00e9\\u20AC\\ud83d\\ude00"
    "\\\\ \\/ \\b\\f\\n\\r\\t\\\"\"}",
    "a\303\251\342\202\254\360\237\230\200\\ / \b\f\n\r\t\"", NULL },
  { __LINE__, "json:{\"file.filename\":\"\303\251\377\"}", "\303\251\377",
    NULL },
  { __LINE__, "json:{\"file.f\\u0069lename\":\"b\"}", "b", NULL },
};

struct refused {
  int line;
  const char *name;
  int errnum;
  const char *part;
};

#define FILE_A "\"file.filename\":\"a\""

static const struct refused refused[] = {
  { __LINE__, "nbd:localhost:1", EACCES, "not protocols" },
  { __LINE__, "nbd://localhost/", EACCES, "not protocols" },
  { __LINE__, "a:b", EACCES, "not protocols" },
  { __LINE__, ":b", EACCES, "not protocols" },
  { __LINE__, "JSON:{}", EACCES, "not protocols" },
  { __LINE__, "File:b", EACCES, "not protocols" },
  { __LINE__, "fat:.", EACCES, "not protocols" },
  { __LINE__, "host_device:/dev/null", EACCES, "not protocols" },
  { __LINE__, "file:", EACCES, "empty" },
  { __LINE__, "json:{\"file.filename\":\"\"}", EACCES, "empty" },

  /* More than a path: by its name, as soon as it is met. */
  { __LINE__, "json:{" FILE_A ",\"file.locking\":\"off\"}", EACCES,
    "\"file.locking\" is more than that" },
  { __LINE__, "json:{\"file\":{\"filename\":\"a\",\"locking\":\"off\"}}",
    EACCES, "\"file.locking\" is more than that" },
  { __LINE__, "json:{\"offset\":512," FILE_A "}", EACCES,
    "\"offset\" is more than that" },
  { __LINE__, "json:{\"backing\":null," FILE_A "}", EACCES, "\"backing\"" },
  { __LINE__, "json:{\"file\":{\"driver\":\"raw\",\"file\":{\"filename\":"
    "\"a\"}}}", EACCES, "\"file.file\"" },
  { __LINE__, "json:{\"file.file.filename\":\"a\"}", EACCES,
    "\"file.file.filename\"" },
  { __LINE__, "json:{\"file.\":\"a\"}", EACCES, "\"file.\"" },
  { __LINE__, "json:{\"\":\"a\"}", EACCES, "\"\" is more" },
  { __LINE__, "json:{\"Driver\":\"raw\"}", EACCES, "\"Driver\"" },
  { __LINE__, "json:{\"\\u001b[31m\":\"raw\"}", EACCES, "\"\\x1b[31m\"" },
  { __LINE__, "json:{\"driver\":\"nbd\",\"host\":\"a\"}", EACCES, "\"host\"" },
  { __LINE__, "json:{\"driver\":\"nbd\"," FILE_A "}", EACCES,
    "driver \"nbd\"" },
  { __LINE__, "json:{\"driver\":\"QCOW2\"," FILE_A "}", EACCES,
    "driver \"QCOW2\"" },
  { __LINE__, "json:{\"driver\":\"host_device\",\"filename\":\"a\"}", EACCES,
    "driver \"host_device\"" },
  { __LINE__, "json:{\"file.driver\":\"host_device\"," FILE_A "}", EACCES,
    "driver \"host_device\" is not file" },
  { __LINE__, "json:{\"file.driver\":\"\"," FILE_A "}", EACCES,
    "driver \"\" is not file" },

  /* What says nothing, or two things: as QEMU has it. */
  { __LINE__, "json:{}", EACCES, "\"file.filename\" alone" },
  { __LINE__, "json:{\"file\":{}}", EACCES, "\"file.filename\" alone" },
  { __LINE__, "json:{\"filename\":\"a\"}", EACCES, "\"file.filename\" alone" },
  { __LINE__, "json:{\"driver\":\"qcow2\",\"filename\":\"a\"}", EACCES,
    "\"file.filename\" alone" },
  { __LINE__, "json:{\"driver\":\"qcow2\",\"filename\":\"a\"," FILE_A "}",
    EACCES, "\"file.filename\" alone" },
  { __LINE__, "json:{\"driver\":\"file\"," FILE_A "}", EACCES,
    "\"filename\" alone" },
  { __LINE__, "json:{\"driver\":\"file\",\"filename\":\"a\"," FILE_A "}",
    EACCES, "\"filename\" alone" },
  { __LINE__, "json:{\"driver\":\"file\",\"filename\":\"a\","
    "\"file.driver\":\"file\"}", EACCES, "\"filename\" alone" },
  { __LINE__, "json:{" FILE_A "," FILE_A "}", EINVAL, "at byte 42 of that: "
    "this was said before" },
  { __LINE__, "json:{\"file\":{\"filename\":\"a\"}," FILE_A "}", EINVAL,
    "said before" },
  { __LINE__, "json:{\"file\":{\"driver\":\"file\"},\"file\":{}}", EINVAL,
    "said before" },

  /* Malformed. */
  { __LINE__, "json:", EINVAL, "at byte 5 of that: an object" },
  { __LINE__, "json:[]", EINVAL, "an object" },
  { __LINE__, "json:\"a\"", EINVAL, "an object" },
  { __LINE__, "json:{", EINVAL, "at byte 6 of that: the name" },
  { __LINE__, "json:{,}", EINVAL, "the name" },
  { __LINE__, "json:{" FILE_A ",}", EINVAL, "the name" },
  { __LINE__, "json:{" FILE_A " \"driver\":\"raw\"}", EINVAL, "a comma" },
  { __LINE__, "json:{" FILE_A, EINVAL, "a comma" },
  { __LINE__, "json:{" FILE_A "}}", EINVAL, "follows the object" },
  { __LINE__, "json:{" FILE_A "} x", EINVAL, "follows the object" },
  { __LINE__, "json:{\"driver\"}", EINVAL, "a colon" },
  { __LINE__, "json:{\"driver\" \"raw\"}", EINVAL, "a colon" },
  { __LINE__, "json:{driver:\"raw\"}", EINVAL, "the name" },
  { __LINE__, "json:{\"driver\":raw}", EINVAL, "a string is wanted" },
  { __LINE__, "json:{\"driver\":null}", EINVAL, "a string is wanted" },
  { __LINE__, "json:{\"driver\":7}", EINVAL, "a string is wanted" },
  { __LINE__, "json:{\"file\":\"node\"}", EINVAL, "an object is wanted" },
  { __LINE__, "json:{\"file.filename\":{}}", EINVAL, "a string is wanted" },
  { __LINE__, "json:{\"file.filename\":\"a}", EINVAL, "does not end" },
  { __LINE__, "json:{\"file.filename\":\"a'}", EINVAL, "does not end" },
  { __LINE__, "json:{\"file.filename\":\"a\nb\"}", EINVAL, "control" },
  { __LINE__, "json:{\"file.filename\":\"a\\", EINVAL, "no such escape" },
  { __LINE__, "json:{\"file.filename\":\"\\a\"}", EINVAL, "no such escape" },
  { __LINE__, "json:{\"file.filename\":\"\\u", EINVAL, "hexadecimal" },
  { __LINE__, "json:{\"file.filename\":\"\\u12", EINVAL, "hexadecimal" },
  { __LINE__, "json:{\"file.filename\":\"\\u12g4\"}", EINVAL, "hexadecimal" },
  { __LINE__, "json:{\"file.filename\":\"a\\u0000b\"}", EINVAL,
    "no character" },
  { __LINE__, "json:{\"file.filename\":\"\\ud83d\"}", EINVAL, "no character" },
  { __LINE__, "json:{\"file.filename\":\"\\ud83d\\u0061\"}", EINVAL,
    "no character" },
  { __LINE__, "json:{\"file.filename\":\"\\ude00\"}", EINVAL,
    "no character" },
};

static void
test_accepted (void)
{
  struct backing_name b;
  size_t i;

  for (i = 0; i < sizeof accepted / sizeof accepted[0]; ++i) {
    const struct accepted *a = &accepted[i];

    check_ok (__FILE__, a->line, a->name,
              backing_name_parse ("img", a->name, &b));
    check_string (__FILE__, a->line, "path", b.path, a->path);
    check_string (__FILE__, a->line, "format",
                  b.format != NULL ? b.format : "-",
                  a->format != NULL ? a->format : "-");
  }
}

static void
test_refused (void)
{
  struct backing_name b;
  size_t i;

  for (i = 0; i < sizeof refused / sizeof refused[0]; ++i) {
    const struct refused *r = &refused[i];

    error_set (0, "none");
    if (backing_name_parse ("img", r->name, &b) != -1)
      check_failed (__FILE__, r->line, "accepted: %s", r->name);
    check_error (__FILE__, r->line, r->errnum, "img: its backing file is \"");
    check_contains (__FILE__, r->line, error_message (), r->part);
  }
}

/* As long as a name can be. */
static void
test_long (void)
{
  static const char *const start[] = {
    "", "file:", "json:{\"file.filename\":\"", "json:{\"", "json:{\"file\":{\"",
  };
  char name[BACKING_NAME_MAX + 1];
  struct backing_name b;
  size_t i;

  for (i = 0; i < sizeof start / sizeof start[0]; ++i) {
    memset (name, 'a', sizeof name);
    memcpy (name, start[i], strlen (start[i]));
    name[sizeof name - 1] = '\0';
    if (i < 2) {
      CHECK_OK (backing_name_parse ("img", name, &b));
      CHECK_STR (b.path, name + strlen (start[i]));
      continue;
    }
    CHECK_EQ (backing_name_parse ("img", name, &b), (uint64_t) -1);
    CHECK_ERROR (EINVAL, "does not end");
    memcpy (name + sizeof name - 3, "\"}", 2);
    if (i == 2) {
      CHECK_OK (backing_name_parse ("img", name, &b));
      CHECK_EQ (strlen (b.path), sizeof name - 3 - strlen (start[i]));
    }
    else
      CHECK_EQ (backing_name_parse ("img", name, &b), (uint64_t) -1);
  }
  memset (name, '{', sizeof name - 1);
  memcpy (name, "json:", 5);
  CHECK_EQ (backing_name_parse ("img", name, &b), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "at byte 6");
}

/* Names that are nearly right.  Whatever is accepted is a path. */
static void
test_random (void)
{
  static const char likely[] = "{}\"':,\\u0123dDfile.name rjsonqcow2";
  char name[BACKING_NAME_MAX + 1];
  uint64_t state = 1;
  struct backing_name b;
  unsigned i, n, nr = 0;

  for (i = 0; i < 200000; ++i) {
    const size_t which = random_below (&state, sizeof accepted /
                                       sizeof accepted[0]);
    size_t len = strlen (accepted[which].name);

    memcpy (name, accepted[which].name, len + 1);
    for (n = random_below (&state, 4); n > 0 && len > 0; --n) {
      const size_t at = random_below (&state, len);

      switch (random_below (&state, 4)) {
      case 0:
        name[at] = likely[random_below (&state, sizeof likely - 1)];
        break;
      case 1:
        name[at] = 1 + random_below (&state, 255);
        break;
      case 2:
        memmove (name + at, name + at + 1, len - at);
        len--;
        break;
      default:
        memmove (name + at + 1, name + at, len + 1 - at);
        name[at] = likely[random_below (&state, sizeof likely - 1)];
        len++;
        break;
      }
    }
    memset (&b, 'x', sizeof b);
    if (len == 0 || backing_name_parse ("img", name, &b) == -1)
      continue;
    nr++;
    CHECK (memchr (b.path, '\0', sizeof b.path) != NULL);
    CHECK (b.path[0] != '\0' && strlen (b.path) <= len);
    CHECK (b.format == NULL || strcmp (b.format, "raw") == 0 ||
           strcmp (b.format, "qcow2") == 0);
  }
  CHECK (nr > 50000 && nr < 150000);
}

int
main (void)
{
  check_time_limit (100);
  test_accepted ();
  test_refused ();
  test_long ();
  test_random ();
  return check_result ();
}
