/* streams_batch.h: what modules of all kinds that take events share: batch v1, events, rejects, growing buffers. */
#ifndef STREAMS_BATCH_H
#define STREAMS_BATCH_H

#include "streams_base.h"

enum { STREAMS_OP_PUT = 0, STREAMS_OP_DELETE = 1, STREAMS_OP_PURGE = 2 };
enum { STREAMS_TYPED = 4, STREAMS_KEY_IDS_MAX = 1 << 20 };
#define STREAMS_MAGIC 0x31425453u
#define STREAMS_MAGIC_COMPACT 0x32425453u

typedef struct {
  int64_t append_ms, expires_ms;
  uint64_t hlc, generation;
  uint64_t h; /* the clock this event gets in its row */
  const uint8_t *key, *value; /* value: Confluent wire format, 5 bytes of prefix and the Avro body */
  uint32_t key_len, value_len, index, op;
#ifdef STREAMS_LAST_WINS
  uint32_t is_last;
#endif
} streams_event;

static const char *streams_reason;
STREAMS_INLINE int streams_reject(const char *reason) { streams_reason = reason; return 1; }

/* The put's Avro body. */
STREAMS_INLINE streams_reader streams_body(const streams_event *e) {
  streams_reader r = {e->value + (e->value_len < 5 ? e->value_len : 5), e->value + e->value_len, 0};
  return r;
}

/* ---- batch v1, and with STREAMS_COMPACT defined compact batches too (../ABI.md) ----
 *
 * Modules that define it look at keys through `streams_event_key` and `streams_key_span`, and use the value of an event that
 * `streams_event_read` gives only until the next is read: it may be made of columns for that purpose. */

typedef struct {
  uint32_t n;
  const uint8_t *append_ms, *hlc, *expires_ms, *generation, *op, *key_end, *keys, *value_end, *values;
  const uint8_t *typed[STREAMS_TYPED]; /* sections 64 + c of 8 bytes: value field c of every put; NULL when not there */
  const uint8_t *key_id; /* section 12: events of one id have one key; NULL when not there */
  uint32_t key_ids;      /* ids are below it */
  const uint8_t *item_id[STREAMS_TYPED]; /* sections 128 + c: puts of one id have the same bytes in value field c; or NULL */
  const uint8_t *runs; /* section 13: where stretches of events begin that differ in key and value alone; or NULL */
  uint32_t n_runs;
#ifdef STREAMS_COMPACT
  uint32_t is_compact, key_ends, schema_id, fields; /* of a compact one: keys, its puts' schema, that one's fields */
  const uint8_t *kinds, *word_end[STREAMS_TYPED], *words[STREAMS_TYPED]; /* of field c: 0 long, 1 double, 3 a word */
  uint32_t word_ends[STREAMS_TYPED];
#endif
} streams_batch;

/* Above all of n ids. */
STREAMS_APART STREAMS_UNUSED static uint32_t streams_ids_end(const uint8_t *ids, uint32_t n) {
  uint32_t most = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t id = streams_get32(ids + 4 * i);
    most = id > most ? id : most;
  }
  return n && most < UINT32_MAX ? most + 1 : 0;
}

/* Runs that do not begin at 0 and ascend are not used. */
static int streams_runs_ascend(const streams_batch *b) {
  for (uint32_t i = 0; i < b->n_runs; i++) {
    uint32_t at = streams_get32(b->runs + 4 * i);
    if (at >= b->n || (i ? at <= streams_get32(b->runs + 4 * (i - 1)) : at != 0)) return 0;
  }
  return b->n_runs > 0;
}

/* A section that a batch may have; 0: it is good, or none of them. */
static int streams_optional(const uint8_t *p, uint32_t len, const uint8_t *s, streams_batch *b) {
  uint32_t id = streams_get32(s), at = streams_get32(s + 4), size = streams_get32(s + 8), width = streams_get32(s + 12);
  const uint8_t **to = 0;
  if (width == 8 && id >= 64 && id < 64 + STREAMS_TYPED) to = &b->typed[id - 64];
  if (width == 4 && id >= 128 && id < 128 + STREAMS_TYPED) to = &b->item_id[id - 128];
  if (width == 4 && id == 12) to = &b->key_id;
  if (width == 0 && id == 13) to = &b->runs;
  if (!to) return 0;
  if (at > len || size > len - at || (width && size / width < b->n)) return 1;
  if (id == 13) b->n_runs = size / 4;
  *to = p + at;
  return 0;
}

