/* strong_kv: keys with versions, conditional transactions, and commands that are executed once. ABI: "machine" in ABI.md.
 *
 * Everything that decides a result is in the log or in rows: the offset, the append time, the command, the rows. Nothing is kept
 * between batches, so a batch may be cut anywhere. What has expired by the time of the log counts as absent, whether its row is
 * still there or not; so hosts may drop such rows whenever they like.
 *
 * Command, little endian: u8 1, u8 kind, u16 c conditions, u16 o operations, u16 0, id[16], fingerprint[16];
 *   c times u64 version (0: must be absent; all ones: must be there), u32 key length, key;
 *   o times u32 op (0 put, 1 delete), i64 ttl ms (0: for ever), u32 key length, u32 value length, key, value.
 * Result, 32 bytes: u8 code, u8 1 if told again, u16 condition, u32 0, u64 offset, u64 version, i64 time of the log. Told again, the
 *   offset and time are those of the first execution; `version` is the new one, or the present one of the condition that failed.
 * Rows: user keys: row v1 (merge type lww; seq and start are the version, i.e. offset + 1).
 *   01 'i' id: u8 1, u8 code, u16 condition, u32 0, fingerprint[16], i64 time, u64 offset, u64 version, i64 forgotten from. 56 bytes.
 *   01 'm': i64 time of the log, u64 commands, u64 chain (a hash of all results and changes), u64 offset after the last. 32 bytes. */
#include "streams_machine.h"

enum { TRANSACTION = 1, RESOLVE = 2, BARRIER = 3 };
enum { APPLIED = 0, FAILED = 1, CANCELLED = 2, MISMATCH = 3, SPENT = 4, MALFORMED = 5, PASSED = 6 };
enum { HEAD = 40, ROW_HEAD = 60, NOTE = 56, META = 32, RESULT = 32, KEY_MAX = 1024 };
#define ANY UINT64_MAX
#define NEVER INT64_MAX
#define TTL_MAX (1ll << 52)

typedef struct { const uint8_t *key, *row; uint32_t key_len, row_len, first; uint8_t used, asked, present, dirty; } entry;

static uint32_t capacity, entries_n;
static entry *entries;       /* open addressing, by key */
static entry **order;        /* the same in order of first mention, so that answers do not depend on the table's size */
static uint8_t *arena;       /* rows and keys made in this batch */

static entry *find(const uint8_t *key, uint32_t len) {
  uint32_t at = streams_hash(key, len) & (capacity - 1);
  while (entries[at].used) {
    if (entries[at].key_len == len && streams_equal(entries[at].key, key, len)) return &entries[at];
    at = (at + 1) & (capacity - 1);
  }
  entry *e = &entries[at];
  e->used = 1;
  e->key = key;
  e->key_len = len;
  order[entries_n++] = e;
  return e;
}

static void set(entry *e, const uint8_t *row, uint32_t len) {
  e->row = row;
  e->row_len = len;
  e->present = row != 0;
  e->dirty = 1;
}

typedef struct { const uint8_t *p, *end; } cursor;
typedef struct { uint64_t version; const uint8_t *key; uint32_t key_len; } condition;
typedef struct { uint32_t op, key_len, value_len; int64_t ttl_ms; const uint8_t *key, *value; } operation;

static int good_key(const uint8_t *key, uint32_t len) { return len >= 1 && len <= KEY_MAX && key[0] >= 0x20; }

static int next_condition(cursor *c, condition *out) {
  if (c->end - c->p < 12) return 0;
  out->version = streams_get64(c->p);
  out->key_len = streams_get32(c->p + 8);
  c->p += 12;
  if (out->key_len > (uint32_t)(c->end - c->p) || !good_key(c->p, out->key_len)) return 0;
  out->key = c->p;
  c->p += out->key_len;
  return 1;
}

static int next_operation(cursor *c, operation *out) {
  if (c->end - c->p < 20) return 0;
  out->op = streams_get32(c->p);
  out->ttl_ms = (int64_t)streams_get64(c->p + 4);
  out->key_len = streams_get32(c->p + 12);
  out->value_len = streams_get32(c->p + 16);
  c->p += 20;
  uint32_t left = (uint32_t)(c->end - c->p);
  if (out->op > 1 || out->ttl_ms < 0 || out->ttl_ms > TTL_MAX || out->key_len > left || out->value_len > left - out->key_len) return 0;
  if (!good_key(c->p, out->key_len)) return 0;
  out->key = c->p;
  out->value = c->p + out->key_len;
  c->p += out->key_len + out->value_len;
  return 1;
}

