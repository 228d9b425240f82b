/* SPDX-License-Identifier: BSD-3-Clause */

/* The linker puts the functions below in the place of the allocators
 * (--wrap).
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <zlib.h>
#include <zstd.h>

#include "no-memory.h"
#include "wrap.h"

unsigned memory_fail_at, memory_calls;

static bool
must_fail (void)
{
  if (!memory_armed || ++memory_calls != memory_fail_at)
    return false;
  errno = ENOMEM;
  return true;
}

/* Visible: the linker wants that where a library that is linked in uses one of
 * these functions, too.
 */
#pragma GCC visibility push(default)

#define WRAP(type, name, parameters, arguments, failed) \
  extern type __real_##name parameters;                 \
  extern type __wrap_##name parameters;                 \
  type                                                  \
  __wrap_##name parameters                              \
  {                                                     \
    if (must_fail ())                                   \
      return failed;                                    \
    return __real_##name arguments;                     \
  }

struct libdeflate_decompressor;

WRAP (void *, malloc, (size_t size), (size), NULL)
WRAP (void *, calloc, (size_t nr, size_t size), (nr, size), NULL)
WRAP (void *, realloc, (void *p, size_t size), (p, size), NULL)
WRAP (char *, strdup, (const char *s), (s), NULL)
WRAP (char *, strndup, (const char *s, size_t n), (s, n), NULL)
WRAP (char *, realpath, (const char *s, char *to), (s, to), NULL)
WRAP (char *, __realpath_chk, (const char *s, char *to, size_t n),
      (s, to, n), NULL)
WRAP (void *, mmap, (void *a, size_t len, int prot, int flags, int fd,
                     off_t offset),
      (a, len, prot, flags, fd, offset), MAP_FAILED)
WRAP (ZSTD_DCtx *, ZSTD_createDCtx, (void), (), NULL)
WRAP (int, inflateInit2_, (z_streamp z, int bits, const char *version,
                           int size),
      (z, bits, version, size), Z_MEM_ERROR)
#ifdef HAVE_LIBDEFLATE
WRAP (struct libdeflate_decompressor *, libdeflate_alloc_decompressor,
      (void), (), NULL)
#endif

extern int __wrap_asprintf (char **to, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
extern int __wrap___asprintf_chk (char **to, int flag, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

int
__wrap_asprintf (char **to, const char *fmt, ...)
{
  va_list ap;
  int r;

  if (must_fail ())
    return -1;
  va_start (ap, fmt);
  r = vasprintf (to, fmt, ap);
  va_end (ap);
  return r;
}

int
__wrap___asprintf_chk (char **to, int flag, const char *fmt, ...)
{
  va_list ap;
  int r;

  if (must_fail ())
    return -1;
  va_start (ap, fmt);
  r = vasprintf (to, fmt, ap);
  va_end (ap);
  return r;
}