#ifdef STREAMS_COMPACT
enum { STREAMS_KIND_LONG, STREAMS_KIND_DOUBLE, STREAMS_KIND_WORD = 3 };

/* A section of a compact batch; 0: it is good, or none of them. */
static int streams_compact_section(const uint8_t *p, uint32_t len, const uint8_t *s, streams_batch *b) {
  uint32_t id = streams_get32(s), at = streams_get32(s + 4), size = streams_get32(s + 8), width = streams_get32(s + 12);
  const uint8_t **by_run[11] = {0, &b->append_ms, &b->hlc, &b->expires_ms, &b->generation, 0, 0, 0, 0, 0, 0};
  if (at > len || size > len - at) return 1;
  p += at;
  if (id <= 10 && by_run[id]) {
    *by_run[id] = p;
    return size / 8 < b->n_runs;
  }
  if (id == 6) { b->key_end = p; b->key_ends = size / 4; }
  if (id == 7) b->keys = p;
  if (id == 14) {
    if (size < 8 || streams_get32(p + 4) > STREAMS_TYPED || size - 8 < streams_get32(p + 4)) return 1;
    b->schema_id = streams_get32(p);
    b->fields = streams_get32(p + 4);
    b->kinds = p + 8;
  }
  if (id >= 192 && id < 192 + STREAMS_TYPED) { b->word_end[id - 192] = p; b->word_ends[id - 192] = size / 4; }
  if (id >= 256 && id < 256 + STREAMS_TYPED) b->words[id - 256] = p;
  (void)width;
  return 0;
}

/* Whether all that a compact batch needs is there, and ids lie within what they name. */
static int streams_compact_whole(const streams_batch *b) {
  if (!b->append_ms || !b->hlc || !b->expires_ms || !b->generation || !b->key_end || !b->keys || !b->kinds) return 0;
  if (b->key_id ? b->key_ids > b->key_ends : b->key_ends < b->n) return 0;
  for (uint32_t c = 0; c < b->fields; c++) {
    if (b->kinds[c] != STREAMS_KIND_WORD) {
      if (b->kinds[c] > STREAMS_KIND_DOUBLE || !b->typed[c]) return 0;
      continue;
    }
    if (!b->item_id[c] || !b->word_end[c] || !b->words[c]) return 0;
    uint32_t ids = streams_ids_end(b->item_id[c], b->n);
    if (!ids || ids > b->word_ends[c]) return 0;
  }
  return 1;
}

static int streams_compact_open(const uint8_t *p, uint32_t len, streams_batch *b) {
  uint32_t sections = streams_get32(p + 12), had_ids = 0;
  __builtin_memset(b, 0, sizeof *b);
  b->is_compact = 1;
  b->n = streams_get32(p + 4);
  if (sections > (len - 16) / 16) return 1;
  for (uint32_t i = 0; i < sections; i++) {
    if (streams_optional(p, len, p + 16 + i * 16, b)) return 1;
    had_ids |= streams_get32(p + 16 + i * 16) == 12;
  }
  if (!b->n || !streams_runs_ascend(b)) return 1;
  for (uint32_t i = 0; i < sections; i++)
    if (streams_compact_section(p, len, p + 16 + i * 16, b)) return 1;
  if (b->key_id) b->key_ids = streams_ids_end(b->key_id, b->n);
  return (had_ids && (!b->key_ids || b->key_ids > STREAMS_KEY_IDS_MAX)) || !streams_compact_whole(b);
}
#endif

static int streams_batch_open(const uint8_t *p, uint32_t len, streams_batch *b) {
  const uint8_t **columns[10] = {0, &b->append_ms, &b->hlc, &b->expires_ms, &b->generation, &b->op,
                                 &b->key_end, &b->keys, &b->value_end, &b->values};
  static const uint8_t widths[10] = {0, 8, 8, 8, 8, 1, 4, 0, 4, 0};
  uint32_t seen = 0;
#ifdef STREAMS_COMPACT
  if (len >= 16 && streams_get32(p) == STREAMS_MAGIC_COMPACT && streams_get32(p + 8) <= len) return streams_compact_open(p, len, b);
  b->is_compact = 0;
#endif
  if (len < 16 || streams_get32(p) != STREAMS_MAGIC || streams_get32(p + 8) > len) return 1;
  b->n = streams_get32(p + 4);
  for (uint32_t i = 0; i < STREAMS_TYPED; i++) b->typed[i] = b->item_id[i] = 0;
  b->key_id = b->runs = 0;
  b->key_ids = b->n_runs = 0;
  uint32_t sections = streams_get32(p + 12);
  if (sections > (len - 16) / 16) return 1;
  for (uint32_t i = 0; i < sections; i++) {
    const uint8_t *s = p + 16 + i * 16;
    uint32_t id = streams_get32(s), at = streams_get32(s + 4), size = streams_get32(s + 8);
    if (streams_optional(p, len, s, b)) return 1;
    if (id == 0 || id > 9) continue; /* unknown sections are ignored */
    if (at > len || size > len - at || size / (widths[id] ? widths[id] : 1) < (widths[id] ? b->n : 0)) return 1;
    *columns[id] = p + at;
    seen |= 1u << id;
  }
  if (b->key_id) b->key_ids = streams_ids_end(b->key_id, b->n);
  if (b->key_ids > STREAMS_KEY_IDS_MAX || !b->key_ids) b->key_id = 0; /* a selection of few of many */
  if (!streams_runs_ascend(b)) { b->runs = 0; b->n_runs = 0; }
  return seen != 0x3fe;
}