/* Whether a command is well formed; the keys that it mentions and the bytes that its changes may need are added up. */
static int well_formed(const uint8_t *p, uint32_t len, uint32_t *keys, uint32_t *bytes) {
  if (len < HEAD || p[0] != 1 || p[1] < TRANSACTION || p[1] > BARRIER || streams_get16(p + 6)) return 0;
  uint32_t conditions = streams_get16(p + 2), operations = streams_get16(p + 4);
  cursor c = {p + HEAD, p + len};
  if (p[1] != TRANSACTION && (conditions || operations)) return 0;
  uint32_t size = 0;
  condition test;
  operation change;
  for (uint32_t i = 0; i < conditions; i++) if (!next_condition(&c, &test)) return 0;
  for (uint32_t i = 0; i < operations; i++) {
    if (!next_operation(&c, &change)) return 0;
    size += ROW_HEAD + change.value_len;
  }
  if (c.p != c.end) return 0;
  *keys += conditions + operations;
  *bytes += size;
  return 1;
}

static const uint8_t meta_key[2] = {1, 'm'};

/* The note's key of a command's id; made in the arena. */
static entry *note_of(const uint8_t *id) {
  uint8_t key[18] = {1, 'i'};
  streams_copy(key + 2, id, 16);
  uint32_t before = entries_n;
  entry *e = find(key, 18);
  if (entries_n != before) {
    streams_copy(arena, key, 18);
    e->key = arena;
    arena += 18;
  }
  return e;
}

static void ask(entry *e, uint32_t first) {
  e->asked = 1;
  if (first > e->first) e->first = first;
}


STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  if (!machine_batch(p, len)) return answered(0, 0, -1);
  uint32_t n = batch_n;
  uint32_t keys = 1 + n, bytes = META + n * (NOTE + 18), size;
  for (uint32_t i = 0; i < n; i++) {
    const uint8_t *c = command(i, &size);
    well_formed(c, size, &keys, &bytes);
  }
  capacity = 16;
  while (capacity < keys * 2) capacity *= 2;
  entries = streams_scratch(capacity * sizeof *entries);
  __builtin_memset(entries, 0, capacity * sizeof *entries);
  order = streams_scratch(keys * sizeof *order);
  entries_n = 0;
  arena = streams_scratch(bytes + 16);
  ask(find(meta_key, 2), META);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t none = 0;
    const uint8_t *c = command(i, &size);
    if (!well_formed(c, size, &none, &none)) continue;
    if (c[1] != BARRIER) ask(note_of(c + 8), NOTE);
    cursor at = {c + HEAD, c + size};
    condition test;
    for (uint32_t k = streams_get16(c + 2); k; k--) {
      next_condition(&at, &test);
      ask(find(test.key, test.key_len), ROW_HEAD);
    }
    operation each;
    for (uint32_t k = streams_get16(c + 4); k; k--) {
      next_operation(&at, &each);
      entry *e = find(each.key, each.key_len);
      if (!each.op) ask(e, ROW_HEAD); /* for its expiry */
    }
  }
  uint32_t key_bytes = 0;
  uint32_t asked = 0;
  for (uint32_t i = 0; i < entries_n; i++) {
    asked += order[i]->asked;
    key_bytes += order[i]->asked ? order[i]->key_len : 0;
  }
  uint8_t *out = streams_scratch(4 + 8 * asked + key_bytes), *key = out + 4 + 8 * asked, *blob = key;
  streams_put32(out, asked);
  for (uint32_t i = 0, k = 0; i < entries_n; i++) {
    if (!order[i]->asked) continue;
    streams_copy(key, order[i]->key, order[i]->key_len);
    key += order[i]->key_len;
    streams_put32(out + 4 + 4 * k, (uint32_t)(key - blob));
    streams_put32(out + 4 + 4 * (asked + k++), order[i]->first);
  }
  return answered(out, (uint32_t)(key - out), 0);
}

STREAMS_EXPORT("streams_load") int32_t streams_load(const uint8_t *p, uint32_t len) {
  uint32_t n = len < 4 ? 0 : streams_get32(p);
  if (len < 4 || n > (len - 4) / 9) return -1;
  const uint8_t *key_end = p + 4, *row_end = key_end + 4 * n, *present = row_end + 4 * n, *keys = present + n;
  const uint8_t *rows = keys + (n ? streams_get32(key_end + 4 * (n - 1)) : 0);
  for (uint32_t i = 0, key_at = 0, row_at = 0; i < n; i++) {
    uint32_t ke = streams_get32(key_end + 4 * i), re = streams_get32(row_end + 4 * i);
    uint32_t before = entries_n;
    entry *e = find(keys + key_at, ke - key_at);
    if (entries_n != before || !e->asked) return -2;
    uint32_t size = re - row_at, least = e->first;
    if (present[i]) {
      if (size < least) return -3;
      e->row = rows + row_at;
      e->row_len = size;
      e->present = 1;
    }
    key_at = ke;
    row_at = re;
  }
  return 0;
}

