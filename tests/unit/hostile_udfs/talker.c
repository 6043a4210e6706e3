/* A counter that writes every event to an output topic, and misbehaves on keys named after it. For tests only. */
#include "streams.h"

static uint8_t big[1 << 21];

static int has(const streams_event *e, const char *word) {
  uint32_t n = 0;
  while (word[n]) n++;
  return e->key_len >= n + 2 && streams_equal(e->key + 2, word, n);
}

int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_reader body = streams_body(e);
  int64_t add = streams_read_long(&body);
  if (has(e, "refuse")) return streams_reject("refused");
  streams_output(0, e->key, e->key_len, e->value, e->value_len);
  if (has(e, "both")) streams_output(1, e->key, e->key_len, e->value, 0);
  if (has(e, "trap")) __builtin_trap();
  if (has(e, "regret")) return streams_reject("rejected after an output");
  if (has(e, "topic")) streams_output(2, e->key, e->key_len, e->value, e->value_len);
  if (has(e, "nokey")) streams_output(0, e->key, 0, e->value, e->value_len);
  if (has(e, "zero")) streams_output(0, big, 1, e->value, e->value_len);
  if (has(e, "longkey")) { big[0] = 'k'; streams_output(0, big, 1025, e->value, e->value_len); }
  if (has(e, "huge")) streams_output(0, e->key, e->key_len, big, 1000001);
  uint8_t *payload = streams_payload(streams_touch(e, r, 16));
  streams_put64(payload, streams_get64(payload) + (uint64_t)add);
  return 0;
}
