/* streams_rows.h: what fold modules share: rows and their cells, the row cache, changed rows, batches, rejects, outputs.
 *
 * streams.h builds the usual fold on it (one event, one row, the row's key is the event's). A module whose rows have other
 * keys includes this file and exports `streams_prepare` and `streams_fold` itself (telemetry/, anomaly/).
 * With STREAMS_NATIVE defined, a cell's payload is kept as the module likes it (`cell.payload.heap`, NULL when new), through
 * four functions that the module defines:
 *     streams_native_size(row, native) -> at most so many bytes, streams_native_write(row, native, to) -> length,
 *     streams_native_free(native),
 *     streams_native_read(row, &native, from, len) -> 0 = good. */
#ifndef STREAMS_ROWS_H
#define STREAMS_ROWS_H

#include "streams_batch.h"

enum { STREAMS_MERGE_LWW = 1, STREAMS_MERGE_COUNTER = 2, STREAMS_MERGE_MAX = 3, STREAMS_MERGE_MIN = 4, STREAMS_MERGE_OPAQUE = 127 };
enum { STREAMS_MAX_CELLS = 16, STREAMS_TAKE_BYTES = 1 << 20, STREAMS_SORT_FROM = 64 };
#ifndef STREAMS_MERGE
#error "STREAMS_MERGE is not defined: build with `streams udf build`, or -DSTREAMS_MERGE=STREAMS_MERGE_COUNTER"
#endif
typedef struct {
  uint64_t start_hlc, last_hlc;
  int64_t expires_ms;
  uint32_t len, cap; /* payload; cap = 0: in `small` */
  union { uint8_t small[16]; uint8_t *heap; } payload;
} streams_cell;

typedef struct {
  uint64_t deleted_hlc, last_hlc;
  streams_cell *cells;
  uint32_t n_cells, cap_cells, key_len, hash, asked, number; /* number: the round's, if it was asked for in it */
  uint8_t known, exists, dirty, touched;
  streams_cell first; /* storage of the first cell; the key's bytes follow the struct */
} streams_row;

#ifdef STREAMS_NATIVE
static uint32_t streams_native_size(const streams_row *r, const void *native);
static uint32_t streams_native_write(const streams_row *r, const void *native, uint8_t *to);
static int streams_native_read(const streams_row *r, uint8_t **native, const uint8_t *from, uint32_t len);
static void streams_native_free(void *native);
#endif

STREAMS_INLINE uint8_t *streams_payload(streams_cell *c) { return c->cap ? c->payload.heap : c->payload.small; }

STREAMS_INLINE uint64_t streams_cell_mark(const streams_cell *c) {
  return STREAMS_MERGE == STREAMS_MERGE_LWW ? c->last_hlc : c->start_hlc;
}

/* ---- cells ---- */

STREAMS_INLINE void streams_cell_free(streams_cell *c) {
#ifdef STREAMS_NATIVE
  if (c->payload.heap) streams_native_free(c->payload.heap);
  c->payload.heap = 0;
#else
  if (c->cap) streams_free(c->payload.heap, c->cap);
#endif
  c->cap = 0;
  c->len = 0;
}

#ifndef STREAMS_NATIVE
STREAMS_COLD STREAMS_UNUSED static void streams_cell_resize(streams_cell *c, uint32_t len) {
  if (len > (c->cap ? c->cap : sizeof c->payload.small)) {
    uint32_t k, cap = streams_class(len, &k);
    uint8_t *p = streams_malloc(cap);
    streams_copy(p, streams_payload(c), c->len);
    if (c->cap) streams_free(c->payload.heap, c->cap);
    c->cap = cap;
    c->payload.heap = p;
  }
  if (len > c->len) __builtin_memset(streams_payload(c) + c->len, 0, len - c->len);
  c->len = len;
}
#endif

