/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "maker-image.h"

static bool
parse_size (const char *word, unsigned *bits)
{
  char *end;
  unsigned long v = strtoul (word, &end, 10);

  if (*end == 'k')
    v <<= 10, end++;
  else if (*end == 'm')
    v <<= 20, end++;
  if (*end != '\0' || v < 512 || v > 2UL << 20 || (v & (v - 1)) != 0)
    return false;
  *bits = __builtin_ctzl (v);
  return true;
}

static bool
parse_width (const char *word, unsigned *order)
{
  char *end;
  const unsigned long v = strtoul (word, &end, 10);

  if (*end != '\0' || v < 1 || v > 64 || (v & (v - 1)) != 0)
    return false;
  *order = __builtin_ctzl (v);
  return true;
}

static bool
parse_flag (struct maker *k, const char *word)
{
  const struct { const char *word; bool *flag; } flags[] = {
    { "ext", &k->m->extended }, { "lazy", &k->m->lazy },
    { "comp", &k->compressed }, { "snap", &k->snap },
    { "snapall", &k->share_all }, { "snap2", &k->second },
    { "holes", &k->holes }, { "full", &k->full }, { "table", &k->table_full },
    { "brim", &k->brim },
    { "tail", &k->tail }, { "many", &k->many }, { "bitmap", &k->bitmap },
    { "idle", &k->m->idle },
    { "giveup", &k->give_up }, { "autoclear", &k->autoclear },
    { "keep", &k->m->keep }, { "zip", &k->m->zip },
    { "nozero", &k->m->no_zero }, { "tight", &k->m->tight },
    { "known", &k->m->known }, { "aes", &k->m->aes },
    { "luks", &k->m->luks }, { "late", &k->late }, { "below", &k->below },
  };
  unsigned i;

  for (i = 0; i < sizeof flags / sizeof flags[0]; ++i) {
    if (strcmp (flags[i].word, word) == 0) {
      *flags[i].flag = true;
      return true;
    }
  }
  return false;
}

/* What it is over. */
static bool
parse_backing (struct maker *k, const char *word)
{
  static const struct {
    const char *word;
    enum backing kind;
    const char *more;
  } kinds[] = {
    { "back", BACKING_RAW }, { "shortback", BACKING_SHORT },
    { "longback", BACKING_LONG }, { "qback", BACKING_QCOW2, "" },
    { "aesback", BACKING_QCOW2, "-aes-below" },
    { "luksback", BACKING_QCOW2, "-luks-below" },
  };
  unsigned i;

  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i) {
    if (strcmp (kinds[i].word, word) != 0)
      continue;
    k->backing = kinds[i].kind;
    k->backing_words = kinds[i].more;
    k->m->locked_below = kinds[i].more != NULL && kinds[i].more[0] != '\0';
    return true;
  }
  return false;
}

static bool
parse_word (struct maker *k, const char *word)
{
  struct made *m = k->m;

  if (parse_flag (k, word) || parse_backing (k, word))
    return true;
  if (strcmp (word, "v2") == 0 || strcmp (word, "v3") == 0)
    m->version = word[1] - '0';
  else if (word[0] == 'c')
    return parse_size (word + 1, &m->cluster_bits);
  else if (word[0] == 'r')
    return parse_width (word + 1, &m->refcount_order);
  else if (word[0] == 's' && word[1] >= '0' && word[1] <= '9')
    k->arrangement = strtoul (word + 1, NULL, 10);
  else if (strcmp (word, "zstd") == 0)
    m->compression = COMPRESSION_ZSTD;
  else
    return false;
  return true;
}

bool
maker_parse_name (struct maker *k, const char *name)
{
  struct made *m = k->m;
  char copy[sizeof m->name];
  char *save, *word;

  if (strlen (name) >= sizeof m->name)
    return false;
  strcpy (copy, name);
  strcpy (m->name, name);
  for (word = strtok_r (copy, "-", &save); word != NULL;
       word = strtok_r (NULL, "-", &save)) {
    if (!parse_word (k, word))
      return false;
  }
  k->snap |= k->share_all | k->second;
  k->bitmap |= k->give_up;
  if (m->version == 2 && (m->extended || m->lazy || k->bitmap ||
                          k->autoclear || m->refcount_order != 4 ||
                          m->compression != COMPRESSION_DEFLATE))
    return false;
  /* One bit can't count two references. */
  if (k->snap && m->refcount_order == 0)
    return false;
  /* Nothing that is encrypted is stored compressed. */
  if ((m->aes || m->luks) && m->zip)
    return false;
  return !m->extended || m->cluster_bits >= QCOW2_MIN_CLUSTER_BITS_EXTENDED_L2;
}
