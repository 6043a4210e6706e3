/* row_encoder: rows as a fold module gives them -> records of Kafka's record batches (v2), stamped with their commit.
 *
 * Not a UDF: a trusted part of the worker, the opposite of record_decoder. Input of streams_encode, little endian:
 *     u64 seq, u32 batch_bytes, u32 size, u32 count, u32 skips; u8 skip[n] if `skips`; rows as `streams_take` gives them (ABI.md)
 * size, count: what the batch that is open holds already; batch_bytes: how much records of one batch may take. Rows whose `skip`
 * is 1 are left out. Records have no time of their own (delta 0) and no headers, but a removed row's: `seq`, 8 bytes.
 * The answer (24 bytes): records, their length, cuts, how many, then size and count of the batch that is open afterwards.
 * Cuts: u32 at, u32 count each: there a batch of so many records ends. After the last cut: u32 row_at[n], where a row's value
 * begins in the records (for the host's store; meaningless when it was removed or left out). */
#include "streams_base.h"

enum { HEAD = 24, ROW_HEADER = 32 };
static const uint8_t REMOVED_HEADERS[] = {2, 6, 's', 'e', 'q', 16}; /* one, of three bytes; its value of eight follows */

static struct { uint32_t records, records_len, cuts, n_cuts, size, count; } out;

/* Varints are of zigzag numbers; these are never negative. */
STREAMS_INLINE uint32_t varint_size(uint32_t value) {
  uint32_t n = 1;
  for (uint64_t left = (uint64_t)value << 1 >> 7; left; left >>= 7) n++;
  return n;
}

STREAMS_INLINE uint8_t *put_varint(uint8_t *p, uint32_t value) {
  uint64_t left = (uint64_t)value << 1;
  for (; left >= 0x80; left >>= 7) *p++ = (uint8_t)(left | 0x80);
  *p++ = (uint8_t)left;
  return p;
}

typedef struct { const uint8_t *key, *row; uint32_t key_len, row_len; int present; } given;

STREAMS_INLINE uint32_t body_size(const given *g, uint32_t delta) {
  uint32_t value = g->present ? varint_size(g->row_len) + g->row_len + 1 : 1 + sizeof REMOVED_HEADERS + 8;
  return 2 + varint_size(delta) + varint_size(g->key_len) + g->key_len + value;
}

/* One record; where its value begins goes to *value. */
STREAMS_INLINE uint8_t *put_record(uint8_t *p, const given *g, uint32_t delta, uint64_t seq, uint8_t **value) {
  p = put_varint(p, body_size(g, delta));
  *p++ = 0; /* attributes */
  *p++ = 0; /* timestamp delta */
  p = put_varint(p, delta);
  p = put_varint(p, g->key_len);
  streams_copy(p, g->key, g->key_len);
  p += g->key_len;
  if (!g->present) {
    *p++ = 1; /* -1: null */
    streams_copy(p, REMOVED_HEADERS, sizeof REMOVED_HEADERS);
    streams_put64(p + sizeof REMOVED_HEADERS, seq);
    *value = p;
    return p + sizeof REMOVED_HEADERS + 8;
  }
  p = put_varint(p, g->row_len);
  *value = p;
  streams_copy(p, g->row, g->row_len);
  streams_put64(p + 8, seq);
  p += g->row_len;
  *p++ = 0; /* headers */
  return p;
}

STREAMS_EXPORT("streams_encoder_v1") int32_t streams_encoder_v1(void) { return 1; }

/* 0 when the input is not what it should be: nothing of it is believed without a look, though the host has checked it. */
STREAMS_EXPORT("streams_encode") void *streams_encode(const uint8_t *p, uint32_t len) {
  streams_round_over = 1;
  if (len < HEAD + 4) return 0;
  uint64_t seq = streams_get64(p);
  uint32_t most = streams_get32(p + 8), size = streams_get32(p + 12), count = streams_get32(p + 16);
  const uint8_t *end = p + len, *skip = streams_get32(p + 20) ? p + HEAD : 0, *at = p + HEAD;
  uint32_t n = 0;
  if (skip) { /* as many as there are rows, whose number follows: the host says it in `skips` */
    n = streams_get32(p + 20);
    if (n > (uint32_t)(end - at) - 4) return 0;
    at += n;
    if (streams_get32(at) != n) return 0;
  }
  n = streams_get32(at);
  at += 4;
  if (n > (uint32_t)(end - at) / 9 || n > (0x70000000u - (uint32_t)(end - at)) / 40) return 0;
  const uint8_t *key_end = at, *row_end = key_end + 4 * n, *present = row_end + 4 * n, *keys = present + n;
  uint32_t left = (uint32_t)(end - keys), key_bytes = n ? streams_get32(key_end + 4 * (n - 1)) : 0;
  if (key_bytes > left || (n && streams_get32(row_end + 4 * (n - 1)) > left - key_bytes)) return 0;
  const uint8_t *rows = keys + key_bytes;
  uint8_t *records = streams_scratch(left + 40 * n + 16), *to = records; /* a record takes at most 35 bytes more than its row */
  uint32_t *cuts = streams_scratch((n + 1) * 8 + n * 4), n_cuts = 0, key_at = 0, row_at = 0;
  uint32_t *row_starts = streams_scratch(n * 4 + 16);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t ke = streams_get32(key_end + 4 * i), re = streams_get32(row_end + 4 * i);
    if (ke < key_at || re < row_at || ke > key_bytes || re > left - key_bytes) return 0;
    given g = {keys + key_at, rows + row_at, ke - key_at, re - row_at, present[i]};
    key_at = ke;
    row_at = re;
    row_starts[i] = 0;
    if (skip && skip[i]) continue;
    if (g.present && g.row_len < ROW_HEADER) return 0;
    uint32_t body = body_size(&g, count), whole = varint_size(body) + body;
    if (count && size + whole > most) {
      cuts[2 * n_cuts] = (uint32_t)(to - records);
      cuts[2 * n_cuts++ + 1] = count;
      size = count = 0;
      body = body_size(&g, 0);
      whole = varint_size(body) + body;
    }
    uint8_t *value;
    to = put_record(to, &g, count++, seq, &value);
    size += whole;
    row_starts[i] = (uint32_t)(value - records);
  }
  __builtin_memcpy(cuts + 2 * n_cuts, row_starts, n * 4);
  out.records = (uint32_t)(uintptr_t)records;
  out.records_len = (uint32_t)(to - records);
  out.cuts = (uint32_t)(uintptr_t)cuts;
  out.n_cuts = n_cuts;
  out.size = size;
  out.count = count;
  return &out;
}
