/* SPDX-License-Identifier: BSD-3-Clause */

/* Decoding of compressed clusters.  Spec: Compressed Clusters Descriptor;
 * header field compression_type.
 */

#ifndef QCOW2_CODEC_H
#define QCOW2_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "header.h"

/* A decoder's working memory, for one thread at a time.  They are kept in
 * a pool, since making one costs more than decoding a small cluster.
 */
struct codec;

struct codec_pool;

extern struct codec_pool *codec_pool_new (void); /* NULL: error set */
extern void codec_pool_free (struct codec_pool *p); /* none in use; NULL ok */

/* Take a decoder out of the pool, or make one, and put it back.  Both lock
 * the pool for a moment.  codec_get returns NULL with ENOMEM set.
 */
extern struct codec *codec_get (struct codec_pool *p);
extern void codec_put (struct codec_pool *p, struct codec *c);

/* A buffer for size bytes of compressed data, owned by the decoder and
 * overwritten by the next call.  NULL: ENOMEM set.
 */
extern void *codec_input (struct codec *c, size_t size);

/* Decode exactly out_len bytes.  What follows them in the input is
 * ignored, since the format overstates the input's length.  Takes no
 * lock.  Returns NULL, or the reason why the data can't be decoded: a
 * constant string, codec_no_memory if it is not the data's fault.
 */
extern const char codec_no_memory[];
extern const char *codec_decode (struct codec *c, enum compression type,
                                 const void *in, size_t in_len,
                                 void *out, size_t out_len);

/* The libraries' versions, for --dump-plugin; NULL: built without. */
extern const char *codec_zlib_version (void);
extern const char *codec_zstd_version (void);
extern const char *codec_libdeflate_version (void);

#endif /* QCOW2_CODEC_H */
