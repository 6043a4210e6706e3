/* record_decoder: raw Kafka record batches (v2, decompressed) of one run -> batch v1 or compact, and rejects. A platform module, no UDF.
 *
 * All of SPEC's "Event record" checks, in this order: record, key, value's presence and prefix, headers, clock, schema, body.
 * The puts of a frame are events of their own: its headers and its schema are judged once, keys, TTLs and bodies for each.
 * Layouts of config, input and output: ../ABI.md, "record_decoder". */
#include "frame.h"

enum {
  R_MALFORMED = 1, R_KEY_NULL, R_KEY_EMPTY, R_KEY_LONG, R_KEY_UTF8, R_KEYSPACE, R_VALUE_NULL, R_MAGIC, R_VALUE_SHORT,
  R_HEADER, R_TTL, R_CLOCK, R_SCHEMA, /* 14..19: avro_check.h */ R_FRAME = 20
};
enum { STATUS_OK = 0, STATUS_TRUNCATED = 1, STATUS_MAGIC = 2, STATUS_INPUT = -1 };
enum { STATUS_AGAIN = -2 }; /* the records are no compact batch: they are decoded again, into a batch v1 */
enum { S_PART = 11, S_KEY_ID = 12, S_RUNS = 13, S_SCHEMA = 14, S_TYPED = 64, S_ITEM = S_TYPED + FRAME_COLUMNS_MAX };
enum { S_WORD_END = S_ITEM + FRAME_COLUMNS_MAX, S_WORDS = S_WORD_END + FRAME_COLUMNS_MAX, BUFFERS = S_WORDS + FRAME_COLUMNS_MAX };
enum { PART_NONE = -1, BATCH_HEADER = 61, CONFIG_BYTES = 48, KEY_MAX = 1024, OP_PURGE = 2, SECTIONS_MAX = S_RUNS + 2 * FRAME_COLUMNS_MAX };
enum { MAGIC_V1 = 0x31425453, MAGIC_COMPACT = 0x32425453 };
#define NEVER_MS INT64_MAX

typedef struct { uint32_t id, op, at, len; } schema_entry;
static struct {
  int64_t ttl_default_ms, ttl_min_ms, ttl_max_ms, ahead_ms;
  uint32_t prefix_len, n_schemas, frame_id, compact;
  uint8_t *bytes; /* the config as it came: prefix, schema table, programs */
  uint32_t size;
  const uint8_t *prefix;
  const schema_entry *schemas, *last;
} config;

typedef struct {
  int64_t offset, append_ms;
  uint32_t code, detail, key_at;
  int32_t key_len;
  uint32_t value_at;
  int32_t value_len, part;
  uint32_t reserved;
} reject_entry;
typedef struct { uint32_t at, len; } piece;
static struct { uint32_t pieces, n_pieces, rejects, n_rejects; int32_t status; uint32_t n; int64_t next; } out;

typedef struct {
  const uint8_t *key, *value;
  int32_t key_len, value_len; /* -1: null */
  const uint8_t *headers, *end;
  int64_t offset, append_ms, expires_ms;
  uint64_t hlc, generation;
  uint32_t op, detail;
} record;

/* Sections grow in buffers of their own, by id; the host puts the pieces together. */
static buffer sections[BUFFERS];
static const uint8_t widths[S_RUNS + 1] = {0, 8, 8, 8, 8, 1, 4, 0, 4, 0, 8, 4, 4, 0};
static struct {
  int64_t *append_ms, *expires_ms, *offset;
  uint64_t *hlc, *generation;
  uint32_t *key_end, *value_end, *key_id;
  int32_t *part;
  uint8_t *op, *keys, *values;
  uint32_t n, key_bytes, value_bytes, n_rejects, reject_bytes;
  uint32_t n_key_ids; /* given out so far: each item of each frame's keys has one */
  uint32_t n_runs;
  int frames; /* there is one among the records */
  int without_ids; /* so is something whose keys are no dictionary */
  int without_runs; /* or whose events differ in more than keys and values */
} col;
/* Whether the batch being made is a compact one: frames of one schema in which nothing is wrong, each a run. What is the same
 * for a run is written once, keys and words once an item, and values not at all. */
enum { COMPACT_COLUMNS = 4, COMPACT_KEYS_MAX = 1 << 20 };
static struct {
  int on, by_id; /* by_id: the keys of all frames so far are dictionaries; else none are */
  uint32_t n_columns, word_bytes[COMPACT_COLUMNS];
  uint8_t kinds[COMPACT_COLUMNS];
} compact;
static buffer reject_list, reject_blob; /* puts of frames stand in no input: the blob holds theirs */

/* Typed columns are passed on when all events are puts of frames of one schema, with the same kinds. */
enum { TYPED_OPEN, TYPED_ON, TYPED_OFF };
static struct {
  uint32_t state, schema_id;
  uint64_t columns, items; /* those of numbers; dictionaries of BYTES in every frame, whose ids are passed on */
  uint32_t n_ids[FRAME_COLUMNS_MAX]; /* given out so far, by column */
} typed;

/* ---- big endian and varints ---- */

STREAMS_INLINE uint64_t be64(const uint8_t *p) { return __builtin_bswap64(streams_get64(p)); }
STREAMS_INLINE uint32_t be32(const uint8_t *p) { return __builtin_bswap32(streams_get32(p)); }
STREAMS_INLINE uint16_t be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

