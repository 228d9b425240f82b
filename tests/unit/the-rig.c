/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "the-rig.h"

struct rig rig;
