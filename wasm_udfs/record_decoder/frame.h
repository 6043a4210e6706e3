/* Frames (schemas/Frame.avsc): many puts in columns. Parsed and checked as a whole, then written out as rows. */
#ifndef FRAME_H
#define FRAME_H

#include "avro_check.h"

enum { KIND_LONG, KIND_DOUBLE, KIND_BOOLEAN, KIND_BYTES, KIND_RAW, KINDS };
enum { ENC_PLAIN, ENC_DICTIONARY, ENC_OFFSET, ENCODINGS };
enum { FRAME_PUTS_MAX = 1 << 17, FRAME_COLUMNS_MAX = 64, FRAME_EXPANSION_MAX = 128 };
enum { TTL_NONE, TTL_ALL, TTL_EACH };
enum { BUFFER_SLACK = 64 };

/* ---- buffers that stay between rounds ---- */

typedef struct { uint8_t *p; uint32_t cap; } buffer;

/* Room for `more` bytes after the `used` ones, with slack for copies in whole words; `hint`: what may follow. */
static uint8_t *buffer_room(buffer *b, uint32_t used, uint64_t more, uint64_t hint) {
  uint64_t need = used + more + BUFFER_SLACK;
  if (need <= b->cap) return b->p;
  if (need > 0x60000000) __builtin_trap();
  if (hint > (256u << 20)) hint = 0;
  uint64_t cap = need + hint > 2ull * b->cap ? need + hint : 2ull * b->cap;
  if (cap > 0x60000000) cap = need;
  uint8_t *p = streams_malloc((uint32_t)cap);
  if (used) __builtin_memcpy(p, b->p, used);
  if (b->cap) streams_free(b->p, b->cap);
  b->p = p;
  b->cap = (uint32_t)cap;
  return p;
}

/* ---- the parsed frame ---- */

typedef struct {
  uint32_t kind, encoding, items, codes_len, lengths_len, data_len;
  int64_t base;
  const uint8_t *codes, *lengths, *data;
  /* prepared: */
  const uint32_t *index; /* per put, an item; 0: the put's own number */
  const uint32_t *at;    /* items + 1 positions in `bytes` */
  const uint8_t *bytes;  /* the items; BYTES of a dictionary: with their lengths, as Avro */
  uint64_t *numbers;     /* LONG, DOUBLE: the cells */
  const uint8_t *flags;  /* BOOLEAN: the cells */
} frame_column;

typedef struct {
  uint32_t schema_id, count, n_columns, ttl_form;
  int64_t ttl_ms;
  frame_column keys, ttl, columns[FRAME_COLUMNS_MAX];
  uint64_t key_bytes, value_bytes; /* value_bytes: an upper bound */
} frame;

static buffer arena;
static uint32_t arena_used;

STREAMS_INLINE void *arena_take(uint64_t n) {
  uint8_t *p = arena.p + arena_used;
  arena_used += (uint32_t)((n + 31) & ~15ull);
  return p;
}

static int frame_bytes(avro_value *v, const uint8_t **at, uint32_t *len) {
  int64_t n;
  if (!avro_varint(v, 64, &n) || n < 0) return 0;
  *at = v->p;
  *len = (uint32_t)n;
  return avro_skip(v, (uint64_t)n);
}

static int frame_read_column(avro_value *v, frame_column *c) {
  int64_t kind, encoding, items;
  if (!avro_varint(v, 32, &kind) || !avro_varint(v, 32, &encoding) || !avro_varint(v, 64, &c->base) || !avro_varint(v, 32, &items)) return 0;
  if (kind < 0 || kind >= KINDS || encoding < 0 || encoding >= ENCODINGS || items < 0) return 0;
  c->kind = (uint32_t)kind;
  c->encoding = (uint32_t)encoding;
  c->items = (uint32_t)items;
  return frame_bytes(v, &c->codes, &c->codes_len) && frame_bytes(v, &c->lengths, &c->lengths_len) && frame_bytes(v, &c->data, &c->data_len);
}

