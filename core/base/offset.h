/* SPDX-License-Identifier: BSD-3-Clause */

/* Guest and host offsets, in bytes, are different types, so that the
 * compiler refuses to mix them up.
 */

#ifndef CORE_BASE_OFFSET_H
#define CORE_BASE_OFFSET_H

#include <stdint.h>

struct guest_off { uint64_t v; };
struct host_off { uint64_t v; };

#endif /* CORE_BASE_OFFSET_H */
