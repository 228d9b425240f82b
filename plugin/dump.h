/* SPDX-License-Identifier: BSD-3-Clause */

/* What this build can do. */

#ifndef QCOW2_DUMP_H
#define QCOW2_DUMP_H

/* For nbdkit --dump-plugin: KEY=VALUE lines to stdout. */
extern void dump_features (void);

#endif /* QCOW2_DUMP_H */
