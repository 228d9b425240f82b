/* SPDX-License-Identifier: BSD-3-Clause */

/* What file.c and file-access.c share. */

#ifndef CORE_STORAGE_FILE_PARTS_H
#define CORE_STORAGE_FILE_PARTS_H

#include <sys/types.h>

#include "storage/file.h"
#include "storage/holders.h"
#include "storage/reports.h"

struct file {
  struct storage storage;
  _Atomic int fd;  /* the one to use */
  int durable_fd;  /* the same file, opened once more: see write_durably */
  int judge_fd;    /* and once more: see ask_judge */
  int reading_fd;  /* that it was opened with; the same until made writable;
                    * -1 if it was adopted */
  dev_t dev;       /* the device itself where the file is one */
  ino_t ino;       /* 0 for a block device */
  unsigned denies; /* to others, by locks on reading_fd */
  enum storage_locking locking;
  struct holder holder;   /* where there are no locks */
  atomic_bool no_writers; /* locks keep other processes from writing it */

  /* To open it again; NULL if it was adopted. */
  char *path;
  int dirfd; /* owned, or AT_FDCWD */
  enum file_place place;

  struct reports reports, durable_reports; /* to fd, and to durable_fd */
};

/* Of storage_ops. */
extern void file_set_locking (struct storage *s, enum storage_locking locking);
extern int file_lock (struct storage *s, unsigned uses, unsigned denies,
                      bool alone);
extern bool file_keeps_writers_out (const struct storage *s);
extern int file_check_writable (const struct storage *s);
extern int file_make_writable (struct storage *s, unsigned uses,
                               unsigned denies);

#endif /* CORE_STORAGE_FILE_PARTS_H */
