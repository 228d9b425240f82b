/* SPDX-License-Identifier: BSD-3-Clause */

/* For tests that have the linker wrap calls of the C library.
 *
 * Where files can be larger than an off_t of 32 bits, the library has these calls
 * once more, by another name, which is what the linker sees.  A test that defines
 * __wrap_open defines that of this other name then; both are wrapped.  But
 * lseek64, which zlib calls on all machines.
 */

#ifndef WRAP_H
#define WRAP_H

#include <features.h>

#ifdef __USE_FILE_OFFSET64

# define __wrap_fallocate __wrap_fallocate64
# define __real_fallocate __real_fallocate64
# define __wrap_fcntl __wrap_fcntl64
# define __real_fcntl __real_fcntl64
# define __wrap_ftruncate __wrap_ftruncate64
# define __real_ftruncate __real_ftruncate64
# define __wrap_lstat __wrap_lstat64
# define __real_lstat __real_lstat64
# define __wrap_mmap __wrap_mmap64
# define __real_mmap __real_mmap64
# define __wrap_open __wrap_open64
# define __real_open __real_open64
# define __wrap_openat __wrap_openat64
# define __real_openat __real_openat64
# define __wrap_pwrite __wrap_pwrite64
# define __real_pwrite __real_pwrite64
# define __wrap_pwritev2 __wrap_pwritev64v2
# define __real_pwritev2 __real_pwritev64v2

#endif

#endif /* WRAP_H */