/* The events with which each of the ids comes first, in their order; how many. `firsts`: room for one of each id. */
STREAMS_APART STREAMS_UNUSED static uint32_t streams_first_of_ids(const uint8_t *ids, uint32_t ids_end, uint32_t n, uint32_t *firsts) {
  uint8_t *seen = streams_scratch(ids_end);
  uint32_t found = 0;
  __builtin_memset(seen, 0, ids_end);
#pragma clang loop unroll_count(8)
  for (uint32_t i = 0; i < n; i++) {
    uint32_t id = streams_get32(ids + 4 * i);
    if (seen[id]) continue;
    seen[id] = 1;
    firsts[found++] = i;
  }
  return found;
}

/* A pointer for each key id of the batch, NULL at first; NULL when it has none. */
STREAMS_UNUSED static void *streams_by_key_id(const streams_batch *b) {
  if (!b->key_id) return 0;
  uint32_t size = b->key_ids * sizeof(void *);
  void *found = streams_scratch(size);
  __builtin_memset(found, 0, size);
  return found;
}

/* Whether the batch holds nothing but puts. */
STREAMS_UNUSED static int streams_all_puts(const streams_batch *b) {
  uint8_t any = 0;
#ifdef STREAMS_COMPACT
  if (b->is_compact) return 1;
#endif
  for (uint32_t i = 0; i < b->n; i++) any |= b->op[i];
  return !any;
}

/* Where the run that begins with event i ends; without runs each event is one. *run: its number, 0 at first. */
STREAMS_INLINE uint32_t streams_run_end(const streams_batch *b, uint32_t i, uint32_t *run) {
  if (!b->runs) return i + 1;
  return ++*run < b->n_runs ? streams_get32(b->runs + 4 * *run) : b->n;
}

/* Where the key of event i lies in b->keys: from *at, so many bytes. */
STREAMS_INLINE uint32_t streams_key_span(const streams_batch *b, uint32_t i, uint32_t *at) {
#ifdef STREAMS_COMPACT
  if (b->is_compact && b->key_id) i = streams_get32(b->key_id + 4 * i);
#endif
  *at = i ? streams_get32(b->key_end + 4 * (i - 1)) : 0;
  return streams_get32(b->key_end + 4 * i) - *at;
}

STREAMS_INLINE const uint8_t *streams_event_key(const streams_batch *b, uint32_t i, uint32_t *len) {
  uint32_t at;
  *len = streams_key_span(b, i, &at);
  return b->keys + at;
}

#ifdef STREAMS_COMPACT
/* A word of value field c, by its id. */
STREAMS_INLINE const uint8_t *streams_word(const streams_batch *b, uint32_t c, uint32_t id, uint32_t *len) {
  uint32_t at = id ? streams_get32(b->word_end[c] + 4 * (id - 1)) : 0;
  *len = streams_get32(b->word_end[c] + 4 * id) - at;
  return b->words[c] + at;
}

/* The run that an event is of; most events that are looked at are of the one before's. */
STREAMS_INLINE uint32_t streams_run_of(const streams_batch *b, uint32_t i) {
  static uint32_t latest;
  uint32_t low = 0, high = b->n_runs, run = latest;
  if (run < high && streams_get32(b->runs + 4 * run) <= i && (run + 1 == high || i < streams_get32(b->runs + 4 * (run + 1)))) return run;
  while (high - low > 1) {
    uint32_t middle = (low + high) / 2;
    if (streams_get32(b->runs + 4 * middle) <= i) low = middle;
    else high = middle;
  }
  return latest = low;
}

