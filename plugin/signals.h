/* SPDX-License-Identifier: BSD-3-Clause */

/* Signals that a read or write of a file can raise. */

#ifndef QCOW2_SIGNALS_H
#define QCOW2_SIGNALS_H

/* Make the call fail, instead of ending the process.  Programs that nbdkit
 * starts (--run) are not affected.
 */
extern void signals_catch (void);

/* Restore the previous state, before the plugin's code is unloaded. */
extern void signals_release (void);

#endif /* QCOW2_SIGNALS_H */
