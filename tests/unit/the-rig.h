/* SPDX-License-Identifier: BSD-3-Clause */

/* The rig of what makes images for several tests. */

#ifndef UNIT_THE_RIG_H
#define UNIT_THE_RIG_H

#include "rig.h"

extern struct rig rig;

#endif /* UNIT_THE_RIG_H */