/* Drops cells started (lww: last written) at or before `deleted`, or expired at or before expired_ms. */
STREAMS_COLD static void streams_drop_cells(streams_row *r, uint64_t deleted, int64_t expired_ms) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < r->n_cells; i++) {
    streams_cell *c = &r->cells[i];
    if (streams_cell_mark(c) <= deleted || c->expires_ms <= expired_ms) {
      streams_cell_free(c);
    } else {
      if (kept != i) r->cells[kept] = *c;
      kept++;
    }
  }
  r->n_cells = kept;
}

STREAMS_COLD static streams_cell *streams_append_cell(streams_row *r) {
  if (r->n_cells == STREAMS_MAX_CELLS) {
    streams_cell_free(&r->cells[0]);
    for (uint32_t i = 1; i < r->n_cells; i++) r->cells[i - 1] = r->cells[i];
    r->n_cells--;
  }
  if (r->n_cells == r->cap_cells) {
    uint32_t cap = r->cap_cells * 4;
    streams_cell *cells = streams_malloc(cap * sizeof *cells);
    for (uint32_t i = 0; i < r->n_cells; i++) cells[i] = r->cells[i];
    if (r->cap_cells > 1) streams_free(r->cells, r->cap_cells * sizeof *cells);
    r->cells = cells;
    r->cap_cells = cap;
  }
  streams_cell *c = &r->cells[r->n_cells++];
  c->len = c->cap = 0;
#ifdef STREAMS_NATIVE
  c->payload.heap = 0;
#endif
  return c;
}

/* ---- rows: cache key -> row, and the list of changed rows ---- */

typedef struct { uint32_t hash; streams_row *row; } streams_slot;
static streams_slot *streams_slots;
static uint32_t streams_slot_cap, streams_slot_used;
typedef struct { streams_row **rows; uint32_t n, cap; } streams_row_list;
static streams_row_list streams_dirty;
static uint32_t streams_dirty_at;

STREAMS_INLINE uint8_t *streams_row_key(streams_row *r) { return (uint8_t *)(r + 1); }

STREAMS_COLD static void streams_grow_list(streams_row_list *l) {
  uint32_t cap = l->cap ? l->cap * 2 : 1024;
  streams_row **rows = streams_malloc(cap * sizeof *rows);
  if (l->n) __builtin_memcpy(rows, l->rows, l->n * sizeof *rows);
  if (l->cap) streams_free(l->rows, l->cap * sizeof *rows);
  l->rows = rows;
  l->cap = cap;
}

STREAMS_INLINE void streams_list_row(streams_row_list *l, streams_row *r) {
  if (l->n == l->cap) streams_grow_list(l);
  l->rows[l->n++] = r;
}

STREAMS_INLINE void streams_mark_dirty(streams_row *r) {
  if (r->dirty) return;
  r->dirty = 1;
  streams_list_row(&streams_dirty, r);
}

/* For rows of one cell whose keys are not the event's: the cell that the event continues, or a new one in its place when
 * there is none or it has expired (`clock`: the later of its hlc and its time of acceptance). Deletes of the event's own key
 * (its generation) do not reach such rows. */
STREAMS_INLINE streams_cell *streams_touch_at(streams_row *r, uint64_t clock, int64_t append_ms, int64_t expires_ms) {
  uint64_t h = streams_max(clock, streams_max(r->last_hlc, r->deleted_hlc) + 1);
  r->exists = 1;
  streams_mark_dirty(r);
  if (r->n_cells && r->cells[r->n_cells - 1].expires_ms <= append_ms) streams_drop_cells(r, UINT64_MAX, INT64_MIN);
  streams_cell *c = r->n_cells ? &r->cells[r->n_cells - 1] : 0;
  if (!c) {
    c = streams_append_cell(r);
    c->start_hlc = h;
    c->expires_ms = expires_ms;
  }
  c->last_hlc = r->last_hlc = h;
  c->expires_ms = streams_max_i64(c->expires_ms, expires_ms);
  return c;
}