static int frame_read_columns(avro_value *v, frame *f) {
  f->n_columns = 0;
  for (;;) {
    int64_t count, size = -1;
    if (!avro_varint(v, 64, &count)) return 0;
    if (!count) return 1;
    if (count < 0) {
      if (count < -FRAME_COLUMNS_MAX || !avro_varint(v, 64, &size) || size < 0) return 0;
      count = -count;
    }
    const uint8_t *start = v->p;
    if (count > FRAME_COLUMNS_MAX - f->n_columns) return 0;
    for (; count > 0; count--)
      if (!frame_read_column(v, &f->columns[f->n_columns++])) return 0;
    if (size >= 0 && v->p - start != size) return 0;
  }
}

/* The parts of a frame's body; 0: it is no frame. */
static int frame_read(frame *f, const uint8_t *body, uint32_t len) {
  avro_value v = {body, body + len, 0, 0, 0};
  int64_t id, count, branch;
  if (!avro_varint(&v, 32, &id) || !avro_varint(&v, 32, &count)) return 0;
  if (count < 1 || count > FRAME_PUTS_MAX || count > (int64_t)len + 5) return 0;
  f->schema_id = (uint32_t)id;
  f->count = (uint32_t)count;
  if (!frame_read_column(&v, &f->keys) || !avro_varint(&v, 64, &branch) || branch < TTL_NONE || branch > TTL_EACH) return 0;
  f->ttl_form = (uint32_t)branch;
  if (branch == TTL_ALL && !avro_varint(&v, 64, &f->ttl_ms)) return 0;
  if (branch == TTL_EACH && !frame_read_column(&v, &f->ttl)) return 0;
  return frame_read_columns(&v, f) && v.p == v.end;
}

/* ---- columns, checked and decoded into the arena ---- */

STREAMS_INLINE uint64_t frame_column_room(const frame_column *c, uint32_t n) {
  uint32_t items = c->items <= n ? c->items : n; /* more are refused */
  return 12ull * n + 4ull * items + 5ull * items + c->data_len + 256;
}

STREAMS_INLINE uint32_t frame_lengths_width(const frame_column *c) {
  uint32_t width = c->items ? c->lengths_len / c->items : 0;
  return (uint64_t)width * c->items == c->lengths_len && (width == 1 || width == 2 || width == 4) ? width : 0;
}

/* Widened codes; 0: there are none (all 0); -1 in *ok when their bytes do not fit. */
static const uint32_t *frame_codes(const frame_column *c, uint32_t n, int *ok) {
  uint32_t width = c->codes_len / n, *out;
  if (!c->codes_len) {
    out = arena_take(4ull * n);
    __builtin_memset(out, 0, 4 * n);
    return out;
  }
  if ((uint64_t)width * n != c->codes_len || (width != 1 && width != 2 && width != 4)) { *ok = 0; return 0; }
  out = arena_take(4ull * n);
  const uint8_t *p = c->codes;
  uint32_t most = 0;
  if (width == 1) for (uint32_t i = 0; i < n; i++) { out[i] = p[i]; most = out[i] > most ? out[i] : most; }
  else if (width == 2) for (uint32_t i = 0; i < n; i++) { out[i] = streams_get16(p + 2 * i); most = out[i] > most ? out[i] : most; }
  else for (uint32_t i = 0; i < n; i++) { out[i] = streams_get32(p + 4 * i); most = out[i] > most ? out[i] : most; }
  if (most >= c->items) *ok = 0;
  return out;
}

/* The rules that all columns share: how many items, and which of the parts are there. */
static int frame_items_fit(const frame_column *c, uint32_t n) {
  if (c->encoding == ENC_PLAIN) return c->items == n && !c->codes_len;
  if (c->encoding == ENC_DICTIONARY) return c->items >= 1 && c->items <= n;
  return c->kind == KIND_LONG && !c->items && !c->data_len;
}

static int frame_offsets(const frame_column *c, uint32_t n, uint64_t *out) {
  uint32_t width = c->codes_len / n;
  uint64_t base = (uint64_t)c->base;
  const uint8_t *p = c->codes;
  if ((uint64_t)width * n != c->codes_len) return 0;
  switch (width) {
    case 0: for (uint32_t i = 0; i < n; i++) out[i] = base; return 1;
    case 1: for (uint32_t i = 0; i < n; i++) out[i] = base + p[i]; return 1;
    case 2: for (uint32_t i = 0; i < n; i++) out[i] = base + streams_get16(p + 2 * i); return 1;
    case 4: for (uint32_t i = 0; i < n; i++) out[i] = base + streams_get32(p + 4 * i); return 1;
    case 8: for (uint32_t i = 0; i < n; i++) out[i] = base + streams_get64(p + 8 * i); return 1;
  }
  return 0;
}

