/* streams_map.h: C SDK of the stateless kinds, map v1 (../ABI.md): map, filter, flat_map. One source file includes it and
 * writes the function of its kind (build.py defines STREAMS_MAP, STREAMS_FILTER or STREAMS_FLAT_MAP, and STREAMS_PUTS, the
 * number of keyspaces in the manifest's `output`); it is called for every put, in the log's order of its key:
 *
 *     int streams_map_event(const streams_event *e);       calls streams_emit once, or refuses
 *     int streams_flat_map_event(const streams_event *e);  calls streams_emit as often as it likes
 *     int streams_filter_event(const streams_event *e);    STREAMS_KEEP or STREAMS_DROP, or refuses
 *
 * Return 0, or `streams_reject("reason")`: the event becomes a dead letter and what it emitted is dropped.
 * Nothing may be kept from one event to the next: what comes out depends on the event alone.
 *
 * Deletes: map and filter pass them on to every output, under the event's own key; flat_map passes none on. A map that makes
 * other keys defines STREAMS_ON_DELETE before the include and writes `int streams_delete_event(const streams_event *e)`, which
 * calls streams_emit_delete (a delete has a key and no value). */
#ifndef STREAMS_MAP_H
#define STREAMS_MAP_H

#include "streams_batch.h"

#if defined(STREAMS_MAP) + defined(STREAMS_FILTER) + defined(STREAMS_FLAT_MAP) != 1
#error "the kind is not defined: build with `streams udf build`, or -DSTREAMS_MAP, -DSTREAMS_FILTER or -DSTREAMS_FLAT_MAP"
#endif
#ifndef STREAMS_PUTS
#define STREAMS_PUTS 1
#endif

enum { STREAMS_DROP = 0, STREAMS_KEEP = 2 }; /* 1: rejected */
enum { STREAMS_EMIT_PUT = 0, STREAMS_EMIT_DELETE = 1, STREAMS_EMIT_PASS = 2 };

/* The event's key after its keyspace: of `score:alice` it is `alice`. Not terminated. */
STREAMS_INLINE const uint8_t *streams_rest(const streams_event *e, uint32_t *len) {
  uint32_t at = 0;
  while (at < e->key_len && e->key[at] != ':') at++;
  if (at < e->key_len) at++;
  *len = e->key_len - at;
  return e->key + at;
}

/* Avro bytes or string, written at p; returns where it ends. */
STREAMS_INLINE uint8_t *streams_write_bytes(uint8_t *p, const void *bytes, uint32_t len) {
  p = streams_write_long(p, len);
  streams_copy(p, bytes, len);
  return p + len;
}

static streams_buffer streams_m_event, streams_m_to, streams_m_op, streams_m_key_end, streams_m_value_end, streams_m_keys, streams_m_values;
static uint32_t streams_m_n, streams_m_now;

STREAMS_UNUSED static void streams_emit_as(uint32_t op, uint32_t output, const void *key, uint32_t key_len, const void *body, uint32_t body_len) {
  streams_buffer_add(&streams_m_keys, key, key_len);
  streams_buffer_add(&streams_m_values, body, body_len);
  streams_buffer_add(&streams_m_event, &streams_m_now, 4);
  streams_buffer_add(&streams_m_to, &output, 4);
  streams_buffer_add(&streams_m_op, &op, 4);
  streams_buffer_add(&streams_m_key_end, &streams_m_keys.n, 4);
  streams_buffer_add(&streams_m_value_end, &streams_m_values.n, 4);
  streams_m_n++;
}

/* A put to keyspace `output` (an index into the manifest's `output`). `rest`: its key without the keyspace, empty: the event's
 * own. `body`: the Avro body in the output's schema. */
STREAMS_INLINE void streams_emit(uint32_t output, const void *rest, uint32_t rest_len, const void *body, uint32_t body_len) {
  streams_emit_as(STREAMS_EMIT_PUT, output, rest, rest_len, body, body_len);
}

/* A delete in keyspace `output`. */
STREAMS_INLINE void streams_emit_delete(uint32_t output, const void *rest, uint32_t rest_len) {
  streams_emit_as(STREAMS_EMIT_DELETE, output, rest, rest_len, 0, 0);
}