STREAMS_INLINE streams_cell *streams_touch_single(const streams_event *e, streams_row *r) {
  return streams_touch_at(r, streams_max(e->hlc, (uint64_t)e->append_ms << 16), e->append_ms, e->expires_ms);
}

STREAMS_COLD static void streams_grow_slots(void) {
  uint32_t cap = streams_slot_cap ? streams_slot_cap * 2 : 4096;
  streams_slot *slots = streams_malloc(cap * sizeof *slots);
  __builtin_memset(slots, 0, cap * sizeof *slots);
  for (uint32_t i = 0; i < streams_slot_cap; i++) {
    if (!streams_slots[i].row) continue;
    uint32_t at = streams_slots[i].hash & (cap - 1);
    while (slots[at].row) at = (at + 1) & (cap - 1);
    slots[at] = streams_slots[i];
  }
  if (streams_slot_cap) streams_free(streams_slots, streams_slot_cap * sizeof *slots);
  streams_slots = slots;
  streams_slot_cap = cap;
}

STREAMS_COLD static streams_row *streams_new_row(const uint8_t *key, uint32_t len, uint32_t hash) {
  streams_row *r = streams_malloc(sizeof *r + len);
  streams_zero(r, sizeof *r);
  r->cells = &r->first;
  r->cap_cells = 1;
  r->key_len = len;
  r->hash = hash;
  streams_copy(streams_row_key(r), key, len);
  return r;
}

STREAMS_INLINE streams_row *streams_find_hashed(const uint8_t *key, uint32_t len, uint32_t hash) {
  if (streams_slot_used * 2 >= streams_slot_cap) streams_grow_slots();
  uint32_t mask = streams_slot_cap - 1, at = hash & mask;
  for (;; at = (at + 1) & mask) {
    streams_slot *s = &streams_slots[at];
    if (!s->row) {
      s->hash = hash;
      s->row = streams_new_row(key, len, hash);
      streams_slot_used++;
      return s->row;
    }
    if (s->hash == hash && s->row->key_len == len && streams_equal(streams_row_key(s->row), key, len)) return s->row;
  }
}

/* The cached row of a key; made, as not yet known, when it is not cached. */
STREAMS_INLINE streams_row *streams_find(const uint8_t *key, uint32_t len) {
  return streams_find_hashed(key, len, streams_hash(key, len));
}

/* Many rows in turn are in no cache of the processor, and each look then waits for memory, most of them for the one before.
 * Loads that depend on nothing overlap: so what the next few events will look at is loaded ahead, and only that. */
enum { STREAMS_AHEAD = 32, STREAMS_ROWS_NEAR = 4096 }; /* fewer rows than this are at hand anyway */
static volatile uint32_t streams_loaded;

/* The hashes of the keys of n events, at most STREAMS_AHEAD, and their rows loaded. */
STREAMS_UNUSED static void streams_rows_ahead(const streams_batch *b, const uint32_t *events, uint32_t n, uint32_t *hashes) {
  uint32_t sum = 0;
  const streams_row *rows[STREAMS_AHEAD];
  for (uint32_t i = 0; i < n; i++) {
    uint32_t len;
    const uint8_t *key = streams_event_key(b, events[i], &len);
    hashes[i] = streams_hash(key, len);
  }
  if (streams_slot_used < STREAMS_ROWS_NEAR) return;
  for (uint32_t i = 0; i < n; i++) rows[i] = streams_slots[hashes[i] & (streams_slot_cap - 1)].row;
  for (uint32_t i = 0; i < n; i++) sum += rows[i] ? rows[i]->hash + rows[i]->first.len + *(const uint8_t *)(rows[i] + 1) : 0;
  streams_loaded = sum;
}