/* ---- applying ---- */

static uint64_t log_ms, commands, chain, next_offset;

static uint64_t mix(uint64_t h, uint64_t word) {
  h = (h ^ word) * 0x9E3779B97F4A7C15ull;
  return h ^ h >> 29;
}

static uint64_t mix_bytes(uint64_t h, const uint8_t *p, uint32_t n) {
  h = mix(h, n);
  for (; n >= 8; n -= 8, p += 8) h = mix(h, streams_get64(p));
  uint64_t last = 0;
  for (uint32_t i = 0; i < n; i++) last |= (uint64_t)p[i] << 8 * i;
  return mix(h, last);
}

/* When a key expires, if it is there at this time of the log; 0: absent or expired. */
static int64_t expiry_of(const entry *e) {
  int64_t expires_ms = e->present ? (int64_t)streams_get64(e->row + 48) : 0;
  return expires_ms > (int64_t)log_ms ? expires_ms : 0;
}

static uint64_t version_of(const entry *e) { return expiry_of(e) ? streams_get64(e->row + 8) : 0; }

typedef struct { uint8_t code, again; uint16_t index; uint64_t offset, version, ms; } result;

static void keep(entry *note, const uint8_t *fingerprint, const result *r) {
  uint8_t *row = arena;
  arena += NOTE;
  row[0] = 1;
  row[1] = r->code;
  streams_put16(row + 2, r->index);
  streams_put32(row + 4, 0);
  if (fingerprint) streams_copy(row + 8, fingerprint, 16);
  else __builtin_memset(row + 8, 0, 16);
  streams_put64(row + 24, r->ms);
  streams_put64(row + 32, r->offset);
  streams_put64(row + 40, r->version);
  streams_put64(row + 48, r->ms + SPENT_MS);
  set(note, row, NOTE);
}

/* Answers a command whose id has a note; 0 when it has none that counts. */
static int told_again(const entry *note, const uint8_t *fingerprint, result *r) {
  if (!note->present || (int64_t)streams_get64(note->row + 48) <= (int64_t)log_ms) return 0;
  if (note->row[1] != CANCELLED && fingerprint && !streams_equal(note->row + 8, fingerprint, 16)) r->code = MISMATCH;
  else if (log_ms - streams_get64(note->row + 24) > KEEP_MS) r->code = SPENT;
  else {
    r->code = note->row[1];
    r->again = 1;
    r->index = streams_get16(note->row + 2);
    r->ms = streams_get64(note->row + 24);
    r->offset = streams_get64(note->row + 32);
    r->version = streams_get64(note->row + 40);
  }
  return 1;
}

static void change(const operation *o, uint64_t version) {
  entry *e = find(o->key, o->key_len);
  chain = mix_bytes(mix(chain, o->op), o->key, o->key_len);
  if (o->op) {
    set(e, 0, 0);
    return;
  }
  uint8_t *row = arena;
  arena += ROW_HEAD + o->value_len;
  row[0] = 1;
  row[1] = 1;
  streams_put16(row + 2, 1);
  streams_put32(row + 4, 0);
  streams_put64(row + 8, version);
  streams_put64(row + 16, 0);
  streams_put64(row + 24, log_ms << 16);
  streams_put64(row + 32, version);
  streams_put64(row + 40, log_ms << 16);
  int64_t expires_ms = o->ttl_ms ? (int64_t)log_ms + o->ttl_ms : NEVER;
  streams_put64(row + 48, (uint64_t)streams_max_i64(expires_ms, expiry_of(e))); /* a put only ever extends a life */
  streams_put32(row + 56, o->value_len);
  streams_copy(row + ROW_HEAD, o->value, o->value_len);
  chain = mix_bytes(chain, row + 48, 12 + o->value_len);
  set(e, row, ROW_HEAD + o->value_len);
}

