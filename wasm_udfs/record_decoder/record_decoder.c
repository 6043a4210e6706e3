/* record_decoder: raw Kafka record batches (v2, decompressed) of one run -> batch v1 and rejects. A platform module, no UDF.
 *
 * All of SPEC's "Event record" checks, in this order: record, key, value's presence and prefix, headers, clock, schema, body.
 * Layouts of config, input and output: ../ABI.md, "record_decoder". */
#include "avro_check.h"

enum {
  R_MALFORMED = 1, R_KEY_NULL, R_KEY_EMPTY, R_KEY_LONG, R_KEY_UTF8, R_KEYSPACE, R_VALUE_NULL, R_MAGIC, R_VALUE_SHORT,
  R_HEADER, R_TTL, R_CLOCK, R_SCHEMA /* 14..19: avro_check.h */
};
enum { STATUS_OK = 0, STATUS_TRUNCATED = 1, STATUS_MAGIC = 2, STATUS_INPUT = -1 };
enum { SECTIONS = 10, HEADER_BYTES = 16 + 16 * SECTIONS, BATCH_HEADER = 61, KEY_MAX = 1024, OP_PURGE = 2 };
#define NEVER_MS INT64_MAX

typedef struct { uint32_t id, op, at, len; } schema_entry;
static struct {
  int64_t ttl_default_ms, ttl_min_ms, ttl_max_ms, ahead_ms;
  uint32_t prefix_len, n_schemas;
  uint8_t *bytes; /* the config as it came: prefix, schema table, programs */
  uint32_t size;
  const uint8_t *prefix;
  const schema_entry *schemas, *last;
} config;

typedef struct { int64_t offset, append_ms; uint32_t code, detail, key_at; int32_t key_len; uint32_t value_at; int32_t value_len; } reject_entry;
static struct { uint32_t batch, batch_len, rejects, n_rejects; int32_t status; uint32_t n; int64_t next; } out;

typedef struct {
  const uint8_t *key, *value;
  int32_t key_len, value_len; /* -1: null */
  const uint8_t *headers, *end;
  int64_t offset, append_ms, expires_ms;
  uint64_t hlc, generation;
  uint32_t op, detail;
} record;

static struct {
  int64_t *append_ms, *expires_ms, *offset;
  uint64_t *hlc, *generation;
  uint32_t *key_end, *value_end;
  uint8_t *op, *base, *keys, *values, *key, *value; /* key, value: where the next goes */
  uint32_t n, cap;
  reject_entry *rejects;
  uint32_t n_rejects, rejects_cap;
} col;

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
  code = avro_body(config.bytes + schema->at, r->value + 5, (uint32_t)r->value_len - 5);
  if (code) return code;
  r->op = schema->op;
  if (schema->op == OP_PURGE) {
    streams_reader body = {r->value + 5, r->value + r->value_len, 0};
    if (is_ahead((uint64_t)streams_read_long(&body), r)) return R_CLOCK;
  }
  return 0;
}

/* ---- output ---- */

/* Copies n bytes in whole words, possibly up to 15 bytes too many: both buffers have that room. */
STREAMS_INLINE void copy_over(uint8_t *to, const uint8_t *from, uint32_t n) {
  if (n > 512) { __builtin_memcpy(to, from, n); return; }
  for (uint32_t i = 0; i < n; i += 16) {
    streams_put64(to + i, streams_get64(from + i));
    streams_put64(to + i + 8, streams_get64(from + i + 8));
  }
}

STREAMS_INLINE void emit(const record *r) {
  uint32_t n = col.n++;
  copy_over(col.key, r->key, (uint32_t)r->key_len);
  copy_over(col.value, r->value, (uint32_t)r->value_len);
  col.key += r->key_len;
  col.value += r->value_len;
  col.append_ms[n] = r->append_ms;
  col.hlc[n] = r->hlc;
  col.expires_ms[n] = r->expires_ms;
  col.generation[n] = r->generation;
  col.offset[n] = r->offset;
  col.op[n] = (uint8_t)r->op;
  col.key_end[n] = (uint32_t)(col.key - col.keys);
  col.value_end[n] = (uint32_t)(col.value - col.values);
}

static void emit_reject(const record *r, int code, const uint8_t *input) {
  if (col.n_rejects == col.rejects_cap) {
    uint32_t cap = col.rejects_cap ? col.rejects_cap * 4 : 64;
    reject_entry *list = streams_scratch(cap * sizeof *list);
    if (col.n_rejects) __builtin_memcpy(list, col.rejects, col.n_rejects * sizeof *list);
    col.rejects = list;
    col.rejects_cap = cap;
  }
  col.rejects[col.n_rejects++] = (reject_entry){
      r->offset, r->append_ms, (uint32_t)code, r->detail,
      r->key_len < 0 ? 0 : (uint32_t)(r->key - input), r->key_len,
      r->value_len < 0 ? 0 : (uint32_t)(r->value - input), r->value_len};
}

static void *column(uint8_t **at, uint32_t id, uint32_t bytes, uint8_t *base) {
  uint8_t *section = base + 16 + 16 * (id - 1), *p = *at;
  streams_put32(section, id);
  streams_put32(section + 4, (uint32_t)(p - base));
  streams_put32(section + 8, bytes);
  streams_put32(section + 12, 0); /* width: close_columns */
  *at = p + ((bytes + 7) & ~7u);
  return p;
}