/* The event's own value, as it came, under the event's own key in keyspace `output`; the schemas must be the same. */
STREAMS_INLINE void streams_emit_pass(uint32_t output) { streams_emit_as(STREAMS_EMIT_PASS, output, 0, 0, 0, 0); }

#ifdef STREAMS_ON_DELETE
int streams_delete_event(const streams_event *e);
#else
STREAMS_INLINE int streams_delete_event(const streams_event *e) {
  (void)e;
#ifndef STREAMS_FLAT_MAP
  for (uint32_t output = 0; output < STREAMS_PUTS; output++) streams_emit_delete(output, 0, 0);
#endif
  return 0;
}
#endif

#ifdef STREAMS_MAP
int streams_map_event(const streams_event *e);
STREAMS_INLINE int streams_m_put(const streams_event *e) { return streams_map_event(e); }
#elif defined(STREAMS_FLAT_MAP)
int streams_flat_map_event(const streams_event *e);
STREAMS_INLINE int streams_m_put(const streams_event *e) { return streams_flat_map_event(e); }
#else
int streams_filter_event(const streams_event *e);
STREAMS_INLINE int streams_m_put(const streams_event *e) {
  int verdict = streams_filter_event(e);
  if (verdict == STREAMS_KEEP)
    for (uint32_t output = 0; output < STREAMS_PUTS; output++) streams_emit_pass(output);
  return verdict == STREAMS_KEEP ? 0 : verdict;
}
#endif

/* ---- exports ---- */

STREAMS_EXPORT("streams_map_v1") int32_t streams_map_v1(void) { return 1; }

static uint8_t *streams_m_column(uint8_t *to, const streams_buffer *b) {
  if (b->n) __builtin_memcpy(to, b->data, b->n);
  return to + b->n;
}

static void streams_m_cut(uint32_t n, uint32_t keys, uint32_t values) {
  streams_m_n = n;
  streams_m_event.n = streams_m_to.n = streams_m_op.n = streams_m_key_end.n = streams_m_value_end.n = 4 * n;
  streams_m_keys.n = keys;
  streams_m_values.n = values;
}

STREAMS_EXPORT("streams_map") streams_desc *streams_map(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  streams_reject_list rejects = {0, 0, 0, 0};
  streams_m_cut(0, 0, 0);
  for (uint32_t i = 0; i < b.n; i++) {
    streams_event e;
    streams_event_read(&b, i, &e);
    e.h = e.hlc;
    streams_m_now = i;
    uint32_t n = streams_m_n, keys = streams_m_keys.n, values = streams_m_values.n;
    int refused = e.op == STREAMS_OP_PUT ? streams_m_put(&e) : e.op == STREAMS_OP_DELETE ? streams_delete_event(&e) : 0;
    if (refused) {
      streams_m_cut(n, keys, values);
      streams_add_reject(&rejects, i);
    }
  }
  uint32_t size = 8 + 8 * rejects.n + 20 * streams_m_n + rejects.bytes + streams_m_keys.n + streams_m_values.n;
  uint8_t *out = streams_scratch(size), *at = out + 8, *ends = at + 4 * rejects.n;
  streams_put32(out, rejects.n);
  streams_put32(out + 4, streams_m_n);
  uint32_t end = 0;
  for (uint32_t i = 0; i < rejects.n; i++) {
    end += rejects.list[i].len;
    streams_put32(at + 4 * i, rejects.list[i].index);
    streams_put32(ends + 4 * i, end);
  }
  at = ends + 4 * rejects.n;
  at = streams_m_column(at, &streams_m_event);
  at = streams_m_column(at, &streams_m_to);
  at = streams_m_column(at, &streams_m_op);
  at = streams_m_column(at, &streams_m_key_end);
  at = streams_m_column(at, &streams_m_value_end);
  for (uint32_t i = 0; i < rejects.n; i++) {
    streams_copy(at, rejects.list[i].reason, rejects.list[i].len);
    at += rejects.list[i].len;
  }
  at = streams_m_column(at, &streams_m_keys);
  at = streams_m_column(at, &streams_m_values);
  streams_round_over = 1;
  return streams_answer(out, size, 0);
}

#endif
