/* SPDX-License-Identifier: BSD-3-Clause */

/* What clients are not told: where on the host, or on which server, a storage
 * is.
 */

#ifndef CORE_STORAGE_PLACE_H
#define CORE_STORAGE_PLACE_H

#include "storage/storage.h"

/* From now on messages call it, and the one that it passes requests to, by the
 * name of its file without the directory; a storage on a server by the last part
 * of the export's name, or the URI's scheme if that is empty.  No other thread
 * may be using it.  Twice is the same as once.
 */
extern void storage_hide_place (struct storage *s);

#endif /* CORE_STORAGE_PLACE_H */