/* The rows of the keys of n events. */
STREAMS_APART STREAMS_UNUSED static void streams_find_rows(const streams_batch *b, const uint32_t *events, uint32_t n, streams_row **rows) {
  uint32_t hashes[STREAMS_AHEAD];
  for (uint32_t from = 0; from < n; from += STREAMS_AHEAD) {
    uint32_t some = n - from < STREAMS_AHEAD ? n - from : STREAMS_AHEAD;
    streams_rows_ahead(b, events + from, some, hashes);
    for (uint32_t i = 0; i < some; i++) {
      uint32_t len;
      const uint8_t *key = streams_event_key(b, events[from + i], &len);
      rows[from + i] = streams_find_hashed(key, len, hashes[i]);
    }
  }
}

/* The cells of the next rows are loaded, and what their payloads begin with. */
STREAMS_APART STREAMS_UNUSED static void streams_cells_ahead(streams_row *const *rows, uint32_t left) {
  uint32_t n = left < STREAMS_AHEAD ? left : STREAMS_AHEAD, sum = 0;
  if (streams_slot_used < STREAMS_ROWS_NEAR) return;
  for (uint32_t i = 0; i < n; i++) sum += (uint32_t)rows[i]->last_hlc + rows[i]->known + rows[i]->first.cap;
  for (uint32_t i = 0; i < n; i++) sum += rows[i]->n_cells ? *streams_payload(&rows[i]->first) : 0;
  streams_loaded = sum;
}

#ifdef STREAMS_EVICT
/* With STREAMS_EVICT defined, rows that the module does not hold are forgotten when they have been taken: while they are in
 * the processor's cache, and so that their memory serves the next. Holds are counted in `touched`; only the module's tables
 * of pointers to rows need them, what a round found is valid until its fold. */
enum { STREAMS_LISTED = 0x80 };
static streams_row_list streams_listed;

STREAMS_INLINE void streams_hold(streams_row *r) { r->touched++; }

/* The row is not held any more. One without changes is on a list until the next take. */
STREAMS_UNUSED static void streams_let_go(streams_row *r) {
  if (--r->touched || r->dirty) return;
  r->touched = STREAMS_LISTED;
  streams_list_row(&streams_listed, r);
}

static void streams_evict_row(streams_row *r) {
  uint32_t mask = streams_slot_cap - 1, hole = r->hash & mask;
  while (streams_slots[hole].row != r) hole = (hole + 1) & mask;
  for (uint32_t at = (hole + 1) & mask; streams_slots[at].row; at = (at + 1) & mask) {
    if (((at - streams_slots[at].hash) & mask) < ((at - hole) & mask)) continue; /* it would come before its place */
    streams_slots[hole] = streams_slots[at];
    hole = at;
  }
  streams_slots[hole].row = 0;
  streams_slot_used--;
  streams_drop_cells(r, UINT64_MAX, INT64_MIN);
  if (r->cap_cells > 1) streams_free(r->cells, r->cap_cells * sizeof *r->cells);
  streams_free(r, sizeof *r + r->key_len);
}

static void streams_evict_listed(void) {
  for (uint32_t i = 0; i < streams_listed.n; i++) {
    streams_row *r = streams_listed.rows[i];
    r->touched -= STREAMS_LISTED;
    if (!r->touched) streams_evict_row(r);
  }
  streams_listed.n = 0;
}
#endif

/* What a cell's payload is when it is stored. With STREAMS_NATIVE the module keeps it in memory in a form of its own. */
#ifdef STREAMS_NATIVE
#define streams_payload_size(r, c) streams_native_size(r, (c)->payload.heap)
#define streams_payload_write(r, c, p) streams_native_write(r, (c)->payload.heap, p)
#define streams_payload_read(r, c, p, len) streams_native_read(r, &(c)->payload.heap, p, len)
#else
#define streams_payload_size(r, c) ((void)(r), (c)->len)
STREAMS_INLINE uint32_t streams_payload_write(const streams_row *r, streams_cell *c, uint8_t *p) {
  (void)r;
  streams_copy(p, streams_payload(c), c->len);
  return c->len;
}
STREAMS_INLINE int streams_payload_read(const streams_row *r, streams_cell *c, const uint8_t *p, uint32_t len) {
  (void)r;
  streams_cell_resize(c, len);
  streams_copy(streams_payload(c), p, len);
  return 0;
}
#endif

