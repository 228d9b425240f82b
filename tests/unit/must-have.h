/* SPDX-License-Identifier: BSD-3-Clause */

/* Memory of the tests themselves: without it they can't go on. */

#ifndef UNIT_MUST_HAVE_H
#define UNIT_MUST_HAVE_H

#include <stdio.h>
#include <stdlib.h>

static inline void *
must_have (void *p)
{
  if (p == NULL) {
    fprintf (stderr, "out of memory\n");
    abort ();
  }
  return p;
}

/* Have room for one more than nr in an array. */
#define GROW(array, nr, allocated)                                      \
  do {                                                                  \
    if ((nr) == (allocated)) {                                          \
      (allocated) = 2 * (allocated) + 64;                               \
      (array) = must_have (realloc ((array),                            \
                                    (allocated) * sizeof *(array)));    \
    }                                                                   \
  } while (0)

#endif /* UNIT_MUST_HAVE_H */
