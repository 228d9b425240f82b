/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/snapshot.c, and the exports that image.c makes of snapshots. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "disk/read.h"
#include "image.h"
#include "qcow2/snapshot.h"
#include "random.h"

/* What is put into one entry. */
struct entry {
  const char *id, *name;
  size_t id_size, name_size; /* strlen if 0 */
  uint32_t extra;         /* bytes of it; 0xffffffff in `fake' fields */
  uint64_t l1_offset;
  uint32_t l1_size;
  uint64_t disk_size;
  uint64_t vm_state;
  uint32_t date;
};

static struct builder b;
static struct header h;
static struct storage *s;
static struct snapshots t;

static void
start (void)
{
  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, 10 << 20);
  put_be64 (b.data + 64, build_clusters (&b, 0)); /* snapshots_offset */
}

static uint64_t
append (const struct entry *e)
{
  const size_t id_size = e->id_size ? e->id_size : strlen (e->id);
  const size_t name_size = e->name_size ? e->name_size : strlen (e->name);
  uint8_t extra[16];
  uint64_t at;
  uint8_t *p;

  build_bytes (&b, (8 - b.size % 8) % 8);
  at = build_bytes (&b, 40 + (size_t) e->extra + id_size + name_size);
  p = b.data + at;
  put_be64 (p, e->l1_offset);
  put_be32 (p + 8, e->l1_size);
  put_be16 (p + 12, id_size);
  put_be16 (p + 14, name_size);
  put_be32 (p + 16, e->date);
  put_be32 (p + 32, e->vm_state);
  put_be32 (p + 36, e->extra);
  p += 40;
  put_be64 (extra, e->vm_state + 1);
  put_be64 (extra + 8, e->disk_size);
  memcpy (p, extra, e->extra < 16 ? e->extra : 16);
  p += e->extra;
  memcpy (p, e->id, id_size);
  memcpy (p + id_size, e->name, name_size);
  put_be32 (b.data + 60, get_be32 (b.data + 60) + 1);
  return at;
}

/* Returns what snapshots_read does. */
static int
finish (void)
{
  s = build_storage (&b, NULL);
  CHECK_OK (header_decode ("test", b.data, 65536, b.size, &h));
  return snapshots_read (&t, &h, s);
}

static void
end (void)
{
  snapshots_free (&t);
  storage_close (s);
  build_free (&b);
}

static void
test_fields (void)
{
  static const uint32_t extras[] = { 0, 1, 7, 8, 15, 16, 17, 24, 100, 1023,
                                     1024 };
  char name[16];
  size_t i, n = sizeof extras / sizeof extras[0];

  start ();
  for (i = 0; i < n; ++i) {
    snprintf (name, sizeof name, "%.*s", (int) i, "name of snapshot");
    append (&(struct entry) {
        .id = i == 0 ? "" : name, .name = name, .extra = extras[i],
        .l1_offset = 65536 * i, .l1_size = 10 + i,
        .disk_size = 77777 + i, .vm_state = 1000 + i, .date = 1u << 31,
      });
  }
  CHECK_OK (finish ());
  CHECK_EQ (t.nr, n);
  for (i = 0; i < t.nr; ++i) {
    const struct snapshot *sn = &t.snapshot[i];

    CHECK_EQ (strlen (sn->name), i);
    CHECK_EQ (sn->l1_offset.v, 65536 * i);
    CHECK_EQ (sn->l1_size, 10 + i);
    CHECK_EQ (sn->date_sec, 1u << 31);
    CHECK_EQ (sn->vm_state_size, 1000 + i + (extras[i] >= 8));
    CHECK_EQ (sn->disk_size, extras[i] >= 16 ? 77777 + i : 10 << 20);
  }
  end ();
}

/* What the labels must be; NULL: none. */
struct naming {
  const char *id, *name, *label;
};

#define NAMINGS 6

