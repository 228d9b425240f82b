/* SPDX-License-Identifier: BSD-3-Clause */

/* A program with qemu-nbd's options that runs nbdkit: the parts of it, in the
 * order in which they are used.  Each ends the program, with a message, where
 * it meets what nbdkit can't do.  Strings are those of argv, or are never freed.
 */

#ifndef STANDIN_H
#define STANDIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Print "PROGRAM: " and this, and exit as qemu-nbd does when it fails. */
extern void die (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2), __noreturn__));

/* As the allocating functions of C, but these don't fail. */
extern void *grow (void *p, size_t bytes);
extern char *format (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* ----------------------------------------------------- the command line */

/* Options with values are NULL if they were not given. */
struct request {
  const char *socket, *port, *address, *selinux_label;
  const char *pid_file;
  bool background; /* --fork */
  bool verbose;
  bool persistent;
  unsigned clients; /* 0: any number */
  const char *export_name; /* "" by default */
  const char *description;
  const char *tls_creds;

  const char *image;
  bool image_opts; /* of which image consists */
  const char *format;
  bool read_only;
  bool throw_away; /* -s */
  const char *snapshot; /* -l */
  const char *offset, *partition;
  const char *discard, *detect_zeroes;
  bool writethrough;
};

/* Parse the command line; --object is handed to objects_add. */
extern void request_parse (struct request *r, int argc, char **argv);

/* ------------------------------------------------------------- --object */

/* Take TYPE,KEY=VALUE,... */
extern void objects_add (const char *text);

/* A descriptor from which the secret of this id can be read, once, to its end.
 * An nbdkit parameter can take it; it stays open across exec.
 */
extern int objects_open_secret (const char *id);

struct arguments;

/* Append nbdkit's options for TLS with the credentials of this id. */
extern void objects_add_tls (struct arguments *a, const char *id);

/* --------------------------------------------------------------- KEY=VALUE */

/* The members of an object, and of those within it as OUTER.INNER. */
struct member {
  char *key;
  char *value; /* NULL: JSON's null */
  bool used;
};
struct members {
  struct member *member;
  unsigned nr;
};

/* Add KEY=VALUE,..., where a value has each comma twice.  The first may be a
 * value alone: then its key is first.  what names the text in messages.
 */
extern void members_parse (struct members *m, const char *what,
                           const char *text, const char *first);

/* Add the members of a JSON object. */
extern void members_parse_json (struct members *m, const char *what,
                                const char *text);

extern void members_add (struct members *m, const char *what, const char *key,
                         const char *value);

/* The value of prefix and key, or NULL; it counts as used from then on. */
extern const char *members_take (struct members *m, const char *prefix,
                                 const char *key);
extern bool members_take_bool (struct members *m, const char *prefix,
                               const char *key, bool otherwise);

/* Take one that is null.  False: there is none. */
extern bool members_take_null (struct members *m, const char *prefix,
                               const char *key);

/* Some member's key begins with this. */
extern bool members_have (const struct members *m, const char *prefix);

/* There is none left that was not taken. */
extern void members_end (const struct members *m, const char *what);

/* -------------------------------------------------------------- the image */

enum disk_format { DISK_ANY, DISK_RAW, DISK_LUKS, DISK_QCOW2, DISK_QED };

struct disk {
  const char *file; /* a path, or an NBD server's URI */
  enum disk_format format;
  const char *secret; /* id, or NULL */
  const char *backing, *backing_format, *backing_secret; /* NULL: as recorded */
  const char *data_file;
  bool no_backing;    /* "backing": null */
  const char *locking;
  bool force_share;
  const char *offset, *size; /* of a part of the disk */
  bool compress;
  const char *compression; /* the image's, if compress is set */
  const char *export;      /* name of the plugin's export; NULL: the disk */
};

/* From r->image, and the options that go with it: r is changed to what the
 * image's options say.  Looks into the file where that is needed.
 */
extern void disk_parse (struct disk *d, struct request *r);

/* Look into the file: recognize its format, or verify it, and find out what
 * depends on the image's header.
 */
extern void disk_look (struct disk *d, const struct request *r);

/* Take QEMU's locks on a raw disk, for nbdkit takes none.  They are held as long
 * as the process that this one becomes, and its children, exist.
 */
extern void disk_lock_raw (const struct disk *d, const struct request *r);

/* A number of bytes, maybe with a suffix. */
extern uint64_t parse_bytes (const char *what, const char *text);

/* --------------------------------------------------------------- nbdkit */

struct arguments {
  char **argv; /* ends with NULL */
  unsigned nr;
};

extern void arguments_add (struct arguments *a, const char *text);

/* The command line of nbdkit. */
extern void command_build (struct arguments *a, const struct request *r,
                           const struct disk *d);

/* Become nbdkit; or, in the background, start it, and exit when it serves. */
extern void run (const struct arguments *a, const struct request *r)
  __attribute__ ((__noreturn__));

#endif /* STANDIN_H */
