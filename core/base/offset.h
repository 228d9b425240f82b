/* SPDX-License-Identifier: BSD-3-Clause */

/* Guest and host offsets, in bytes, are different types, so that the
 * compiler refuses to mix them up.
 */

#ifndef CORE_BASE_OFFSET_H
#define CORE_BASE_OFFSET_H

#include <stdbool.h>
#include <stdint.h>

struct guest_off { uint64_t v; };
struct host_off { uint64_t v; };

/* No place on the host.  0 is one, in a file that holds nothing but data. */
#define HOST_NONE ((struct host_off) { UINT64_MAX })

static inline bool
host_is_none (struct host_off host)
{
  return host.v == UINT64_MAX;
}

#endif /* CORE_BASE_OFFSET_H */