static const struct naming namings[][NAMINGS] = {
  { { "1", "one", "one" }, { "2", "two", "two" } },
  /* Repeated names go by their IDs, */
  { { "1", "a", "1" }, { "2", "a", "2" }, { "3", "b", "b" } },
  /* unless these are repeated too, or are a name of another one. */
  { { "1", "a", NULL }, { "1", "a", NULL }, { "1", "c", "c" } },
  { { "1", "a", NULL }, { "2", "a", "2" }, { "3", "1", "1" } },
  { { "a", "x", "a" }, { "b", "x", "b" }, { "y", "z", "z" } },
  /* Empty, control characters, not UTF-8. */
  { { "1", "", "1" }, { "", "", NULL }, { "3", "\n", "3" },
    { "4", "\x7f", "4" }, { "5", "\xc2\x80", "5" }, { "6", "a\033[2J", "6" } },
  { { "1", "\xff", "1" }, { "2", "\xc0\xaf", "2" }, { "3", "\xe2\x82", "3" },
    { "4", "\xed\xa0\x80", "4" }, { "5", "\xf4\x90\x80\x80", "5" },
    { "6", "\x80", "6" } },
  { { "1", "\xe2\x82\xac", "\xe2\x82\xac" }, { "2", "\xc3\xa4", "\xc3\xa4" },
    { "3", "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80" },
    { "4", "\xe0\x80\x80", "4" }, { "5", "\xf0\x80\x80\x80", "5" },
    { "6", "\xf8\x88\x80\x80\x80", "6" } },
  { { "\n", "\n", NULL }, { "\xff", "ok", "ok" }, { "2", "with space",
      "with space" }, { "3", "a/b", "a/b" }, { "4", "..", ".." } },
};

static void
test_labels (void)
{
  size_t i, j;

  for (i = 0; i < sizeof namings / sizeof namings[0]; ++i) {
    start ();
    for (j = 0; j < NAMINGS && namings[i][j].id != NULL; ++j)
      append (&(struct entry) {
          .id = namings[i][j].id, .name = namings[i][j].name,
          .extra = 16 });
    CHECK_OK (finish ());
    for (j = 0; j < t.nr; ++j) {
      const char *label = t.snapshot[j].label;

      if (namings[i][j].label == NULL) {
        if (label != NULL)
          check_failed (__FILE__, __LINE__, "%zu.%zu: label \"%s\"", i, j,
                        label);
        continue;
      }
      CHECK_STR (label, namings[i][j].label);
      CHECK (snapshots_find (&t, namings[i][j].label) == &t.snapshot[j]);
    }
    CHECK (snapshots_find (&t, "no such one") == NULL);
    end ();
  }
}

static void
test_find (void)
{
  start ();
  append (&(struct entry) { .id = "1", .name = "2" });
  append (&(struct entry) { .id = "2", .name = "x" });
  append (&(struct entry) { .id = "3", .name = "y" });
  append (&(struct entry) { .id = "3", .name = "z" });
  CHECK_OK (finish ());
  CHECK (snapshots_find (&t, "1") == &t.snapshot[0]);
  CHECK (snapshots_find (&t, "2") == &t.snapshot[0]); /* labels first */
  CHECK (snapshots_find (&t, "3") == NULL);           /* which one? */
  CHECK (snapshots_find (&t, "z") == &t.snapshot[3]);
  end ();

  /* A zero byte ends a string; very long ones are no labels. */
  start ();
  {
    char *longer = malloc (65536);

    memset (longer, 'n', 65535);
    longer[65535] = '\0';
    append (&(struct entry) { .id = "1\0x", .id_size = 3, .name = longer });
    longer[4000] = '\0';
    append (&(struct entry) { .id = "2", .name = longer });
    CHECK_OK (finish ());
    CHECK_EQ (strlen (t.snapshot[0].name), 65535);
    CHECK_STR (t.snapshot[0].id, "1");
    CHECK_STR (t.snapshot[0].label, "1");
    CHECK_STR (t.snapshot[1].label, longer);
    free (longer);
  }
  end ();
}

/* Cut off at every byte. */
static void
test_truncated (void)
{
  uint64_t from, size;

  start ();
  from = append (&(struct entry) { .id = "1", .name = "first", .extra = 16 });
  append (&(struct entry) { .id = "22", .name = "second", .extra = 24 });
  size = b.size;
  CHECK_OK (header_decode ("test", b.data, 65536, size, &h));
  for (b.size = from; b.size < size; ++b.size) {
    s = build_storage (&b, NULL);
    CHECK_EQ (snapshots_read (&t, &h, s), (uint64_t) -1);
    CHECK_ERROR (EINVAL, "test: snapshot table at offset 0x30000");
    CHECK_EQ (t.nr, 0);
    CHECK (t.snapshot == NULL);
    storage_close (s);
  }
  b.size = size;
  s = build_storage (&b, NULL);
  CHECK_OK (snapshots_read (&t, &h, s));
  CHECK_EQ (t.nr, 2);
  end ();

  /* Extra data that reaches beyond. */
  start ();
  from = append (&(struct entry) { .id = "1", .name = "n", .extra = 16 });
  put_be32 (b.data + from + 36, UINT32_MAX);
  CHECK_EQ (finish (), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "snapshot table");
  end ();
}

