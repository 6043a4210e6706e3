/* Checks an Avro binary value against a program (streams/wasm/avro_program.py): a tiny interpreter, no value is built. */
#ifndef AVRO_CHECK_H
#define AVRO_CHECK_H

#include "streams_base.h"

enum { AVRO_OK = 0, AVRO_TRUNCATED = 14, AVRO_TRAILING = 15, AVRO_INVALID = 16, AVRO_NON_FINITE = 17, AVRO_TOO_DEEP = 18, AVRO_TOO_LONG = 19 };
enum { AVRO_DEPTH_MAX = 256, AVRO_EMPTY_ITEMS_MAX = 65536 };
enum {
  OP_NULL, OP_BOOLEAN, OP_INT, OP_LONG, OP_FLOAT, OP_DOUBLE, OP_BYTES, OP_STRING, OP_FIXED, OP_ENUM,
  OP_ARRAY, OP_MAP, OP_UNION, OP_RECORD, OP_REF
};

typedef struct {
  const uint8_t *p, *end, *program;
  uint32_t empty_items; /* items that took no bytes: the only ones an input could claim without end */
  int code;
} avro_value;

/* Strict UTF-8 (no surrogates, no overlong forms). */
STREAMS_UNUSED static int utf8_valid(const uint8_t *p, uint32_t n) {
  const uint8_t *end = p + n;
  while (p < end) {
    if (end - p >= 8 && !(streams_get64(p) & 0x8080808080808080ull)) { p += 8; continue; }
    uint8_t c = *p;
    if (c < 0x80) { p++; continue; }
    uint32_t more = c >= 0xC2 && c <= 0xDF ? 1 : (c & 0xF0) == 0xE0 ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : 0;
    if (!more || (uint32_t)(end - p) <= more) return 0;
    uint8_t d = p[1];
    if ((c == 0xE0 && d < 0xA0) || (c == 0xED && d > 0x9F) || (c == 0xF0 && d < 0x90) || (c == 0xF4 && d > 0x8F)) return 0;
    for (uint32_t i = 1; i <= more; i++) if ((p[i] & 0xC0) != 0x80) return 0;
    p += more + 1;
  }
  return 1;
}

static int avro_fail(avro_value *v, int code) { v->code = code; return 0; }

/* A zigzag varint of at most `bits` bits of value. */
STREAMS_INLINE int avro_varint(avro_value *v, uint32_t bits, int64_t *out) {
  uint64_t u = 0;
  for (uint32_t shift = 0; shift < bits; shift += 7) {
    if (v->p >= v->end) return avro_fail(v, AVRO_TRUNCATED);
    uint8_t b = *v->p++;
    uint32_t room = bits - shift;
    if (room < 7 && (b >> room)) return avro_fail(v, AVRO_INVALID);
    u |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) { *out = (int64_t)(u >> 1) ^ -(int64_t)(u & 1); return 1; }
  }
  return avro_fail(v, AVRO_INVALID);
}

STREAMS_INLINE int avro_skip(avro_value *v, uint64_t n) {
  if (n > (uint64_t)(v->end - v->p)) return avro_fail(v, AVRO_TRUNCATED);
  v->p += n;
  return 1;
}

static int avro_bytes(avro_value *v, int text) {
  int64_t n;
  if (!avro_varint(v, 64, &n)) return 0;
  if (n < 0) return avro_fail(v, AVRO_INVALID);
  const uint8_t *at = v->p;
  if (!avro_skip(v, (uint64_t)n)) return 0;
  return !text || utf8_valid(at, (uint32_t)n) ? 1 : avro_fail(v, AVRO_INVALID);
}

static uint32_t avro_check(avro_value *v, uint32_t pc, uint32_t depth);