/* A zigzag varint; 0 when it runs past end or is longer than 10 bytes. */
STREAMS_INLINE int varint(const uint8_t **p, const uint8_t *end, int64_t *out_value) {
  if (*p < end && !(**p & 0x80)) {
    uint32_t u = *(*p)++;
    *out_value = (int64_t)(u >> 1) ^ -(int64_t)(u & 1);
    return 1;
  }
  uint64_t u = 0;
  for (uint32_t shift = 0; shift < 70 && *p < end; shift += 7) {
    uint8_t b = *(*p)++;
    u |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) { *out_value = (int64_t)(u >> 1) ^ -(int64_t)(u & 1); return 1; }
  }
  return 0;
}

/* A length-prefixed field: length -1 (null) to what is left. */
STREAMS_INLINE int field(const uint8_t **p, const uint8_t *end, const uint8_t **at, int32_t *len) {
  int64_t n;
  if (!varint(p, end, &n) || n < -1 || n > end - *p) return 0;
  *at = *p;
  *len = (int32_t)n;
  if (n > 0) *p += n;
  return 1;
}

static int decimal(const uint8_t *p, int32_t len, uint64_t *value) {
  uint64_t v = 0;
  if (len < 1 || len > 20) return 0;
  for (int32_t i = 0; i < len; i++) {
    uint32_t d = (uint32_t)p[i] - '0';
    if (d > 9 || v > (UINT64_MAX - d) / 10) return 0;
    v = v * 10 + d;
  }
  *value = v;
  return 1;
}

/* ---- checks of one record: 0 or a reason ---- */

STREAMS_INLINE int check_key(const record *r) {
  if (r->key_len < 0) return R_KEY_NULL;
  if (r->key_len == 0) return R_KEY_EMPTY;
  if (r->key_len > KEY_MAX) return R_KEY_LONG;
  if (!utf8_valid(r->key, (uint32_t)r->key_len)) return R_KEY_UTF8;
  if ((uint32_t)r->key_len <= config.prefix_len || !streams_equal(r->key, config.prefix, config.prefix_len)) return R_KEYSPACE;
  return 0;
}

STREAMS_INLINE int is_name(const uint8_t *p, int32_t len, const char *name, int32_t name_len) {
  return len == name_len && streams_equal(p, name, (uint32_t)name_len);
}

static int check_headers(record *r) {
  const uint8_t *p = r->headers;
  uint64_t hlc = (uint64_t)r->append_ms << 16, generation = 0, ttl = (uint64_t)config.ttl_default_ms;
  int64_t n;
  if (!varint(&p, r->end, &n) || n < 0) return R_MALFORMED;
  int ttl_given = 0, failed = 0;
  for (; n > 0; n--) {
    const uint8_t *name, *text;
    int32_t name_len, len;
    if (!field(&p, r->end, &name, &name_len) || name_len < 0 || !field(&p, r->end, &text, &len)) return R_MALFORMED;
    if (is_name(name, name_len, "hlc", 3)) failed |= !decimal(text, len, &hlc);
    else if (is_name(name, name_len, "ttl_ms", 6)) { failed |= !decimal(text, len, &ttl); ttl_given = 1; }
    else if (is_name(name, name_len, "generation", 10)) failed |= !decimal(text, len, &generation);
    else if (is_name(name, name_len, "origin", 6)) failed |= len < 1 || !utf8_valid(text, (uint32_t)len);
  }
  if (p != r->end) return R_MALFORMED;
  if (failed) return R_HEADER;
  if (ttl_given && (ttl < (uint64_t)config.ttl_min_ms || ttl > (uint64_t)config.ttl_max_ms)) return R_TTL;
  r->hlc = hlc;
  r->generation = generation;
  r->expires_ms = ttl ? r->append_ms + (int64_t)ttl : NEVER_MS;
  return 0;
}

STREAMS_INLINE int is_ahead(uint64_t hlc, const record *r) { return (int64_t)(hlc >> 16) > r->append_ms + config.ahead_ms; }

static const schema_entry *find_schema(uint32_t id) {
  if (config.last && config.last->id == id) return config.last;
  for (uint32_t i = 0; i < config.n_schemas; i++)
    if (config.schemas[i].id == id) return config.last = &config.schemas[i];
  return 0;
}

STREAMS_INLINE int is_frame(const record *r) {
  return config.frame_id && r->value_len >= 5 && !r->value[0] && be32(r->value + 1) == config.frame_id;
}

/* A body against its schema, and what only the platform may write. */
STREAMS_INLINE int check_body(const record *r, const schema_entry *schema, const uint8_t *value, uint32_t len) {
  int code = avro_body(config.bytes + schema->at, value + 5, len - 5);
  if (code || schema->op != OP_PURGE) return code;
  streams_reader body = {value + 5, value + len, 0};
  return is_ahead((uint64_t)streams_read_long(&body), r) ? R_CLOCK : 0;
}

static int check_record(record *r) {
  int malformed = check_headers(r), code;
  if (malformed == R_MALFORMED) return R_MALFORMED;
  if ((code = check_key(r))) return code;
  if (r->value_len < 0) return R_VALUE_NULL;
  if (r->value_len > 0 && r->value[0]) return R_MAGIC;
  if (r->value_len < 5) return R_VALUE_SHORT;
  if (malformed) return malformed;
  if (is_ahead(r->hlc, r) || is_ahead(r->generation, r)) return R_CLOCK;
  uint32_t id = be32(r->value + 1);
  const schema_entry *schema = find_schema(id);
  if (!schema) { r->detail = id; return R_SCHEMA; }
  r->op = schema->op;
  return check_body(r, schema, r->value, (uint32_t)r->value_len);
}

/* ---- output ---- */

