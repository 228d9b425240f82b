/* SPDX-License-Identifier: BSD-3-Clause */

/* Running scripts on an image through core/, and knowing all the while what
 * its disk must hold.
 *
 * Functions that return bool return false if something is wrong that must
 * not be; why says what.
 */

#ifndef CRASH_GUEST_H
#define CRASH_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "crash-server.h"
#include "crash-storage.h"
#include "history.h"
#include "image.h"
#include "maker.h"
#include "workload.h"

/* A point in time that is being read, and what it must hold; or none. */
struct guest_point {
  struct layer *disk;
  uint8_t *content;
};

#define GUEST_POINTS 4

struct guest {
  const struct made *m;
  struct crash_disk *disk;
  struct crash_disk backing;
  const struct crash_server_plan *far; /* the disk is on such a server; or NULL */
  struct crash_server *server;         /* while the image is open */
  struct history *history;
  uint8_t *expect;       /* how the disk reads now */
  uint8_t *buf, *buf2;   /* of the disk's size */
  uint32_t first_number; /* of the requests, in their stamps */
  struct image *im;
  bool writable;

  struct guest_point point[GUEST_POINTS];
  unsigned points_taken;
  struct takes *takes; /* snapshots that it has made */

  bool free_leaks;         /* while it is writable */
  struct sharing *sharing; /* of guest_threads */
  bool careless; /* compare only what was touched, after each request */

  /* Storage fails: requests may, and then a sector holds what it held, or
   * what it was given.
   */
  bool failing;
  struct crash_fault next_fault; /* from guest_start on */
  bool retry;  /* what failed is done again, and must go well then */
  unsigned failed_requests;
  bool blind;  /* a read failed: how the disk reads is not known any more */
  bool sticky; /* I10: from now on all writes must fail */
  bool given_up; /* so core/ says */
  bool unclean;  /* the image could not be closed well */

  char why[1024];
};

extern void guest_init (struct guest *r, const struct made *m);
extern void guest_free (struct guest *r);

/* Start with these bytes as the disk, and open it for reading. */
extern bool guest_start (struct guest *r, const void *bytes, uint64_t size);

/* Read the whole disk to r->buf. */
extern bool guest_read (struct guest *r);

/* From here on the disk is known to hold what r->buf does. */
extern void guest_believe (struct guest *r);

/* Points in time: allow them, in an image that was just opened; take one, if there
 * is room; compare each with what it must hold; end one, if there is such a one;
 * end all of an image that is closed.
 */
extern bool guest_allow_points (struct guest *r);
extern bool guest_take_point (struct guest *r);
extern bool guest_check_points (struct guest *r);
extern void guest_end_point (struct guest *r, unsigned which);
extern void guest_drop_points (struct guest *r);

/* Compare the snapshots with what they should hold. */
extern bool guest_check_snapshots (struct guest *r);

/* False without a reason (why is empty): the image refuses to be written,
 * as it is dirty.
 */
extern bool guest_make_writable (struct guest *r);

extern bool guest_request (struct guest *r, const struct request *q);
extern bool guest_script (struct guest *r, const struct script *s);

/* The same by nr threads, each of which does a part of the requests.  With
 * overlap set, two may change the same sector at the same time.
 */
extern bool guest_threads (struct guest *r, const struct script *s,
                           unsigned nr, bool overlap);

/* Read everything, and compare it. */
extern bool guest_compare (struct guest *r);

/* The same, and close the image. */
extern bool guest_finish (struct guest *r);

/* Close the image without a look at it.  Returns what image_close does. */
extern int guest_close (struct guest *r);

#endif /* CRASH_GUEST_H */