static uint32_t streams_row_size(const streams_row *r) {
  uint32_t n = 32;
  for (uint32_t i = 0; i < r->n_cells; i++) n += 28 + streams_payload_size(r, &r->cells[i]);
  return n;
}

static uint8_t *streams_row_write(streams_row *r, uint8_t *p) {
  p[0] = 1;
  p[1] = STREAMS_MERGE;
  streams_put16(p + 2, (uint16_t)r->n_cells);
  streams_put32(p + 4, 0);
  streams_put64(p + 8, 0); /* seq: the host's */
  streams_put64(p + 16, r->deleted_hlc);
  streams_put64(p + 24, r->last_hlc);
  p += 32;
  for (uint32_t i = 0; i < r->n_cells; i++) {
    streams_cell *c = &r->cells[i];
    streams_put64(p, c->start_hlc);
    streams_put64(p + 8, c->last_hlc);
    streams_put64(p + 16, (uint64_t)c->expires_ms);
    uint32_t len = streams_payload_write(r, c, p + 28);
    streams_put32(p + 24, len);
    p += 28 + len;
  }
  return p;
}

/* Reads a stored row; 0 = good, else it is malformed or of another merge type. */
static int streams_row_read(streams_row *r, const uint8_t *p, uint32_t len) {
  const uint8_t *end = p + len;
  if (len < 32 || p[0] != 1 || p[1] != STREAMS_MERGE) return 1;
  uint32_t n = streams_get16(p + 2);
  if (n > (STREAMS_MERGE == STREAMS_MERGE_LWW ? 1 : STREAMS_MAX_CELLS)) return 1;
  r->deleted_hlc = streams_get64(p + 16);
  r->last_hlc = streams_get64(p + 24);
  p += 32;
  for (uint32_t i = 0; i < n; i++) {
    if (end - p < 28 || (uint32_t)(end - p - 28) < streams_get32(p + 24)) return 1;
    streams_cell *c = streams_append_cell(r);
    c->start_hlc = streams_get64(p);
    c->last_hlc = streams_get64(p + 8);
    c->expires_ms = (int64_t)streams_get64(p + 16);
    if (streams_payload_read(r, c, p + 28, streams_get32(p + 24))) return 1;
    p += 28 + streams_get32(p + 24);
  }
  r->exists = 1;
  return p != end;
}

/* ---- fold of one event: SPEC "Fold of one event e into its row r" ---- */

static int streams_purge(const streams_event *e, streams_row *r) {
  streams_reader body = streams_body(e);
  uint64_t generation = (uint64_t)streams_read_long(&body);
  int64_t before_ms = streams_read_long(&body);
  uint64_t last_hlc = (uint64_t)streams_read_long(&body);
  int remove = streams_read_boolean(&body);
  if (body.error) return streams_reject("malformed purge");
  if (!r->exists) return 0;
  uint32_t cells = r->n_cells;
  uint64_t deleted = r->deleted_hlc;
  r->deleted_hlc = streams_max(deleted, generation);
  streams_drop_cells(r, generation, before_ms);
  if (remove && !r->n_cells && r->last_hlc == last_hlc) {
    r->exists = 0;
    r->deleted_hlc = r->last_hlc = 0;
    streams_mark_dirty(r);
  } else if (cells != r->n_cells || deleted != r->deleted_hlc) {
    streams_mark_dirty(r);
  }
  return 0;
}

/* ---- exports that every fold module shares; prepare and fold are streams.h's, or the module's own ---- */

static uint32_t streams_round_ptr, streams_round_n, streams_round_id;
static streams_batch streams_round; /* the batch that was prepared */