/* Extra data is stepped over, however long; the table as a whole has a limit,
 * and an end.
 */
static void
test_too_large (void)
{
  static char longest[65536];
  unsigned i;
  uint64_t at;

  start ();
  at = append (&(struct entry) { .id = "1", .name = "n", .extra = 1025 });
  append (&(struct entry) {
            .id = "2", .name = "m", .extra = 1 << 20, .disk_size = 4096 });
  CHECK_OK (finish ());
  CHECK_EQ (t.nr, 2);
  CHECK_STR (t.snapshot[1].id, "2");
  CHECK_EQ (t.snapshot[1].disk_size, 4096);
  snapshots_free (&t);
  storage_close (s);
  put_be32 (b.data + at + 36, UINT32_MAX);
  s = build_storage (&b, NULL);
  CHECK_EQ (snapshots_read (&t, &h, s), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "outside the file");
  end ();

  memset (longest, 'x', 65535);
  start ();
  for (i = 0; i < 511; ++i) /* of 131112 bytes each */
    append (&(struct entry) { .id = longest, .name = longest });
  CHECK_OK (finish ());
  CHECK_EQ (t.nr, 511);
  snapshots_free (&t);
  storage_close (s);
  append (&(struct entry) { .id = longest, .name = longest });
  CHECK_EQ (finish (), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "67108864");
  end ();
}

static void
test_many (void)
{
  char name[32];
  unsigned i;

  start ();
  for (i = 0; i < 65536; ++i) {
    /* Sorted backwards; every fourth is repeated. */
    snprintf (name, sizeof name, "name%u",
              (65535 - i) & (i % 4 == 0 ? ~1u : ~0u));
    append (&(struct entry) { .id = name + 4, .name = name, .extra = 16 });
  }
  CHECK_OK (finish ());
  CHECK_EQ (t.nr, 65536);
  end ();

  start ();
  for (i = 0; i < 65536; ++i)
    append (&(struct entry) { .id = "1", .name = "same" });
  CHECK_OK (finish ());
  for (i = 0; i < t.nr; ++i)
    CHECK (t.snapshot[i].label == NULL);
  CHECK (snapshots_find (&t, "1") == NULL);
  end ();
}

static void
test_check (void)
{
  struct snapshot sn = {
    .id = (char *) "77", .l1_offset = { 0x20000 }, .l1_size = 1,
    .disk_size = 1 << 20,
  };

  start ();
  CHECK_OK (finish ());
  CHECK_OK (snapshot_check (&sn, &h, s));
  sn.disk_size = INT64_MAX;
  CHECK_OK (snapshot_check (&sn, &h, s));
  sn.disk_size = (uint64_t) INT64_MAX + 1;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "snapshot 77: disk size 9223372036854775808");
  sn.disk_size = 1 << 20;
  sn.l1_offset.v = 0x20200;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "L1 table of snapshot 77 offset 0x20200");
  sn.l1_offset.v = 0;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  sn.l1_offset.v = 0x20000;
  sn.l1_size = 8193;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "outside the file");
  sn.l1_size = UINT32_MAX;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "4294967295 entries");
  sn.l1_size = 0;
  CHECK_OK (snapshot_check (&sn, &h, s));

  /* Bytes from the image don't get into the log as they are. */
  sn.id = (char *) "a\n\033[2Jb";
  sn.disk_size = UINT64_MAX;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  CHECK (strpbrk (error_message (), "\n\033") == NULL);
  sn.disk_size = 512;
  sn.l1_size = 1;
  sn.l1_offset.v = 1;
  CHECK_EQ (snapshot_check (&sn, &h, s), (uint64_t) -1);
  CHECK (strpbrk (error_message (), "\n\033") == NULL);
  end ();
}

struct list {
  unsigned nr;
  unsigned stop_after;
  char name[8][64];
  char description[8][256];
};

static int
take_export (void *opaque, const char *name, const char *description)
{
  struct list *l = opaque;

  snprintf (l->name[l->nr], 64, "%s", name);
  snprintf (l->description[l->nr], 256, "%s", description);
  return ++l->nr == l->stop_after ? -1 : 0;
}