static void open_columns(uint32_t cap, uint32_t blob) {
  uint8_t *base = streams_scratch(HEADER_BYTES + 49 * cap + blob + 256), *at = base + HEADER_BYTES;
  col.base = base;
  col.cap = cap;
  col.n = col.n_rejects = col.rejects_cap = 0;
  col.append_ms = column(&at, 1, 8 * cap, base);
  col.hlc = column(&at, 2, 8 * cap, base);
  col.expires_ms = column(&at, 3, 8 * cap, base);
  col.generation = column(&at, 4, 8 * cap, base);
  col.op = column(&at, 5, cap, base);
  col.key_end = column(&at, 6, 4 * cap, base);
  col.value_end = column(&at, 8, 4 * cap, base);
  col.offset = column(&at, 10, 8 * cap, base);
  col.keys = col.key = at;
  col.values = col.value = streams_scratch(blob + 32);
}

static void close_columns(void) {
  static const uint8_t widths[SECTIONS + 1] = {0, 8, 8, 8, 8, 1, 4, 0, 4, 0, 8};
  uint8_t *base = col.base, *at = col.keys;
  uint32_t key_bytes = (uint32_t)(col.key - col.keys), value_bytes = (uint32_t)(col.value - col.values);
  for (uint32_t id = 1; id <= SECTIONS; id++) {
    streams_put32(base + 16 * id + 8, col.n * widths[id]);
    streams_put32(base + 16 * id + 12, widths[id]);
  }
  column(&at, 7, key_bytes, base);
  uint8_t *values = column(&at, 9, value_bytes, base);
  if (value_bytes) __builtin_memcpy(values, col.values, value_bytes);
  streams_put32(base, 0x31425453u);
  streams_put32(base + 4, col.n);
  streams_put32(base + 8, (uint32_t)(at - base));
  streams_put32(base + 12, SECTIONS);
  out.batch = (uint32_t)(uintptr_t)base;
  out.batch_len = (uint32_t)(at - base);
  out.rejects = (uint32_t)(uintptr_t)col.rejects;
  out.n_rejects = col.n_rejects;
  out.n = col.n;
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
static int decode_batch(const uint8_t *p, const uint8_t *end, int64_t from, int64_t next, const uint8_t *input) {
  int64_t base_offset = (int64_t)be64(p), base_ms = (int64_t)be64(p + 27);
  uint32_t attributes = be16(p + 21), count = be32(p + 57);
  int log_append = attributes >> 3 & 1;
  if (log_append) base_ms = (int64_t)be64(p + 35);
  if (attributes & 0x20) return STATUS_OK; /* control batch: transaction markers */
  uint32_t n = col.n, n_rejects = col.n_rejects;
  uint8_t *key = col.key, *value = col.value;
  p += BATCH_HEADER;
  for (uint32_t i = 0; i < count; i++) {
    int64_t length;
    if (!varint(&p, end, &length) || length < 0 || length > end - p || col.n == col.cap) {
      col.n = n; col.n_rejects = n_rejects; col.key = key; col.value = value;
      return STATUS_TRUNCATED;
    }
    record r;
    r.key_len = r.value_len = -1;
    r.key = r.value = input;
    r.offset = base_offset + i;
    r.append_ms = base_ms;
    r.detail = r.op = 0;
    int code = read_record(p, p + length, base_offset, base_ms, log_append, &r);
    p += length;
    if (r.offset < from || r.offset >= next) continue;
    if (!code) code = check_record(&r);
    if (code) emit_reject(&r, code, input);
    else emit(&r);
  }
  return STATUS_OK;
}

/* ---- exports ---- */

STREAMS_EXPORT("streams_decoder_v1") int32_t streams_decoder_v1(void) { return 1; }

STREAMS_EXPORT("streams_configure") int32_t streams_configure(const uint8_t *p, uint32_t len) {
  if (len < 40) return -1;
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
  config.schemas = (const schema_entry *)(p + 40);
  config.prefix = p + 40 + 16 * config.n_schemas;
  config.last = 0;
  streams_round_over = 1;
  return 0;
}

STREAMS_EXPORT("streams_decode") void *streams_decode(const uint8_t *input, uint32_t len, int64_t from, int64_t next) {
  uint32_t batches = streams_get32(input), cap = 0;
  const uint8_t *p = input + 4 + 4 * batches;
  streams_round_over = 1;
  out.status = STATUS_INPUT;
  if (len < 4 || batches > (len - 4) / 4) return &out;
  for (uint32_t i = 0; i < batches; i++) {
    uint32_t size = streams_get32(input + 4 + 4 * i);
    if (size > len - (uint32_t)(p - input)) return &out;
    uint32_t count = size < BATCH_HEADER ? 0 : be32(p + 57), most = size / 7;
    cap += count < most ? count : most;
    p += size;
  }
  open_columns(cap, len);
  out.status = STATUS_OK;
  out.next = next;
  p = input + 4 + 4 * batches;
  int64_t decoded = from;
  for (uint32_t i = 0; i < batches && out.status == STATUS_OK; i++) {
    uint32_t size = streams_get32(input + 4 + 4 * i);
    if (size < BATCH_HEADER) out.status = STATUS_TRUNCATED;
    else if (p[16] != 2) out.status = STATUS_MAGIC;
    else out.status = decode_batch(p, p + size, from, next, input);
    if (out.status != STATUS_OK) out.next = decoded;
    else if ((int64_t)be64(p) + (int32_t)be32(p + 23) + 1 > decoded) decoded = (int64_t)be64(p) + (int32_t)be32(p + 23) + 1;
    p += size;
  }
  close_columns();
  return &out;
}