STREAMS_INLINE void *rows_room(uint32_t id, uint64_t rows, uint64_t hint) {
  return buffer_room(&sections[id], widths[id] * col.n, widths[id] * rows, widths[id] * hint);
}

/* Room for so many more events, and bytes of their keys and values. `hint`: how many times as much may follow. */
static void make_room(uint64_t rows, uint64_t key_bytes, uint64_t value_bytes, uint64_t hint) {
  col.append_ms = rows_room(1, rows, rows * hint);
  col.hlc = rows_room(2, rows, rows * hint);
  col.expires_ms = rows_room(3, rows, rows * hint);
  col.generation = rows_room(4, rows, rows * hint);
  col.op = rows_room(5, rows, rows * hint);
  col.key_end = rows_room(6, rows, rows * hint);
  col.value_end = rows_room(8, rows, rows * hint);
  col.offset = rows_room(10, rows, rows * hint);
  col.part = rows_room(S_PART, rows, rows * hint);
  col.key_id = rows_room(S_KEY_ID, rows, rows * hint);
  col.keys = buffer_room(&sections[7], col.key_bytes, key_bytes, key_bytes * hint);
  col.values = buffer_room(&sections[9], col.value_bytes, value_bytes, value_bytes * hint);
}

STREAMS_INLINE void emit(const record *r) {
  uint32_t n = col.n++;
  copy_steps(col.keys + col.key_bytes, r->key, (uint32_t)r->key_len);
  copy_steps(col.values + col.value_bytes, r->value, (uint32_t)r->value_len);
  col.append_ms[n] = r->append_ms;
  col.hlc[n] = r->hlc;
  col.expires_ms[n] = r->expires_ms;
  col.generation[n] = r->generation;
  col.offset[n] = r->offset;
  col.part[n] = PART_NONE;
  col.op[n] = (uint8_t)r->op;
  col.key_end[n] = col.key_bytes += (uint32_t)r->key_len;
  col.value_end[n] = col.value_bytes += (uint32_t)r->value_len;
}

static void emit_reject(const record *r, int code, int32_t part) {
  buffer_room(&reject_list, col.n_rejects * sizeof(reject_entry), sizeof(reject_entry), 0);
  reject_entry *list = (reject_entry *)reject_list.p;
  list[col.n_rejects++] = (reject_entry){
      r->offset, r->append_ms, (uint32_t)code, r->detail,
      r->key_len < 0 ? 0 : (uint32_t)(uintptr_t)r->key, r->key_len,
      r->value_len < 0 ? 0 : (uint32_t)(uintptr_t)r->value, r->value_len, part, 0};
}

/* A put of a frame: its key and value are kept in the blob; positions are from there until close_columns. */
static void emit_part_reject(const record *r, int code, int32_t part) {
  uint32_t key_len = (uint32_t)r->key_len, value_len = (uint32_t)r->value_len;
  uint8_t *to = buffer_room(&reject_blob, col.reject_bytes, (uint64_t)key_len + value_len, 0) + col.reject_bytes;
  __builtin_memcpy(to, r->key, key_len);
  __builtin_memcpy(to + key_len, r->value, value_len);
  emit_reject(r, code, part);
  reject_entry *made = (reject_entry *)reject_list.p + col.n_rejects - 1;
  made->key_at = col.reject_bytes;
  made->value_at = col.reject_bytes + key_len;
  col.reject_bytes += key_len + value_len;
}

typedef struct { uint32_t id, width, len; } section;

static uint32_t list_sections(section *to) {
  uint64_t columns = typed.state == TYPED_ON ? typed.columns : 0, items = typed.state == TYPED_ON ? typed.items : 0;
  uint32_t n = 0;
  for (uint32_t id = 1; id <= S_RUNS; id++) {
    if (id == S_PART && !col.frames) continue;
    if (id == S_KEY_ID && (!col.frames || col.without_ids)) continue;
    if (id == S_RUNS && (!col.frames || col.without_runs)) continue;
    uint32_t len = id == 7 ? col.key_bytes : id == 9 ? col.value_bytes : id == S_RUNS ? 4 * col.n_runs : widths[id] * col.n;
    to[n++] = (section){id, widths[id], len};
  }
  for (uint32_t c = 0; c < FRAME_COLUMNS_MAX; c++) if (columns >> c & 1) to[n++] = (section){S_TYPED + c, 8, 8 * col.n};
  for (uint32_t c = 0; c < FRAME_COLUMNS_MAX; c++) if (items >> c & 1) to[n++] = (section){S_ITEM + c, 4, 4 * col.n};
  return n;
}

static uint32_t list_compact(section *to) {
  static const uint8_t by_run[] = {1, 2, 3, 4, 10};
  uint32_t n = 0;
  for (uint32_t i = 0; i < sizeof by_run; i++) to[n++] = (section){by_run[i], 0, 8 * col.n_runs};
  to[n++] = (section){6, 0, 4 * col.n_key_ids};
  to[n++] = (section){7, 0, col.key_bytes};
  if (compact.by_id) to[n++] = (section){S_KEY_ID, 4, 4 * col.n};
  to[n++] = (section){S_RUNS, 0, 4 * col.n_runs};
  uint8_t *schema = buffer_room(&sections[S_SCHEMA], 0, 8 + compact.n_columns, 0);
  streams_put32(schema, typed.schema_id);
  streams_put32(schema + 4, compact.n_columns);
  __builtin_memcpy(schema + 8, compact.kinds, compact.n_columns);
  to[n++] = (section){S_SCHEMA, 0, 8 + compact.n_columns};
  for (uint32_t c = 0; c < compact.n_columns; c++) {
    if (compact.kinds[c] != KIND_BYTES) { to[n++] = (section){S_TYPED + c, 8, 8 * col.n}; continue; }
    to[n++] = (section){S_ITEM + c, 4, 4 * col.n};
    to[n++] = (section){S_WORD_END + c, 0, 4 * typed.n_ids[c]};
    to[n++] = (section){S_WORDS + c, 0, compact.word_bytes[c]};
  }
  return n;
}

