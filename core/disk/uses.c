/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "base/error.h"
#include "disk/uses.h"

/* No disk begins as the image does that it is the data of.  That of a raw file
 * may: guests seldom write its first sectors.
 */
#define START_BYTES 4096

/* data: an external data file, or one that is to be. */
static int
check_is_no_image (struct storage *data, struct storage *image,
                   const struct format_ops *format)
{
  bool may;

  if (format->magic == NULL)
    return 0;
  if (storage_may_be_same (data, image, START_BYTES, &may) == -1)
    return -1;
  if (!may)
    return 0;
  error_set (EINVAL, "%s: it can't be an external data file, since it begins "
             "with the same bytes as the image %s: they may be the same",
             data->name, image->name);
  return -1;
}

static int
check_layer (const struct layer *l, struct storage *s,
             const struct format_ops *format)
{
  const char *name = l->tables->name;
  const bool has_data = l->data_file != l->tables;

  if (has_data && storage_same (l->data_file, s))
    error_set (EINVAL, "%s: it is the external data file of %s already",
               s->name, name);
  else if (!storage_same (l->tables, s))
    return format == NULL ? check_is_no_image (s, l->tables, l->format)
      : has_data ? check_is_no_image (l->data_file, s, format) : 0;
  else if (format == NULL)
    error_set (EINVAL, "%s: it can't be an external data file, since it is "
               "the image %s", s->name, name);
  else
    error_set (EINVAL, "%s: the backing chain is a loop: it comes back to "
               "%s", s->name, name);
  return -1;
}

int
uses_check (struct layer *const *layers, unsigned nr, struct storage *s,
            const struct format_ops *format)
{
  unsigned i;

  for (i = 0; i < nr; ++i) /* NULL: it is not made yet */
    if (layers[i] != NULL && check_layer (layers[i], s, format) == -1)
      return -1;
  return 0;
}
