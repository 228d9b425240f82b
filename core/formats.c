/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "formats.h"
#include "qcow2/qcow2.h"
#include "qed/qed.h"
#include "raw/raw.h"

const struct format_ops *const all_formats[] = {
  &raw_format,
  &qcow2_format,
  &qed_format,
  NULL,
};