/* 0: this is not the batch that was prepared. */
STREAMS_UNUSED static int streams_is_prepared(const uint8_t *p) {
  return streams_round_ptr == (uint32_t)(uintptr_t)p && p && streams_round_n == streams_round.n;
}

STREAMS_EXPORT("streams_abi_v1") int32_t streams_abi_v1(void) { return 1; }
#ifdef STREAMS_COMPACT
STREAMS_EXPORT("streams_compact_v1") int32_t streams_compact_v1(void) { return 1; }
#endif

/* The rows that the round being prepared lacks: begin, ask for each row needed (as often as one likes), answer. */
static streams_row **streams_missing;
static uint32_t streams_missing_n, streams_missing_bytes;

STREAMS_UNUSED static void streams_ask_begin(uint32_t most) {
  streams_missing = streams_scratch(most * sizeof *streams_missing + 16);
  streams_missing_n = streams_missing_bytes = 0;
  streams_round_id++;
}

STREAMS_INLINE void streams_ask(streams_row *r) {
  if (r->known || r->asked == streams_round_id) return;
  r->asked = streams_round_id;
  streams_missing[streams_missing_n++] = r;
  streams_missing_bytes += r->key_len;
}

STREAMS_UNUSED static streams_desc *streams_answer_missing(const uint8_t *batch, uint32_t events) {
  uint32_t n = streams_missing_n, len = 4 + 4 * n + streams_missing_bytes;
  uint8_t *out = streams_scratch(len), *keys = out + 4 + 4 * n, *key = keys;
  streams_put32(out, n);
  for (uint32_t i = 0; i < n; i++) {
    streams_copy(key, streams_row_key(streams_missing[i]), streams_missing[i]->key_len);
    key += streams_missing[i]->key_len;
    streams_put32(out + 4 + 4 * i, (uint32_t)(key - keys));
  }
  streams_round_ptr = (uint32_t)(uintptr_t)batch;
  streams_round_n = events;
  return streams_answer(out, len, 0);
}

/* The answer of a fold; the round is over. */
STREAMS_UNUSED static streams_desc *streams_answer_rejects(const streams_reject_list *r) {
  uint8_t *out = streams_scratch(4 + 8 * r->n + r->bytes), *text = out + 4 + 8 * r->n;
  streams_put32(out, r->n);
  for (uint32_t i = 0; i < r->n; i++) {
    streams_copy(text, r->list[i].reason, r->list[i].len);
    text += r->list[i].len;
    streams_put32(out + 4 + 4 * i, r->list[i].index);
    streams_put32(out + 4 + 4 * r->n + 4 * i, (uint32_t)(text - (out + 4 + 8 * r->n)));
  }
  streams_round_ptr = 0;
  streams_round_over = 1;
  return streams_answer(out, 4 + 8 * r->n + r->bytes, 0);
}

STREAMS_EXPORT("streams_load") int32_t streams_load(const uint8_t *p, uint32_t len) {
  uint32_t n = len < 4 ? 0 : streams_get32(p);
  if (len < 4 || n > (len - 4) / 9) return -1;
  const uint8_t *key_end = p + 4, *row_end = key_end + 4 * n, *present = row_end + 4 * n, *keys = present + n;
  const uint8_t *rows = keys + (n ? streams_get32(key_end + 4 * (n - 1)) : 0);
  for (uint32_t i = 0, key_at = 0, row_at = 0; i < n; i++) {
    uint32_t ke = streams_get32(key_end + 4 * i), re = streams_get32(row_end + 4 * i);
    streams_row *r = streams_find(keys + key_at, ke - key_at);
    if (!r->known && present[i] && streams_row_read(r, rows + row_at, re - row_at)) return -2;
    r->known = 1;
    key_at = ke;
    row_at = re;
  }
  return 0;
}