static void close_columns(void) {
  if (!col.n) compact.on = 0; /* what is the frames' own is not known then */
  section list[SECTIONS_MAX];
  uint32_t n_sections = compact.on ? list_compact(list) : list_sections(list), at = 16 + 16 * n_sections;
  uint8_t *header = streams_scratch(at);
  piece *pieces = streams_scratch((n_sections + 1) * sizeof *pieces);
  pieces[0] = (piece){(uint32_t)(uintptr_t)header, at};
  for (uint32_t i = 0; i < n_sections; i++) {
    const section *each = &list[i];
    uint8_t *entry = header + 16 + 16 * i;
    uint32_t padded = (each->len + 7) & ~7u;
    streams_put64(buffer_room(&sections[each->id], each->len, 8, 0) + each->len, 0);
    streams_put32(entry, each->id);
    streams_put32(entry + 4, at);
    streams_put32(entry + 8, each->len);
    streams_put32(entry + 12, each->width);
    pieces[i + 1] = (piece){(uint32_t)(uintptr_t)sections[each->id].p, padded};
    at += padded;
  }
  streams_put32(header, compact.on ? MAGIC_COMPACT : MAGIC_V1);
  streams_put32(header + 4, col.n);
  streams_put32(header + 8, at);
  streams_put32(header + 12, n_sections);
  reject_entry *rejects = (reject_entry *)reject_list.p;
  for (uint32_t k = 0; k < col.n_rejects; k++) {
    if (rejects[k].part == PART_NONE) continue;
    rejects[k].key_at += (uint32_t)(uintptr_t)reject_blob.p;
    rejects[k].value_at += (uint32_t)(uintptr_t)reject_blob.p;
  }
  out.pieces = (uint32_t)(uintptr_t)pieces;
  out.n_pieces = n_sections + 1;
  out.rejects = (uint32_t)(uintptr_t)rejects;
  out.n_rejects = col.n_rejects;
  out.n = col.n;
}

/* ---- frames ---- */

/* Decides whether this frame's LONG and DOUBLE cells go on as typed columns, and of which columns ids of items do. */
static void typed_begin(const frame *f) {
  uint64_t columns = 0, items = 0;
  for (uint32_t i = 0; i < f->n_columns; i++) {
    columns |= (uint64_t)(f->columns[i].kind <= KIND_DOUBLE) << i;
    items |= (uint64_t)(f->columns[i].kind == KIND_BYTES && f->columns[i].encoding == ENC_DICTIONARY) << i;
  }
  if (typed.state == TYPED_OPEN && !col.n) {
    typed.state = TYPED_ON;
    typed.schema_id = f->schema_id;
    typed.columns = columns;
    typed.items = items;
    __builtin_memset(typed.n_ids, 0, sizeof typed.n_ids);
  }
  if (typed.state != TYPED_ON || typed.schema_id != f->schema_id || typed.columns != columns) typed.state = TYPED_OFF;
  typed.items &= items;
}

STREAMS_INLINE int has_item_ids(uint32_t c) { return typed.state == TYPED_ON && (typed.items >> c & 1); }
STREAMS_INLINE uint32_t *item_ids(uint32_t c) { return (uint32_t *)sections[S_ITEM + c].p; }

/* All columns of the frame checked and decoded. 0: something does not fit. */
static int prepare_frame(frame *f, uint32_t size, uint64_t hint) {
  uint32_t n = f->count;
  uint64_t room = frame_column_room(&f->keys, n) + 8ull * n + (f->ttl_form == TTL_EACH ? 20ull * n : 0) + n + 4096, total = 0;
  for (uint32_t i = 0; i < f->n_columns; i++) room += frame_column_room(&f->columns[i], n);
  arena_used = 0;
  buffer_room(&arena, 0, room, 0);
  if (f->keys.kind != KIND_BYTES || !frame_texts(&f->keys, n, 0, &total)) return 0;
  f->key_bytes = total;
  if (f->ttl_form == TTL_EACH && (f->ttl.kind != KIND_LONG || !frame_numbers(&f->ttl, n, arena_take(8ull * n)))) return 0;
  uint64_t lengths = 5ull * n;
  uint32_t from = typed.state == TYPED_ON ? col.n : 0;
  for (uint32_t i = 0; i < f->n_columns; i++) {
    frame_column *c = &f->columns[i];
    if (c->kind <= KIND_DOUBLE) {
      uint8_t *p = buffer_room(&sections[S_TYPED + i], 8 * from, 8ull * n, 8 * n * hint);
      if (!frame_numbers(c, n, (uint64_t *)p + from)) return 0;
      total += (c->kind == KIND_LONG ? 10ull : 8ull) * n;
    } else if (c->kind == KIND_BOOLEAN) {
      if (!frame_flags(c, n)) return 0;
      total += n;
    } else {
      if (!frame_texts(c, n, c->kind == KIND_BYTES, &total)) return 0;
      lengths += 5ull * n;
      if (has_item_ids(i)) buffer_room(&sections[S_ITEM + i], 4 * from, 4ull * n, 4 * n * hint);
    }
  }
  if (total > (uint64_t)FRAME_EXPANSION_MAX * size) return 0;
  f->value_bytes = total - f->key_bytes + lengths;
  return 1;
}