/* LONG or DOUBLE cells into `out`. */
static int frame_numbers(frame_column *c, uint32_t n, uint64_t *out) {
  int ok = 1;
  c->numbers = out;
  if (!frame_items_fit(c, n) || c->lengths_len) return 0;
  if (c->encoding == ENC_OFFSET) return frame_offsets(c, n, out);
  if (c->data_len != 8ull * c->items) return 0;
  if (c->encoding == ENC_PLAIN) { __builtin_memcpy(out, c->data, 8 * n); return 1; }
  const uint32_t *index = frame_codes(c, n, &ok);
  if (!ok) return 0;
  for (uint32_t i = 0; i < n; i++) out[i] = streams_get64(c->data + 8 * index[i]);
  return 1;
}

static int frame_flags(frame_column *c, uint32_t n) {
  int ok = 1;
  if (!frame_items_fit(c, n) || c->lengths_len || c->data_len != c->items) return 0;
  c->flags = c->data;
  if (c->encoding == ENC_PLAIN) return 1;
  const uint32_t *index = frame_codes(c, n, &ok);
  if (!ok) return 0;
  uint8_t *out = arena_take(n);
  for (uint32_t i = 0; i < n; i++) out[i] = c->data[index[i]];
  c->flags = out;
  return 1;
}

STREAMS_INLINE uint8_t *put_varint(uint8_t *p, uint64_t u) {
  while (u >= 0x80) { *p++ = (uint8_t)u | 0x80; u >>= 7; }
  *p++ = (uint8_t)u;
  return p;
}

/* A long as Avro, without branches below 2^55; writes up to 10 bytes. */
STREAMS_INLINE uint8_t *put_long(uint8_t *p, uint64_t value) {
  uint64_t u = (value << 1) ^ (uint64_t)((int64_t)value >> 63);
  if (u >> 56) return put_varint(p, u);
  uint32_t len = (70 - (uint32_t)__builtin_clzll(u | 1)) * 37 >> 8; /* (bits + 6) / 7 */
  uint64_t x = u;
  x = (x & 0x00fffffff0000000ull) << 4 | (x & 0x000000000fffffffull);
  x = (x & 0x0fffc0000fffc000ull) << 2 | (x & 0x00003fff00003fffull);
  x = (x & 0x3f803f803f803f80ull) << 1 | (x & 0x007f007f007f007full);
  streams_put64(p, x | (0x8080808080808080ull & ((1ull << (8 * (len - 1))) - 1)));
  return p + len;
}

/* BYTES or RAW cells: positions of the items, with Avro lengths put before those of a dictionary of BYTES values.
 * Adds what the cells of all puts take to *total; 0: lengths, codes and data do not fit. */
static int frame_texts(frame_column *c, uint32_t n, int sized, uint64_t *total) {
  int ok = 1;
  uint32_t width = frame_lengths_width(c), items = c->items;
  if (!frame_items_fit(c, n) || c->encoding == ENC_OFFSET || !width) return 0;
  uint32_t *at = arena_take(4ull * items + 4);
  uint64_t end = 0;
  at[0] = 0;
  for (uint32_t i = 0; i < items; i++) {
    end += width == 1 ? c->lengths[i] : width == 2 ? streams_get16(c->lengths + 2 * i) : streams_get32(c->lengths + 4 * i);
    at[i + 1] = (uint32_t)end;
  }
  if (end != c->data_len) return 0; /* end < 2^49: no wrap; equal, so no position was cut off */
  c->at = at;
  c->bytes = c->data;
  c->index = 0;
  if (c->encoding == ENC_PLAIN) { *total += end; return 1; }
  const uint32_t *index = frame_codes(c, n, &ok);
  if (!ok) return 0;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += at[index[i] + 1] - at[index[i]];
  *total += sum;
  c->index = index;
  if (!sized) return 1;
  uint8_t *out = arena_take(c->data_len + 5ull * items + 32), *p = out;
  for (uint32_t i = 0, from = 0; i < items; i++) {
    uint32_t len = at[i + 1] - from;
    p = put_varint(p, (uint64_t)len << 1);
    __builtin_memcpy(p, c->data + from, len);
    p += len;
    from = at[i + 1];
    at[i + 1] = (uint32_t)(p - out);
  }
  c->bytes = out;
  return 1;
}