/* Tells the host how large the next commit would be. */
STREAMS_EXPORT("streams_changed") uint32_t streams_changed(void) { return streams_dirty.n - streams_dirty_at; }

/* Many changed rows are given in about the order of their keys: whoever puts them into an ordered store, the worker and all who
 * follow its changelog, pays half as much for them then. About: by the eight bytes that follow what all keys begin with. */
typedef struct { uint64_t key; streams_row *row; } streams_order;

STREAMS_INLINE uint64_t streams_key_order(streams_row *r, uint32_t from) {
  uint8_t bytes[8] = {0};
  uint64_t key;
  uint32_t n = r->key_len - from < 8 ? r->key_len - from : 8;
  for (uint32_t i = 0; i < n; i++) bytes[i] = streams_row_key(r)[from + i];
  __builtin_memcpy(&key, bytes, 8);
  return __builtin_bswap64(key);
}

STREAMS_APART static void streams_sort_dirty(void) {
  uint32_t n = streams_dirty.n, same = n ? streams_dirty.rows[0]->key_len : 0;
  if (n < STREAMS_SORT_FROM) return;
  for (uint32_t i = 1; i < n; i++) {
    const uint8_t *a = streams_row_key(streams_dirty.rows[0]), *b = streams_row_key(streams_dirty.rows[i]);
    uint32_t at = 0;
    if (streams_dirty.rows[i]->key_len < same) same = streams_dirty.rows[i]->key_len;
    while (at < same && a[at] == b[at]) at++;
    same = at;
  }
  streams_order *from = streams_malloc(n * sizeof *from), *to = streams_malloc(n * sizeof *to), *swap;
  uint64_t differ = 0;
  for (uint32_t i = 0; i < n; i++) {
    from[i] = (streams_order){streams_key_order(streams_dirty.rows[i], same), streams_dirty.rows[i]};
    differ |= from[i].key ^ from[0].key;
  }
  for (uint32_t shift = 0; shift < 64; shift += 8) { /* a radix sort, from the last byte to the first */
    if (!(differ >> shift & 0xff)) continue;
    uint32_t at[256] = {0}, sum = 0;
    for (uint32_t i = 0; i < n; i++) at[from[i].key >> shift & 0xff]++;
    for (uint32_t b = 0; b < 256; b++) { uint32_t count = at[b]; at[b] = sum; sum += count; }
    for (uint32_t i = 0; i < n; i++) to[at[from[i].key >> shift & 0xff]++] = from[i];
    swap = from; from = to; to = swap;
  }
  for (uint32_t i = 0; i < n; i++) streams_dirty.rows[i] = from[i].row;
  streams_free(from, n * sizeof *from);
  streams_free(to, n * sizeof *to);
}

STREAMS_EXPORT("streams_take") streams_desc *streams_take(void) {
  streams_scratch_reset();
  if (!streams_dirty_at) streams_sort_dirty();
  uint32_t first = streams_dirty_at, last = first, key_bytes = 0, row_bytes = 0;
  while (last < streams_dirty.n && key_bytes + row_bytes < STREAMS_TAKE_BYTES) {
    streams_row *r = streams_dirty.rows[last++];
    key_bytes += r->key_len;
    row_bytes += r->exists ? streams_row_size(r) : 0;
  }
  uint32_t n = last - first, len = 4 + 9 * n + key_bytes + row_bytes;
  uint8_t *out = streams_scratch(len), *key_end = out + 4, *row_end = key_end + 4 * n, *present = row_end + 4 * n;
  uint8_t *keys = present + n, *rows = keys + key_bytes, *key = keys, *row = rows;
  streams_put32(out, n);
  for (uint32_t i = 0; i < n; i++) {
    streams_row *r = streams_dirty.rows[first + i];
    streams_copy(key, streams_row_key(r), r->key_len);
    key += r->key_len;
    if (r->exists) row = streams_row_write(r, row);
    streams_put32(key_end + 4 * i, (uint32_t)(key - keys));
    streams_put32(row_end + 4 * i, (uint32_t)(row - rows));
    present[i] = r->exists;
    r->dirty = 0;
#ifdef STREAMS_EVICT
    if (!r->touched) streams_evict_row(r);
#endif
  }
  streams_dirty_at = last;
  if (last == streams_dirty.n) streams_dirty_at = streams_dirty.n = 0;
  streams_round_over = 1;
#ifdef STREAMS_EVICT
  if (!streams_dirty.n) streams_evict_listed();
  streams_round_ptr = 0; /* what was prepared may have lost rows */
#endif
  return streams_answer(out, (uint32_t)(row - out), streams_dirty.n ? 1 : 0);
}