/* Each item of the keys checked once; 0: all are good. */
static int check_keys(const frame *f, uint8_t *codes) {
  int bad = 0;
  record r;
  for (uint32_t i = 0; i < f->keys.items; i++) {
    r.key = f->keys.bytes + f->keys.at[i];
    r.key_len = (int32_t)(f->keys.at[i + 1] - f->keys.at[i]);
    bad |= codes[i] = (uint8_t)check_key(&r);
  }
  return bad;
}

STREAMS_INLINE int ttl_in_range(uint64_t ttl) { return ttl >= (uint64_t)config.ttl_min_ms && ttl <= (uint64_t)config.ttl_max_ms; }

/* expires_ms of each put from row col.n on; 0: all TTLs are in range. */
static int put_expiries(const frame *f, const record *r) {
  int64_t *to = col.expires_ms + col.n;
  int bad = 0;
  if (f->ttl_form == TTL_EACH) {
    for (uint32_t i = 0; i < f->count; i++) {
      uint64_t ttl = f->ttl.numbers[i];
      bad |= ttl && !ttl_in_range(ttl);
      to[i] = ttl ? (int64_t)((uint64_t)r->append_ms + ttl) : r->expires_ms;
    }
    return bad;
  }
  int64_t expires_ms = r->expires_ms;
  if (f->ttl_form == TTL_ALL && f->ttl_ms) {
    bad = !ttl_in_range((uint64_t)f->ttl_ms);
    expires_ms = (int64_t)((uint64_t)r->append_ms + (uint64_t)f->ttl_ms);
  }
  for (uint32_t i = 0; i < f->count; i++) to[i] = expires_ms;
  return bad;
}

STREAMS_INLINE int is_bad_ttl(const frame *f, uint32_t row) {
  uint64_t ttl = f->ttl_form == TTL_EACH ? f->ttl.numbers[row] : f->ttl_form == TTL_ALL ? (uint64_t)f->ttl_ms : 0;
  return ttl && !ttl_in_range(ttl);
}

STREAMS_INLINE uint8_t *put_body(const frame *f, uint32_t row, uint64_t prefix, uint8_t *p) {
  streams_put64(p, prefix);
  p += 5;
  for (uint32_t i = 0; i < f->n_columns; i++) p = frame_put_cell(&f->columns[i], row, p);
  return p;
}

STREAMS_INLINE void fill(void *to, uint32_t at, uint64_t value, uint32_t n) {
  uint64_t *p = (uint64_t *)to + at;
  for (uint32_t i = 0; i < n; i++) p[i] = value;
}

/* The columns that are the same for all puts of a frame, at rows col.n … */
static void put_constants(const record *r, uint32_t n) {
  int32_t *part = col.part + col.n;
  fill(col.append_ms, col.n, (uint64_t)r->append_ms, n);
  fill(col.hlc, col.n, r->hlc, n);
  fill(col.generation, col.n, r->generation, n);
  fill(col.offset, col.n, (uint64_t)r->offset, n);
  for (uint32_t i = 0; i < n; i++) part[i] = (int32_t)i;
  __builtin_memset(col.op + col.n, (int)r->op, n);
}

/* The bodies of all rows. Inlined with `kinds` known (3 bits for each of `columns`, at most 3), all is in locals. */
STREAMS_INLINE uint8_t *put_bodies(const frame *f, uint64_t prefix, uint32_t columns, uint32_t kinds) {
  frame_column a = f->columns[0], b = f->columns[1], c = f->columns[2];
  uint32_t n = f->count, *ends = col.value_end + col.n;
  uint8_t *base = col.values, *p = base + col.value_bytes;
  a.kind = kinds & 7;
  b.kind = kinds >> 3 & 7;
  c.kind = kinds >> 6 & 7;
  for (uint32_t i = 0; i < n; i++) {
    streams_put64(p, prefix);
    p = frame_put_cell(&a, i, p + 5);
    if (columns > 1) p = frame_put_cell(&b, i, p);
    if (columns > 2) p = frame_put_cell(&c, i, p);
    ends[i] = (uint32_t)(p - base);
  }
  return p;
}

/* The shapes of the built-in schemas have loops of their own. */
static uint8_t *put_all_bodies(const frame *f, uint64_t prefix) {
  enum { READING = KIND_BYTES | KIND_DOUBLE << 3 | KIND_LONG << 6 };
  uint32_t kinds = 0, n = f->count, *ends = col.value_end + col.n;
  for (uint32_t i = 0; i < f->n_columns && i < 3; i++) kinds |= f->columns[i].kind << (3 * i);
  if (f->n_columns == 3 && kinds == READING) return put_bodies(f, prefix, 3, READING);
  if (f->n_columns == 1 && kinds == KIND_LONG) return put_bodies(f, prefix, 1, KIND_LONG);
  if (f->n_columns == 1 && kinds == KIND_DOUBLE) return put_bodies(f, prefix, 1, KIND_DOUBLE);
  if (f->n_columns == 1 && kinds == KIND_BYTES) return put_bodies(f, prefix, 1, KIND_BYTES);
  uint8_t *base = col.values, *p = base + col.value_bytes;
  for (uint32_t i = 0; i < n; i++) {
    p = put_body(f, i, prefix, p);
    ends[i] = (uint32_t)(p - base);
  }
  return p;
}

