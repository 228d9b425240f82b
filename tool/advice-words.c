/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "base/advice.h"
#include "tool.h"

/* Words about writing are for the commands that change more than a repair. */
const char *const tool_advice[ADVICE_NR] = {
  [ADVICE_FOLLOW] = ("refused by --follow=none, the default; --follow=beneath "
                     "allows files under the image's directory, and "
                     "--follow=any any file"),
  [ADVICE_FOLLOW_DATA] = ("refused by --follow=none, the default; "
                          "--follow=beneath allows files under the image's "
                          "directory, --follow=any any file, and "
                          "--data-file=PATH allows PATH"),
  [ADVICE_DATA_FILE] = "say --data-file=PATH",
  [ADVICE_BENEATH] = "refused by --follow=beneath",
  [ADVICE_BACKING_FORMAT] = "record it with rebase -u",
  [ADVICE_REPAIR] = "check --repair=all may repair it",
  [ADVICE_PASSPHRASE] = "say --passphrase=+FILE, or --backing-passphrase=+FILE for "
                        "that of a backing file, if the command takes them",
  [ADVICE_SHARE] = "-U reads it all the same",
};