#ifdef STREAMS_OUTPUTS
/* ---- outputs: records for the topics of the manifest's `outputs` (build.py defines STREAMS_OUTPUTS, their number) ---- */

static streams_buffer streams_out_topics, streams_out_key_ends, streams_out_value_ends, streams_out_keys, streams_out_values;
static uint32_t streams_outputs_n, streams_outputs_at;

/* Writes a record to output topic `topic` (an index) in the commit that takes this event in. `value` is in wire format.
 * Which records are written must depend on the log alone, and a rejected event must write none. */
STREAMS_UNUSED static void streams_output(uint32_t topic, const void *key, uint32_t key_len, const void *value, uint32_t value_len) {
  streams_buffer_add(&streams_out_keys, key, key_len);
  streams_buffer_add(&streams_out_values, value, value_len);
  streams_buffer_add(&streams_out_topics, &topic, 4);
  streams_buffer_add(&streams_out_key_ends, &streams_out_keys.n, 4);
  streams_buffer_add(&streams_out_value_ends, &streams_out_values.n, 4);
  streams_outputs_n++;
}

STREAMS_EXPORT("streams_outputs") streams_desc *streams_outputs(void) {
  streams_scratch_reset();
  const uint8_t *key_ends = streams_out_key_ends.data, *value_ends = streams_out_value_ends.data;
  uint32_t first = streams_outputs_at, last = first;
  uint32_t key_at = first ? streams_get32(key_ends + 4 * (first - 1)) : 0, key_stop = key_at;
  uint32_t value_at = first ? streams_get32(value_ends + 4 * (first - 1)) : 0, value_stop = value_at;
  while (last < streams_outputs_n && key_stop - key_at + value_stop - value_at < STREAMS_TAKE_BYTES) {
    key_stop = streams_get32(key_ends + 4 * last);
    value_stop = streams_get32(value_ends + 4 * last++);
  }
  uint32_t n = last - first, len = 4 + 12 * n + key_stop - key_at + value_stop - value_at;
  uint8_t *out = streams_scratch(len), *p = out + 4;
  streams_put32(out, n);
  for (uint32_t i = 0; i < n; i++) {
    streams_put32(p + 4 * i, streams_get32(streams_out_topics.data + 4 * (first + i)));
    streams_put32(p + 4 * (n + i), streams_get32(key_ends + 4 * (first + i)) - key_at);
    streams_put32(p + 4 * (2 * n + i), streams_get32(value_ends + 4 * (first + i)) - value_at);
  }
  p += 12 * n;
  if (n) {
    __builtin_memcpy(p, streams_out_keys.data + key_at, key_stop - key_at);
    __builtin_memcpy(p + (key_stop - key_at), streams_out_values.data + value_at, value_stop - value_at);
  }
  streams_outputs_at = last;
  int more = last < streams_outputs_n;
  if (!more) {
    streams_outputs_at = streams_outputs_n = 0;
    streams_out_topics.n = streams_out_key_ends.n = streams_out_value_ends.n = streams_out_keys.n = streams_out_values.n = 0;
  }
  streams_round_over = 1;
  return streams_answer(out, len, more);
}
#endif

#endif