/* Rows of a frame whose puts are all good. */
static void put_good_rows(const frame *f, uint64_t prefix) {
  frame_column keys = f->keys;
  uint32_t n = f->count, *ends = col.key_end + col.n;
  uint8_t *base = col.keys, *key = base + col.key_bytes;
  for (uint32_t i = 0; i < n; i++) {
    key = frame_put_item(&keys, i, key);
    ends[i] = (uint32_t)(key - base);
  }
  if (keys.index) for (uint32_t i = 0; i < n; i++) col.key_id[col.n + i] = col.n_key_ids + keys.index[i];
  for (uint32_t c = 0; c < f->n_columns; c++) {
    if (!has_item_ids(c)) continue;
    uint32_t *ids = item_ids(c) + col.n, first = typed.n_ids[c];
    const uint32_t *index = f->columns[c].index;
    for (uint32_t i = 0; i < n; i++) ids[i] = first + index[i];
  }
  col.value_bytes = (uint32_t)(put_all_bodies(f, prefix) - col.values);
  col.key_bytes = (uint32_t)(key - base);
  col.n += n;
}

/* Rows of a frame, each judged; what is kept moves up over what is not. */
static void put_judged_rows(const frame *f, const record *head, const schema_entry *schema, uint64_t prefix, const uint8_t *key_codes, int check_bodies) {
  uint32_t first = col.n;
  for (uint32_t i = 0; i < f->count; i++) {
    record r = *head;
    uint32_t item = f->keys.index ? f->keys.index[i] : i, n = col.n;
    uint8_t *value = col.values + col.value_bytes, *end = put_body(f, i, prefix, value);
    r.key = f->keys.bytes + f->keys.at[item];
    r.key_len = (int32_t)(f->keys.at[item + 1] - f->keys.at[item]);
    r.value = value;
    r.value_len = (int32_t)(end - value);
    int code = key_codes[item];
    if (!code && is_bad_ttl(f, i)) code = R_TTL;
    if (!code && check_bodies) code = check_body(head, schema, value, (uint32_t)r.value_len);
    if (code) { emit_part_reject(&r, code, (int32_t)i); continue; }
    copy_steps(col.keys + col.key_bytes, r.key, (uint32_t)r.key_len);
    col.part[n] = (int32_t)i;
    col.key_id[n] = col.n_key_ids + item;
    col.expires_ms[n] = col.expires_ms[first + i];
    for (uint32_t c = 0; typed.state == TYPED_ON && c < f->n_columns; c++)
      if (f->columns[c].kind <= KIND_DOUBLE) ((uint64_t *)sections[S_TYPED + c].p)[n] = f->columns[c].numbers[i];
      else if (has_item_ids(c)) item_ids(c)[n] = typed.n_ids[c] + f->columns[c].index[i];
    col.key_end[n] = col.key_bytes += (uint32_t)r.key_len;
    col.value_end[n] = col.value_bytes += (uint32_t)r.value_len;
    col.n++;
  }
}

/* What the next frame's ids are above, and where the run that this frame's rows from `first` on are begins. */
static void end_frame(const frame *f, uint32_t first) {
  col.n_key_ids += f->keys.items;
  col.without_ids |= !f->keys.index;
  for (uint32_t c = 0; c < f->n_columns; c++) typed.n_ids[c] += f->columns[c].items;
  col.without_runs |= f->ttl_form == TTL_EACH;
  if (col.n == first) return;
  uint32_t *runs = (uint32_t *)buffer_room(&sections[S_RUNS], 4 * col.n_runs, 4, 0);
  runs[col.n_runs++] = first;
}

/* ---- frames of compact batches ---- */

/* Whether a frame whose schema is known may be a run of the compact batch, as far as its head tells. */
static int is_compact(const frame *f, const schema_entry *schema) {
  uint32_t items = f->keys.items <= f->count ? f->keys.items : f->count;
  if (schema->op || f->ttl_form == TTL_EACH || !f->n_columns || f->n_columns > COMPACT_COLUMNS) return 0;
  if (typed.state != TYPED_ON || col.n_key_ids + items > COMPACT_KEYS_MAX) return 0;
  int by_id = f->keys.encoding == ENC_DICTIONARY;
  if (!col.n_runs) {
    compact.by_id = by_id;
    compact.n_columns = f->n_columns;
    for (uint32_t c = 0; c < f->n_columns; c++) {
      compact.kinds[c] = (uint8_t)f->columns[c].kind;
      compact.word_bytes[c] = 0;
    }
  }
  if (by_id != compact.by_id || f->n_columns != compact.n_columns) return 0;
  for (uint32_t c = 0; c < f->n_columns; c++) {
    const frame_column *each = &f->columns[c];
    if (each->kind != compact.kinds[c]) return 0;
    if (each->kind > KIND_DOUBLE && (each->kind != KIND_BYTES || each->encoding != ENC_DICTIONARY)) return 0;
  }
  return 1;
}

STREAMS_INLINE void put_of_run(uint32_t id, uint64_t value) {
  uint64_t *list = (uint64_t *)buffer_room(&sections[id], 8 * col.n_runs, 8, 0);
  list[col.n_runs] = value;
}

/* The items of a column of texts after those that are there; how many bytes. `ends`: ids given out so far. */
static uint32_t put_words(uint32_t end_id, uint32_t bytes_id, const frame_column *c, uint32_t ends, uint32_t bytes) {
  uint32_t *to = (uint32_t *)buffer_room(&sections[end_id], 4 * ends, 4ull * c->items, 0) + ends, len = c->at[c->items];
  __builtin_memcpy(buffer_room(&sections[bytes_id], bytes, len, 0) + bytes, c->bytes, len);
  for (uint32_t i = 0; i < c->items; i++) to[i] = bytes + c->at[i + 1];
  return len;
}

