/* SPDX-License-Identifier: BSD-3-Clause */

/* Decoding and encoding of compressed clusters.  Spec: Compressed Clusters
 * Descriptor; header field compression_type.
 */

#ifndef CORE_QCOW2_CODEC_H
#define CORE_QCOW2_CODEC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "qcow2/header.h"

/* A coder, with its working memory: for one thread at a time.  Coders are kept
 * in a pool, since making one costs more than decoding a small cluster.
 */
struct codec;

struct codec_pool;

extern struct codec_pool *codec_pool_new (void); /* NULL: error set */
extern void codec_pool_free (struct codec_pool *p); /* none in use; NULL ok */

/* Take a coder out of the pool, or make one; and put it back.  Both lock the
 * pool briefly.  codec_get returns NULL with ENOMEM set.
 */
extern struct codec *codec_get (struct codec_pool *p);
extern void codec_put (struct codec_pool *p, struct codec *c);

/* A buffer for size bytes of compressed data, owned by the coder and valid
 * until the next call.  NULL: ENOMEM set.
 */
extern void *codec_input (struct codec *c, size_t size);

/* Decode exactly out_len bytes.  Input after them is ignored, since the format
 * rounds the input's length up.  Takes no lock.  Returns NULL, or the reason
 * why the data can't be decoded: a constant string, codec_no_memory if it is
 * not the data's fault.
 */
extern const char codec_no_memory[];
extern const char *codec_decode (struct codec *c, enum compression type,
                                 const void *in, size_t in_len,
                                 void *out, size_t out_len);

/* Encode in_len bytes, a cluster, into out, of out_len.  Deflate streams use a
 * window of 4 KiB, the largest that QEMU decodes.  Takes no lock.  Returns the
 * encoded length, 0 if out is too small, or -1 with ENOMEM set.
 */
extern ssize_t codec_encode (struct codec *c, enum compression type,
                             unsigned level, const void *in, size_t in_len,
                             void *out, size_t out_len);

/* Levels go from 1, the fastest, to the maximum. */
extern unsigned codec_max_level (enum compression type);
extern unsigned codec_default_level (enum compression type);

/* The libraries' versions, for --dump-plugin; NULL: built without. */
extern const char *codec_zlib_version (void);
extern const char *codec_zstd_version (void);
extern const char *codec_libdeflate_version (void);
extern const char *codec_isal_version (void);

#endif /* CORE_QCOW2_CODEC_H */