/* Blocks of an array or map whose item's program is at `item`. */
static void avro_blocks(avro_value *v, uint32_t item, int map, uint32_t depth) {
  for (;;) {
    int64_t count, size = -1;
    if (!avro_varint(v, 64, &count) || count == 0) return;
    if (count < 0) {
      if (count == INT64_MIN) { avro_fail(v, AVRO_INVALID); return; }
      count = -count;
      if (!avro_varint(v, 64, &size)) return;
      if (size < 0) { avro_fail(v, AVRO_INVALID); return; }
    }
    const uint8_t *start = v->p;
    for (; count > 0; count--) {
      const uint8_t *before = v->p;
      if (map && !avro_bytes(v, 1)) return;
      avro_check(v, item, depth);
      if (v->code) return;
      if (v->p == before && ++v->empty_items > AVRO_EMPTY_ITEMS_MAX) { avro_fail(v, AVRO_TOO_LONG); return; }
    }
    if (size >= 0 && v->p - start != size) { avro_fail(v, AVRO_INVALID); return; }
  }
}

static void avro_number(avro_value *v, uint32_t width) {
  if (!avro_skip(v, width)) return;
  int finite = width == 8 ? (streams_get64(v->p - 8) >> 52 & 0x7ff) != 0x7ff : (streams_get32(v->p - 4) >> 23 & 0xff) != 0xff;
  if (!finite) avro_fail(v, AVRO_NON_FINITE);
}

/* Checks the value of the node at pc; the position after the node. v->code says what is wrong. */
static uint32_t avro_check(avro_value *v, uint32_t pc, uint32_t depth) {
  const uint8_t *program = v->program;
  int64_t n;
  if (depth > AVRO_DEPTH_MAX) { avro_fail(v, AVRO_TOO_DEEP); return pc; }
  switch (program[pc++]) {
    case OP_NULL: return pc;
    case OP_BOOLEAN:
      if (avro_skip(v, 1) && v->p[-1] > 1) avro_fail(v, AVRO_INVALID);
      return pc;
    case OP_INT: avro_varint(v, 32, &n); return pc;
    case OP_LONG: avro_varint(v, 64, &n); return pc;
    case OP_FLOAT: avro_number(v, 4); return pc;
    case OP_DOUBLE: avro_number(v, 8); return pc;
    case OP_BYTES: avro_bytes(v, 0); return pc;
    case OP_STRING: avro_bytes(v, 1); return pc;
    case OP_FIXED: avro_skip(v, streams_get32(program + pc)); return pc + 4;
    case OP_ENUM:
      if (avro_varint(v, 32, &n) && (n < 0 || n >= streams_get32(program + pc))) avro_fail(v, AVRO_INVALID);
      return pc + 4;
    case OP_ARRAY: avro_blocks(v, pc + 4, 0, depth + 1); return streams_get32(program + pc);
    case OP_MAP: avro_blocks(v, pc + 4, 1, depth + 1); return streams_get32(program + pc);
    case OP_UNION: {
      uint32_t branches = streams_get16(program + pc);
      if (avro_varint(v, 64, &n)) {
        if (n < 0 || n >= branches) avro_fail(v, AVRO_INVALID);
        else avro_check(v, streams_get32(program + pc + 6 + 4 * (uint32_t)n), depth + 1);
      }
      return streams_get32(program + pc + 2);
    }
    case OP_RECORD: {
      uint32_t fields = streams_get16(program + pc);
      pc += 2;
      for (uint32_t i = 0; i < fields && !v->code; i++) pc = avro_check(v, pc, depth + 1);
      return pc;
    }
    case OP_REF: avro_check(v, streams_get32(program + pc), depth + 1); return pc + 4;
  }
  __builtin_trap(); /* not a program of avro_program() */
}

/* 0, or why `body` is not exactly one value. */
static int avro_body(const uint8_t *program, const uint8_t *body, uint32_t len) {
  avro_value v = {body, body + len, program, 0, 0};
  avro_check(&v, 0, 0);
  return v.code ? v.code : v.p == v.end ? AVRO_OK : AVRO_TRAILING;
}

#endif