static void put_ids(uint32_t id, const frame_column *c, uint32_t n, uint32_t base, uint64_t hint) {
  uint32_t *to = (uint32_t *)buffer_room(&sections[id], 4 * col.n, 4ull * n, 4ull * n * hint) + col.n;
  const uint32_t *index = c->index;
  for (uint32_t i = 0; i < n; i++) to[i] = base + index[i];
}

/* A prepared frame, all of whose puts are good, becomes a run. */
static void put_run(const frame *f, const record *r, int64_t expires_ms, uint64_t hint) {
  uint32_t n = f->count;
  put_of_run(1, (uint64_t)r->append_ms);
  put_of_run(2, r->hlc);
  put_of_run(3, (uint64_t)expires_ms);
  put_of_run(4, r->generation);
  put_of_run(10, (uint64_t)r->offset);
  uint32_t *runs = (uint32_t *)buffer_room(&sections[S_RUNS], 4 * col.n_runs, 4, 0);
  runs[col.n_runs++] = col.n;
  if (compact.by_id) put_ids(S_KEY_ID, &f->keys, n, col.n_key_ids, hint);
  col.key_bytes += put_words(6, 7, &f->keys, col.n_key_ids, col.key_bytes);
  col.n_key_ids += f->keys.items;
  for (uint32_t c = 0; c < f->n_columns; c++) {
    const frame_column *each = &f->columns[c];
    if (each->kind != KIND_BYTES) continue; /* the numbers are where they belong */
    put_ids(S_ITEM + c, each, n, typed.n_ids[c], hint);
    compact.word_bytes[c] += put_words(S_WORD_END + c, S_WORDS + c, each, typed.n_ids[c], compact.word_bytes[c]);
    typed.n_ids[c] += each->items;
  }
  col.n += n;
}

/* expires_ms of all puts of a frame whose TTLs are not each its own; 0: it is out of range. */
static int one_expiry(const frame *f, const record *r, int64_t *expires_ms) {
  *expires_ms = r->expires_ms;
  if (f->ttl_form != TTL_ALL || !f->ttl_ms) return 1;
  *expires_ms = (int64_t)((uint64_t)r->append_ms + (uint64_t)f->ttl_ms);
  return ttl_in_range((uint64_t)f->ttl_ms);
}

/* Writes out the puts of a frame; a reason when the record as a whole is none. `left`: bytes of input after it;
 * `count` and `size` of its record batch, whose records keep their room. */
static int expand_frame(record *r, uint32_t left, uint32_t count, uint32_t size) {
  static frame f;
  int code = check_headers(r);
  if (code) return code;
  if (is_ahead(r->hlc, r) || is_ahead(r->generation, r)) return R_CLOCK;
  if (!frame_read(&f, r->value + 5, (uint32_t)r->value_len - 5)) return R_FRAME;
  const schema_entry *schema = find_schema(f.schema_id);
  if (!schema) { r->detail = f.schema_id; return R_SCHEMA; }
  uint64_t hint = left / (uint32_t)r->value_len;
  typed_begin(&f);
  if (compact.on && !is_compact(&f, schema)) return STATUS_AGAIN;
  if (!prepare_frame(&f, (uint32_t)r->value_len, hint)) return R_FRAME;
  if (compact.on) {
    int64_t expires_ms;
    int whole = one_expiry(&f, r, &expires_ms) && !check_keys(&f, arena_take(f.keys.items));
    if (!whole || !frame_bodies_valid(&f, config.bytes + schema->at, schema->len)) return STATUS_AGAIN;
    put_run(&f, r, expires_ms, hint);
    return 0;
  }
  make_room((uint64_t)f.count + count, f.key_bytes + size, f.value_bytes + size, hint);
  col.frames = 1;
  r->op = schema->op;
  uint8_t *key_codes = arena_take(f.keys.items);
  int bad = check_keys(&f, key_codes) | put_expiries(&f, r);
  int check_bodies = schema->op == OP_PURGE || !frame_bodies_valid(&f, config.bytes + schema->at, schema->len);
  uint64_t prefix = (uint64_t)__builtin_bswap32(f.schema_id) << 8;
  uint32_t first = col.n;
  put_constants(r, f.count);
  if (bad || check_bodies) put_judged_rows(&f, r, schema, prefix, key_codes, check_bodies);
  else put_good_rows(&f, prefix);
  end_frame(&f, first);
  return 0;
}

/* ---- one record batch ---- */

/* 0, or R_MALFORMED: the record's fields do not fill its length. Leaves key, value and headers. */
STREAMS_INLINE int read_record(const uint8_t *p, const uint8_t *end, int64_t base_offset, int64_t base_ms, int log_append, record *r) {
  int64_t time_delta, offset_delta;
  r->end = end;
  if (p >= end) return R_MALFORMED;
  p++; /* attributes */
  if (!varint(&p, end, &time_delta) || !varint(&p, end, &offset_delta)) return R_MALFORMED;
  r->offset = base_offset + offset_delta;
  if (!log_append) r->append_ms = base_ms + time_delta;
  if (!field(&p, end, &r->key, &r->key_len) || !field(&p, end, &r->value, &r->value_len)) return R_MALFORMED;
  r->headers = p;
  return 0;
}

