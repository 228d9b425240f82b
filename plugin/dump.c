/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>

#include "crypto/library.h"
#include "dump.h"
#include "qcow2/codec.h"
#include "storage/nbd.h"

void
dump_features (void)
{
  const char *libdeflate = codec_libdeflate_version ();
  const char *isal = codec_isal_version ();
  const char *gnutls = crypto_library ();
  const char *libnbd = storage_nbd_library ();

  printf ("qcow2_versions=2,3\n");
  printf ("qcow2_features=compression-type,extended-l2,snapshot-exports,"
          "bitmap-exports\n");
  printf ("qcow2_formats=qcow2,qed\n");
  printf ("qcow2_backing_formats=raw,qcow2,qed\n");
  printf ("qcow2_compression=deflate,zstd\n");
  printf ("qcow2_zlib=%s\n", codec_zlib_version ());
  printf ("qcow2_libdeflate=%s\n", libdeflate != NULL ? libdeflate : "no");
  printf ("qcow2_zstd=%s\n", codec_zstd_version ());
  printf ("qcow2_isal=%s\n", isal != NULL ? isal : "no");
  printf ("qcow2_encryption=%s\n", gnutls != NULL ? "luks,aes" : "no");
  printf ("qcow2_gnutls=%s\n", gnutls != NULL ? gnutls : "no");
  printf ("qcow2_libnbd=%s\n", libnbd != NULL ? libnbd : "no");
}
