/* A counter that misbehaves on keys named after the misbehaviour, and counts on all others. For tests only. */
#include "streams.h"

static volatile uint32_t sink;
static uint8_t *volatile hole;

static uint32_t recurse(uint32_t n) {
  volatile uint8_t frame[64];
  frame[n % 64] = (uint8_t)n;
  return n == 0xFFFFFFFF ? 0 : recurse(n + 1) + frame[n % 64];
}

static int has(const streams_event *e, const char *word) {
  uint32_t n = 0;
  while (word[n]) n++;
  return e->key_len >= n + 2 && streams_equal(e->key + 2, word, n);
}

int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_reader body = streams_body(e);
  int64_t add = streams_read_long(&body);
  if (has(e, "refuse")) return streams_reject("refused");
  if (has(e, "trap")) __builtin_trap();
  if (has(e, "divide")) sink = (uint32_t)add / sink;
  if (has(e, "wild")) *(volatile uint8_t *)0xFFFFFF00u = 1;
  if (has(e, "loop")) for (;;) sink++;
  if (has(e, "fill")) for (;;) { hole = streams_malloc(1 << 20); __builtin_memset(hole, (int)sink++, 1 << 20); streams_free(hole, 1 << 20); }
  if (has(e, "bomb")) for (;;) hole = streams_malloc(1 << 20);
  if (has(e, "deep")) sink = recurse(0);
  uint8_t *payload = streams_payload(streams_touch(e, r, has(e, "giant") ? 3 << 20 : 16));
  streams_put64(payload, streams_get64(payload) + (uint64_t)add);
  if (has(e, "late")) return streams_reject("rejected after touching");
  return 0;
}
