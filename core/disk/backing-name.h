/* SPDX-License-Identifier: BSD-3-Clause */

/* The name that an image has for its backing file, as a path on the host:
 * a plain path; "file:" and a path; or "json:" and an object that says no more
 * than that, as newer programs record it.  Everything else that QEMU makes of
 * such names (protocols, other drivers, options) is refused, by its name.
 * Pure.
 *
 * A json: name is an object with these members, the last two either so or
 * within one of the name "file":
 *
 *   "driver"         the format: "qcow2" or "raw"; or "file", which is raw
 *   "filename"       the path, if the driver is "file"
 *   "file.driver"    "file", if it is there at all
 *   "file.filename"  the path, if the driver is a format, or is not given
 *
 * All values are strings.  QEMU also takes strings in single quotation marks,
 * which people write in shells; and so does this.
 */

#ifndef CORE_DISK_BACKING_NAME_H
#define CORE_DISK_BACKING_NAME_H

/* Of a name that is parsed, in bytes, at most. */
#define BACKING_NAME_MAX 1023

struct backing_name {
  char path[BACKING_NAME_MAX + 1]; /* not empty */
  const char *format; /* that the name itself tells, or NULL: a constant */
};

/* Parse the name that this file has for its backing file; not empty.  Returns
 * -1 with the error set, naming both: EACCES if it may never be followed,
 * EINVAL if it is malformed.
 */
extern int backing_name_parse (const char *file, const char *name,
                               struct backing_name *b);

#endif /* CORE_DISK_BACKING_NAME_H */