static void transact(const uint8_t *c, uint32_t size, result *r) {
  entry *note = note_of(c + 8);
  if (told_again(note, c + 24, r)) return;
  cursor at = {c + HEAD, c + size};
  condition test;
  uint32_t conditions = streams_get16(c + 2);
  for (uint32_t k = 0; k < conditions; k++) {
    next_condition(&at, &test);
    uint64_t version = version_of(find(test.key, test.key_len));
    if (r->code == APPLIED && (test.version == ANY ? version == 0 : version != test.version)) {
      r->code = FAILED;
      r->index = (uint16_t)k;
      r->version = version;
    }
  }
  if (r->code == APPLIED) {
    r->version = r->offset + 1;
    operation each;
    for (uint32_t k = streams_get16(c + 4); k; k--) {
      next_operation(&at, &each);
      change(&each, r->version);
    }
  }
  keep(note, c + 24, r);
}

static void apply(const uint8_t *c, uint32_t size, result *r) {
  uint32_t none = 0;
  if (!well_formed(c, size, &none, &none)) r->code = MALFORMED;
  else if (c[1] == BARRIER) r->code = PASSED;
  else if (c[1] == TRANSACTION) transact(c, size, r);
  else {
    entry *note = note_of(c + 8);
    if (told_again(note, 0, r)) return;
    r->code = CANCELLED;
    keep(note, 0, r);
  }
}

STREAMS_EXPORT("streams_apply") streams_desc *streams_apply(void) {
  entry *meta = find(meta_key, 2);
  const uint8_t *m = meta->row;
  log_ms = commands = chain = next_offset = 0;
  if (meta->present) {
    log_ms = streams_get64(m);
    commands = streams_get64(m + 8);
    chain = streams_get64(m + 16);
    next_offset = streams_get64(m + 24);
  }
  uint8_t *out = streams_scratch(4 + (4 + RESULT) * batch_n), *at = out + 4 + 4 * batch_n;
  streams_put32(out, batch_n);
  for (uint32_t i = 0; i < batch_n; i++, at += RESULT) {
    if (offset_of(i) < next_offset) return answered(0, 0, -2); /* the host steps back: it must not */
    log_ms = (uint64_t)streams_max_i64((int64_t)log_ms, append_ms(i));
    result r = {APPLIED, 0, 0, offset_of(i), 0, log_ms};
    uint32_t size;
    const uint8_t *c = command(i, &size);
    apply(c, size, &r);
    next_offset = offset_of(i) + 1;
    commands++;
    chain = mix(mix(mix(chain, next_offset), (uint64_t)r.index << 16 | (uint64_t)r.again << 8 | r.code), r.version);
    chain = mix(mix(chain, r.offset), log_ms);
    at[0] = r.code;
    at[1] = r.again;
    streams_put16(at + 2, r.index);
    streams_put32(at + 4, 0);
    streams_put64(at + 8, r.offset);
    streams_put64(at + 16, r.version);
    streams_put64(at + 24, r.ms);
    streams_put32(out + 4 + 4 * i, (i + 1) * RESULT);
  }
  if (batch_n) {
    uint8_t *row = arena;
    arena += META;
    streams_put64(row, log_ms);
    streams_put64(row + 8, commands);
    streams_put64(row + 16, chain);
    streams_put64(row + 24, next_offset);
    set(meta, row, META);
  }
  return answered(out, 4 + (4 + RESULT) * batch_n, 0);
}

STREAMS_EXPORT("streams_take") streams_desc *streams_take(void) {
  uint32_t n = 0, key_bytes = 0, row_bytes = 0;
  for (uint32_t i = 0; i < entries_n; i++) {
    if (!order[i]->dirty) continue;
    n++;
    key_bytes += order[i]->key_len;
    row_bytes += order[i]->present ? order[i]->row_len : 0;
  }
  uint32_t len = 4 + 9 * n + key_bytes + row_bytes, k = 0;
  uint8_t *out = streams_scratch(len), *key_end = out + 4, *row_end = key_end + 4 * n, *present = row_end + 4 * n;
  uint8_t *keys = present + n, *rows = keys + key_bytes, *key = keys, *row = rows;
  streams_put32(out, n);
  for (uint32_t i = 0; i < entries_n; i++) {
    entry *e = order[i];
    if (!e->dirty) continue;
    streams_copy(key, e->key, e->key_len);
    key += e->key_len;
    if (e->present) {
      streams_copy(row, e->row, e->row_len);
      row += e->row_len;
    }
    streams_put32(key_end + 4 * k, (uint32_t)(key - keys));
    streams_put32(row_end + 4 * k, (uint32_t)(row - rows));
    present[k++] = e->present;
    e->dirty = 0;
  }
  streams_round_over = 1;
  return answered(out, len, 0);
}
