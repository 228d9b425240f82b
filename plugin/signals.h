/* SPDX-License-Identifier: BSD-3-Clause */

/* Signals that a read or write of a file can raise. */

#ifndef QCOW2_SIGNALS_H
#define QCOW2_SIGNALS_H

/* Have none of them end the process, and the call fail instead.  Programs that
 * nbdkit starts (--run) are not affected.
 */
extern void signals_catch (void);

/* As it was before: before the plugin's code is unloaded. */
extern void signals_release (void);

#endif /* QCOW2_SIGNALS_H */
