/* A UDF that misbehaves on every event, in turn: loops for ever, eats memory, recurses, traps. For `streams bench hostile`. */
#include "streams.h"

static volatile uint32_t sink;
static uint8_t *volatile hole;

static uint32_t recurse(uint32_t n) {
  volatile uint8_t frame[64];
  frame[n % 64] = (uint8_t)n;
  return n == 0xFFFFFFFF ? 0 : recurse(n + 1) + frame[n % 64];
}

int streams_fold_event(const streams_event *e, streams_row *r) {
  (void)r;
  switch (e->key[e->key_len - 1] % 4) {
    case 0: for (;;) sink++;
    case 1: for (;;) hole = streams_malloc(1 << 20);
    case 2: sink = recurse(0); break;
    default: __builtin_trap();
  }
  return 0;
}
