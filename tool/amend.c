/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/amend.h"
#include "tool.h"

const char tool_amend_usage[] =
  "Usage: nbdkit-qcow2-tool amend -o OPTION=VALUE[,...] [-q] IMAGE\n"
  "\n"
  "Changes features of an image that nobody serves.\n"
  "\n"
  "  -o compat=1.1|0.10       its version: 3 or 2\n"
  "  -o lazy_refcounts=on|off\n"
  "  -o compression_type=zlib|zstd\n"
  "                           if it has no compressed clusters\n"
  "  -o refcount_bits=1|2|4|8|16|32|64\n"
  "                           how far references are counted\n"
  "  -o backing_file=NAME     as rebase -u -b; empty: none\n"
  "  -o backing_fmt=FORMAT    as rebase -u -F\n"
  "  -o data_file_raw=off     the external data file is not raw any more\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "In a value a comma is written twice.  After a power cut all is as before or\n"
  "all as after, but refcount_bits changes apart from the others.  Images that are\n"
  "marked as dirty or corrupt want a repair first.\n";

struct wishes {
  struct amend_options options;
  bool lazy, raw;
  enum compression compression;
};

static int
wrong_value (const char *name, const char *value, const char *accepted)
{
  error_set (EINVAL, "-o %s=%s: it must be %s", name, value, accepted);
  return -1;
}

static int
parse_switch (const char *name, const char *value, bool *on)
{
  *on = strcmp (value, "on") == 0;
  return *on || strcmp (value, "off") == 0 ? 0
    : wrong_value (name, value, "on or off");
}

static int
set_version (struct wishes *w, const char *name, const char *value)
{
  if (strcmp (value, "0.10") == 0 || strcmp (value, "v2") == 0)
    w->options.version = 2;
  else if (strcmp (value, "1.1") == 0 || strcmp (value, "v3") == 0)
    w->options.version = 3;
  else
    return wrong_value (name, value, "0.10 or 1.1");
  return 0;
}

static int
set_lazy (struct wishes *w, const char *name, const char *value)
{
  w->options.lazy = &w->lazy;
  return parse_switch (name, value, &w->lazy);
}

static int
set_compression (struct wishes *w, const char *name, const char *value)
{
  w->options.compression = &w->compression;
  if (strcmp (value, "zlib") == 0)
    w->compression = COMPRESSION_DEFLATE;
  else if (strcmp (value, "zstd") == 0)
    w->compression = COMPRESSION_ZSTD;
  else
    return wrong_value (name, value, "zlib or zstd");
  return 0;
}

static int
set_refcount_bits (struct wishes *w, const char *name, const char *value)
{
  static const char *const widths[] = { "1", "2", "4", "8", "16", "32", "64" };
  unsigned i;

  for (i = 0; i < sizeof widths / sizeof widths[0]; ++i) {
    if (strcmp (value, widths[i]) == 0) {
      w->options.refcount_bits = 1U << i;
      return 0;
    }
  }
  return wrong_value (name, value, "1, 2, 4, 8, 16, 32 or 64");
}

static int
set_backing (struct wishes *w, const char *name, const char *value)
{
  (void) name;
  w->options.backing = value;
  return 0;
}

static int
set_backing_format (struct wishes *w, const char *name, const char *value)
{
  (void) name;
  w->options.backing_format = value;
  return 0;
}

static int
set_raw (struct wishes *w, const char *name, const char *value)
{
  if (parse_switch (name, value, &w->raw) == -1)
    return -1;
  if (w->raw) {
    error_set (ENOTSUP, "-o %s=on: an image that exists can't be given that",
               name);
    return -1;
  }
  w->options.not_raw = true;
  return 0;
}

static int
refuse_size (struct wishes *w, const char *name, const char *value)
{
  (void) w;
  error_set (ENOTSUP, "-o %s=%s: `resize' gives an image another size", name,
             value);
  return -1;
}

static int
refuse_it (struct wishes *w, const char *name, const char *value)
{
  (void) w;
  error_set (ENOTSUP, "-o %s=%s: this program can't change that", name, value);
  return -1;
}

static const struct {
  const char *name;
  int (*set) (struct wishes *w, const char *name, const char *value);
} options[] = {
  { "compat", set_version },
  { "lazy_refcounts", set_lazy },
  { "compression_type", set_compression },
  { "refcount_bits", set_refcount_bits },
  { "backing_file", set_backing },
  { "backing_fmt", set_backing_format },
  { "data_file_raw", set_raw },
  { "size", refuse_size },
  { "data_file", refuse_it },
  { "encrypt", refuse_it },
};

/* Cut the first option off, and replace each pair of commas in it by one. */
static char *
next_option (char **rest)
{
  char *const first = *rest;
  char *to = first, *from = first;

  while (*from != '\0' && (*from != ',' || from[1] == ',')) {
    if (*from == ',')
      from++;
    *to++ = *from++;
  }
  *rest = *from == ',' ? from + 1 : NULL;
  *to = '\0';
  return first;
}

static int
set_option (struct wishes *w, char *option)
{
  char *value = strchr (option, '=');
  size_t i;

  if (value == NULL) {
    error_set (EINVAL, "-o %s: OPTION=VALUE is wanted", option);
    return -1;
  }
  *value++ = '\0';
  /* encrypt.iter-time and the like */
  for (i = 0; i < sizeof options / sizeof options[0]; ++i) {
    const size_t n = strlen (options[i].name);

    if (strncmp (option, options[i].name, n) == 0 &&
        (option[n] == '\0' || option[n] == '.'))
      return options[i].set (w, option, value);
  }
  error_set (EINVAL, "-o %s: there is no such option", option);
  return -1;
}

static int
amend (const struct tool_options *o, const struct wishes *w)
{
  struct storage *s = tool_open (o, true);
  int r;

  if (s == NULL)
    return -1;
  r = tool_check_qcow2 (o, s) == -1 ? -1 : amend_image (s, &w->options);
  storage_close (s);
  return r;
}

int
tool_amend (const struct tool_options *o)
{
  struct wishes w = { .lazy = false };
  const bool given = o->features != NULL && o->features[0] != '\0';
  char *text = given ? strdup (o->features) : NULL;
  char *rest = text;
  int r = text == NULL ? -1 : 0;

  if (!given)
    error_set (EINVAL, "amend: -o must say what is to be changed");
  else if (text == NULL)
    error_set (ENOMEM, "out of memory");
  while (r == 0 && rest != NULL)
    r = set_option (&w, next_option (&rest));
  if (r == 0)
    r = amend (o, &w);
  free (text);
  if (r == -1)
    return tool_failed ();
  if (!o->quiet)
    puts ("Image amended.");
  return TOOL_OK;
}