/* ---- what the schema's program allows, for whole columns ---- */

static int frame_all_utf8(const frame_column *c) {
  uint32_t width = frame_lengths_width(c);
  const uint8_t *p = c->data;
  for (uint32_t i = 0; i < c->items; i++) {
    uint32_t len = width == 1 ? c->lengths[i] : width == 2 ? streams_get16(c->lengths + 2 * i) : streams_get32(c->lengths + 4 * i);
    if (!utf8_valid(p, len)) return 0;
    p += len;
  }
  return 1;
}

static int frame_all_finite(const uint64_t *numbers, uint32_t n) {
  uint64_t bad = 0;
  for (uint32_t i = 0; i < n; i++) bad |= ((numbers[i] & 0x7ff0000000000000ull) + 0x0010000000000000ull) & 0x8000000000000000ull;
  return !bad;
}

static int frame_column_valid(const frame_column *c, uint32_t n, uint8_t opcode) {
  uint64_t bad = 0;
  switch (opcode) {
    case OP_LONG: return c->kind == KIND_LONG;
    case OP_INT:
      if (c->kind != KIND_LONG) return 0;
      for (uint32_t i = 0; i < n; i++) bad |= c->numbers[i] ^ (uint64_t)(int64_t)(int32_t)c->numbers[i];
      return !bad;
    case OP_DOUBLE: return c->kind == KIND_DOUBLE && frame_all_finite(c->numbers, n);
    case OP_BOOLEAN:
      if (c->kind != KIND_BOOLEAN) return 0;
      for (uint32_t i = 0; i < n; i++) bad |= c->flags[i] & 0xfe;
      return !bad;
    case OP_BYTES: return c->kind == KIND_BYTES;
    case OP_STRING: return c->kind == KIND_BYTES && frame_all_utf8(c);
  }
  return 0;
}

/* Whether all bodies are known to be valid: a flat record, and columns of its types. Else each is looked at. */
static int frame_bodies_valid(const frame *f, const uint8_t *program, uint32_t len) {
  if (len != 3 + f->n_columns || program[0] != OP_RECORD || streams_get16(program + 1) != f->n_columns) return 0;
  for (uint32_t i = 0; i < f->n_columns; i++)
    if (!frame_column_valid(&f->columns[i], f->count, program[3 + i])) return 0;
  return 1;
}

/* ---- one body ---- */

/* Copies n bytes in steps of 16, so up to 15 too many: both buffers have that room. */
STREAMS_INLINE void copy_steps(uint8_t *to, const uint8_t *from, uint32_t n) {
  if (n > 512) { __builtin_memcpy(to, from, n); return; }
  uint32_t i = 0;
  do {
    streams_put64(to + i, streams_get64(from + i));
    streams_put64(to + i + 8, streams_get64(from + i + 8));
    i += 16;
  } while (i < n);
}

STREAMS_INLINE uint8_t *frame_put_item(const frame_column *c, uint32_t row, uint8_t *p) {
  uint32_t item = c->index ? c->index[row] : row, from = c->at[item], len = c->at[item + 1] - from;
  copy_steps(p, c->bytes + from, len);
  return p + len;
}

STREAMS_INLINE uint8_t *frame_put_cell(const frame_column *c, uint32_t row, uint8_t *p) {
  switch (c->kind) {
    case KIND_LONG: return put_long(p, c->numbers[row]);
    case KIND_DOUBLE: streams_put64(p, c->numbers[row]); return p + 8;
    case KIND_BOOLEAN: *p = c->flags[row]; return p + 1;
    case KIND_BYTES: if (!c->index) p = put_varint(p, (uint64_t)(c->at[row + 1] - c->at[row]) << 1);
  }
  return frame_put_item(c, row, p);
}

#endif
