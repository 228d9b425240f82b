/* SPDX-License-Identifier: BSD-3-Clause */

/* What nbdkit logs, and tells the client, of what core/ says. */

#ifndef QCOW2_REPORT_H
#define QCOW2_REPORT_H

/* Core's last error, of this thread. */
extern void report_error (void);

/* Hooks of core/: see base/error.h. */
extern void report_note (const char *text);
extern void report_debug (const char *text);

#endif /* QCOW2_REPORT_H */
