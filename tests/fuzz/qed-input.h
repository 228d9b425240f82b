/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of the QED target have in common. */

#ifndef FUZZ_QED_INPUT_H
#define FUZZ_QED_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qed-image.h"

/* An image whose header is to be accepted. */
struct qed_input {
  const uint8_t *data; /* just size bytes, so that a sanitizer sees more */
  uint64_t size;
  const uint8_t *padded; /* the same, with a sector of zeros behind it */
  uint64_t state;        /* of random numbers */
};

static inline uint64_t
qed_input_field (const struct qed_input *in, unsigned at, unsigned bytes)
{
  return qed_image_get (in->padded, at, bytes);
}

/* Write it here and there: qed-writing.c. */
extern void qed_write_input (struct qed_input *in);

#endif /* FUZZ_QED_INPUT_H */