/* Decodes one batch; a truncated one leaves nothing. */
static int decode_batch(const uint8_t *p, const uint8_t *end, int64_t from, int64_t next, uint32_t left) {
  int64_t base_offset = (int64_t)be64(p), base_ms = (int64_t)be64(p + 27);
  uint32_t attributes = be16(p + 21), count = be32(p + 57), size = (uint32_t)(end - p);
  int log_append = attributes >> 3 & 1;
  if (log_append) base_ms = (int64_t)be64(p + 35);
  if (attributes & 0x20) return STATUS_OK; /* control batch: transaction markers */
  uint32_t n = col.n, n_rejects = col.n_rejects, key_bytes = col.key_bytes, value_bytes = col.value_bytes;
  uint32_t reject_bytes = col.reject_bytes, most = count < size / 7 ? count : size / 7; /* a record takes 7 bytes */
  int frames = col.frames;
  if (!compact.on) make_room(most, size, size, left / size);
  p += BATCH_HEADER;
  for (uint32_t i = 0; i < count; i++) {
    int64_t length;
    if (!varint(&p, end, &length) || length < 0 || length > end - p || i == most) {
      if (compact.on) return STATUS_AGAIN;
      col.n = n; col.n_rejects = n_rejects; col.key_bytes = key_bytes; col.value_bytes = value_bytes;
      col.reject_bytes = reject_bytes; col.frames = frames; typed.state = TYPED_OFF; col.without_ids = col.without_runs = 1;
      return STATUS_TRUNCATED;
    }
    record r;
    r.key_len = r.value_len = -1;
    r.key = r.value = p;
    r.offset = base_offset + i;
    r.append_ms = base_ms;
    r.detail = r.op = 0;
    int code = read_record(p, p + length, base_offset, base_ms, log_append, &r);
    p += length;
    if (r.offset < from || r.offset >= next) continue;
    if (!code && is_frame(&r)) {
      code = expand_frame(&r, left + (uint32_t)(end - p), most, size);
      if (!code) continue;
    } else if (!code) {
      code = check_record(&r);
    }
    if (compact.on) return STATUS_AGAIN; /* a record that is no frame, or one of which something is refused */
    if (code) { emit_reject(&r, code, PART_NONE); continue; }
    typed.state = TYPED_OFF;
    col.without_ids = col.without_runs = 1;
    emit(&r);
  }
  return STATUS_OK;
}

/* Decodes record batches whose sizes are known to fit, into the columns. */
static void decode_all(const uint8_t *input, const uint8_t *end, int64_t from, int64_t next) {
  uint32_t batches = streams_get32(input);
  const uint8_t *p = input + 4 + 4 * batches;
  int64_t decoded = from;
  col.n = col.key_bytes = col.value_bytes = col.n_rejects = col.reject_bytes = 0;
  col.frames = col.without_ids = col.without_runs = 0;
  col.n_key_ids = col.n_runs = 0;
  typed.state = TYPED_OPEN;
  if (!compact.on) make_room(0, 0, 0, 0);
  out.status = STATUS_OK;
  out.next = next;
  for (uint32_t i = 0; i < batches && out.status == STATUS_OK; i++) {
    uint32_t size = streams_get32(input + 4 + 4 * i);
    if (size < BATCH_HEADER) out.status = STATUS_TRUNCATED;
    else if (p[16] != 2) out.status = STATUS_MAGIC;
    else out.status = decode_batch(p, p + size, from, next, (uint32_t)(end - p) - size);
    if (out.status != STATUS_OK) out.next = decoded;
    else if ((int64_t)be64(p) + (int32_t)be32(p + 23) + 1 > decoded) decoded = (int64_t)be64(p) + (int32_t)be32(p + 23) + 1;
    p += size;
  }
}

/* ---- exports ---- */

STREAMS_EXPORT("streams_decoder_v1") int32_t streams_decoder_v1(void) { return 1; }

STREAMS_EXPORT("streams_configure") int32_t streams_configure(const uint8_t *p, uint32_t len) {
  if (len < CONFIG_BYTES) return -1;
  if (config.bytes) streams_free(config.bytes, config.size);
  config.bytes = streams_malloc(len);
  config.size = len;
  __builtin_memcpy(config.bytes, p, len);
  p = config.bytes;
  config.ttl_default_ms = (int64_t)streams_get64(p);
  config.ttl_min_ms = (int64_t)streams_get64(p + 8);
  config.ttl_max_ms = (int64_t)streams_get64(p + 16);
  config.ahead_ms = (int64_t)streams_get64(p + 24);
  config.prefix_len = streams_get32(p + 32);
  config.n_schemas = streams_get32(p + 36);
  config.schemas = (const schema_entry *)(p + CONFIG_BYTES);
  config.frame_id = streams_get32(p + 40);
  config.compact = streams_get32(p + 44);
  config.prefix = p + CONFIG_BYTES + 16 * config.n_schemas;
  config.last = 0;
  streams_round_over = 1;
  return 0;
}

STREAMS_EXPORT("streams_decode") void *streams_decode(const uint8_t *input, uint32_t len, int64_t from, int64_t next) {
  uint32_t batches = streams_get32(input);
  const uint8_t *p = input + 4 + 4 * batches, *end = input + len;
  streams_round_over = 1;
  out.status = STATUS_INPUT;
  if (len < 4 || batches > (len - 4) / 4) return &out;
  for (uint32_t i = 0; i < batches; i++) {
    uint32_t size = streams_get32(input + 4 + 4 * i);
    if (size > (uint32_t)(end - p)) return &out;
    p += size;
  }
  compact.on = config.compact != 0;
  decode_all(input, end, from, next);
  if (out.status == STATUS_AGAIN) {
    compact.on = 0;
    decode_all(input, end, from, next);
  }
  close_columns();
  return &out;
}