/* Live disk and snapshots side by side: different sizes and contents. */
static void
test_exports (void)
{
  struct list list = { 0 };
  struct image *im;
  struct layer *live, *first, *second;
  struct memory_control control = { 0 };
  uint64_t data[2], l2, l1;
  uint8_t buf[65536], pattern[65536];

  start ();
  data[0] = build_data (&b, 5);
  data[1] = build_data (&b, 6);
  build_entry (&b, 0, data[0], 0);
  l1 = build_clusters (&b, 1);
  l2 = build_clusters (&b, 1);
  put_be64 (b.data + l1, l2);
  put_be64 (b.data + l2, data[1]);
  put_be64 (b.data + 64, build_clusters (&b, 0));
  append (&(struct entry) {
      .id = "1", .name = "first", .extra = 16, .l1_offset = l1, .l1_size = 1,
      .disk_size = 70000, .date = 86400 });
  append (&(struct entry) {
      .id = "2", .name = "bad", .extra = 16, .l1_offset = l1 + 1,
      .l1_size = 1, .disk_size = 70000 });
  append (&(struct entry) { /* an L1 table of no entries */
      .id = "3", .name = "empty", .extra = 16, .l1_offset = 0, .l1_size = 0,
      .disk_size = UINT64_C (1) << 62, .date = UINT32_MAX,
      .vm_state = 4095 });
  append (&(struct entry) { .id = "\n", .name = "", .extra = 16 });
  im = image_open_storage (build_storage (&b, &control), CACHE_MIN_BYTES);
  CHECK (im != NULL);
  CHECK_EQ (image_preferred_size (im), 65536);

  CHECK_OK (image_list (im, take_export, &list));
  CHECK_EQ (list.nr, 4); /* without the one that can't be named */
  CHECK_STR (list.name[0], "");
  CHECK_STR (list.name[1], "snapshot/first");
  CHECK_STR (list.name[2], "snapshot/bad");
  CHECK_STR (list.name[3], "snapshot/empty");
  CHECK_HAS (list.description[0], "10485760");
  CHECK_HAS (list.description[1], "1970-01-02 00:00:00 UTC");
  CHECK_HAS (list.description[1], "70000");
  CHECK_HAS (list.description[3], "4096 bytes of VM state");
  list = (struct list) { .stop_after = 2 };
  CHECK_EQ (image_list (im, take_export, &list), (uint64_t) -1);
  CHECK_EQ (list.nr, 2);

  live = image_open_disk (im, "");
  first = image_open_disk (im, "snapshot/first");
  second = image_open_disk (im, "snapshot/3");
  CHECK (live != NULL && first != NULL && second != NULL);
  CHECK_EQ (live->size, 10 << 20);
  CHECK_EQ (first->size, 69632);
  CHECK_EQ (second->size, UINT64_C (1) << 62);
  build_pattern (pattern, 65536, 5);
  CHECK_OK (layer_read (live, buf, 65536, (struct guest_off) { 0 }));
  CHECK (memcmp (buf, pattern, 65536) == 0);
  build_pattern (pattern, 65536, 6);
  CHECK_OK (layer_read (first, buf, 65536, (struct guest_off) { 0 }));
  CHECK (memcmp (buf, pattern, 65536) == 0);
  CHECK_OK (layer_read (second, buf, 65536, (struct guest_off) {
        (UINT64_C (1) << 62) - 65536 }));
  CHECK_EQ (buf[0], 0);
  image_close_disk (second);
  image_close_disk (first);
  image_close_disk (live);

  CHECK (image_open_disk (im, "snapshot/bad") == NULL);
  CHECK_ERROR (EINVAL, "L1 table of snapshot 2");
  CHECK (image_open_disk (im, "snapshot/") == NULL);
  CHECK_ERROR (ENOENT, "no export");
  CHECK (image_open_disk (im, "snapshot") == NULL);
  CHECK_ERROR (ENOENT, "no export");
  CHECK (image_open_disk (im, "first") == NULL);
  CHECK_ERROR (ENOENT, "\"first\"");
  CHECK_EQ (image_describe (im, "x", (char *) buf, 100), (uint64_t) -1);
  CHECK_ERROR (ENOENT, "\"x\"");
  CHECK_OK (image_describe (im, "snapshot/1", (char *) buf, 100));
  CHECK_HAS ((char *) buf, "70000");
  image_close (im);
  CHECK_EQ (control.closes, 1);
  build_free (&b);
}

int
main (void)
{
  check_time_limit (200);
  test_fields ();
  test_labels ();
  test_find ();
  test_truncated ();
  test_too_large ();
  test_many ();
  test_check ();
  test_exports ();
  return check_result ();
}