static struct { uint8_t *p; uint32_t cap; } streams_made; /* the value that was made last */

/* The value of event i, made of its columns. */
STREAMS_APART static const uint8_t *streams_make_value(const streams_batch *b, uint32_t i, uint32_t *size) {
  const uint8_t *words[STREAMS_TYPED];
  uint32_t lens[STREAMS_TYPED], need = 5;
  for (uint32_t c = 0; c < b->fields; c++) {
    lens[c] = 10;
    if (b->kinds[c] == STREAMS_KIND_WORD) words[c] = streams_word(b, c, streams_get32(b->item_id[c] + 4 * i), &lens[c]);
    need += lens[c];
  }
  if (need > streams_made.cap) {
    uint32_t k;
    if (streams_made.cap) streams_free(streams_made.p, streams_made.cap);
    streams_made.cap = streams_class(need, &k);
    streams_made.p = streams_malloc(streams_made.cap);
  }
  uint8_t *to = streams_write_prefix(streams_made.p, b->schema_id);
  for (uint32_t c = 0; c < b->fields; c++) {
    if (b->kinds[c] == STREAMS_KIND_WORD) {
      streams_copy(to, words[c], lens[c]);
      to += lens[c];
    } else if (b->kinds[c] == STREAMS_KIND_DOUBLE) {
      to = streams_write_double(to, streams_get_f64(b->typed[c] + 8 * i));
    } else {
      to = streams_write_long(to, (int64_t)streams_get64(b->typed[c] + 8 * i));
    }
  }
  *size = (uint32_t)(to - streams_made.p);
  return streams_made.p;
}
#endif

STREAMS_INLINE void streams_event_read(const streams_batch *b, uint32_t i, streams_event *e) {
  uint32_t moment = i;
  e->index = i;
  e->key = streams_event_key(b, i, &e->key_len);
#ifdef STREAMS_COMPACT
  if (b->is_compact) {
    moment = streams_run_of(b, i);
    e->op = STREAMS_OP_PUT;
    e->value = streams_make_value(b, i, &e->value_len);
  } else
#endif
  {
    uint32_t value_at = i ? streams_get32(b->value_end + 4 * (i - 1)) : 0;
    e->op = b->op[i];
    e->value = b->values + value_at;
    e->value_len = streams_get32(b->value_end + 4 * i) - value_at;
  }
  e->append_ms = (int64_t)streams_get64(b->append_ms + 8 * moment);
  e->hlc = streams_get64(b->hlc + 8 * moment);
  e->expires_ms = (int64_t)streams_get64(b->expires_ms + 8 * moment);
  e->generation = streams_get64(b->generation + 8 * moment);
}

/* ---- answers ---- */

static streams_desc streams_out;

STREAMS_INLINE streams_desc *streams_answer(const void *p, uint32_t len, int32_t status) {
  streams_out.ptr = (uint32_t)(uintptr_t)p;
  streams_out.len = len;
  streams_out.status = status;
  return &streams_out;
}


typedef struct { uint32_t index; const char *reason; uint32_t len; } streams_rejected;
typedef struct { streams_rejected *list; uint32_t n, cap, bytes; } streams_reject_list;

/* Notes that event i was rejected, for the reason given to streams_reject. */
STREAMS_COLD STREAMS_UNUSED static void streams_add_reject(streams_reject_list *r, uint32_t i) {
  if (r->n == r->cap) {
    uint32_t grown = r->cap ? r->cap * 4 : 64;
    streams_rejected *list = streams_scratch(grown * sizeof *list);
    if (r->n) __builtin_memcpy(list, r->list, r->n * sizeof *list);
    r->list = list;
    r->cap = grown;
  }
  uint32_t len = 0;
  while (streams_reason[len]) len++;
  r->list[r->n++] = (streams_rejected){i, streams_reason, len};
  r->bytes += len;
}

typedef struct { uint8_t *data; uint32_t n, cap; } streams_buffer;

STREAMS_UNUSED static void streams_buffer_add(streams_buffer *b, const void *p, uint32_t n) {
  if (n > b->cap - b->n) {
    uint32_t k, cap = streams_class((b->n + n) * 2, &k);
    uint8_t *data = streams_malloc(cap);
    if (b->n) __builtin_memcpy(data, b->data, b->n);
    if (b->cap) streams_free(b->data, b->cap);
    b->data = data;
    b->cap = cap;
  }
  if (n) __builtin_memcpy(b->data + b->n, p, n);
  b->n += n;
}

#endif
