/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "base/advice.h"
#include "params.h"

const char *const params_advice[ADVICE_NR] = {
  [ADVICE_FOLLOW] = "refused by follow=none; follow=beneath allows files "
    "under the image's directory, follow=any allows any file, and backing=PATH "
    "allows PATH",
  [ADVICE_FOLLOW_DATA] = "refused by follow=none; follow=beneath allows files "
    "under the image's directory, follow=any allows any file, and "
    "data-file=PATH allows PATH",
  [ADVICE_DATA_FILE] = "say data-file=PATH",
  [ADVICE_BENEATH] = "refused by follow=beneath",
  [ADVICE_BACKING_FORMAT] = "say backing-format=raw or backing-format=qcow2 "
    "(or record it with qemu-img rebase -u)",
  [ADVICE_SHARE] = "force-share=true reads it all the same",
  [ADVICE_REPAIR] = "repair=all repairs it before it is written; nbdkit -r "
    "serves it as it is",
  [ADVICE_READ_ONLY] = "nbdkit -r serves it as it is",
  [ADVICE_BITMAPS] = "bitmaps=invalidate gives them up; nbdkit -r serves it "
    "as it is",
  [ADVICE_PASSPHRASE] = "say passphrase=+FILE, or backing-passphrase=+FILE for "
    "a backing file",
  [ADVICE_BACKING] = "backing=PATH or backing=NBD-URI says where it is",
  [ADVICE_FLUSH] = "unsafe-no-flush=true writes it all the same; nbdkit -r "
    "serves it as it is",
  [ADVICE_NO_SPACE] = "logged once until there is room again",
  [ADVICE_RAW] = "nbdkit file serves it (as a backing file it needs "
    "backing-format=raw)",
};
