/* Answers nonsense where LIE says so, on batches that hold a key containing '!'; else nothing changes. For tests only. */
#include "streams_base.h"

static uint8_t memory[64];
static streams_desc answer;
static int lying;

static streams_desc *reply(const void *p, uint32_t len, int32_t status) {
  answer = (streams_desc){(uint32_t)(uintptr_t)p, len, status};
  return &answer;
}
static streams_desc *lie(int kind) {
  for (int i = 0; i < 64; i++) memory[i] = 0;
  if (kind == 0) return (streams_desc *)0xFFFFFFF0u;
  if (kind == 1) return reply((void *)0xFFFFFF00u, 4096, 0);
  if (kind == 2) return reply(memory, 0x7FFFFFFF, 0);
  if (kind == 3) { streams_put32(memory, 0xFFFFFFFF); return reply(memory, 64, 0); }
  if (kind == 4) { streams_put32(memory, 1); streams_put32(memory + 4, 0xFFFFFFFF); return reply(memory, 64, 0); }
  if (kind == 5) return reply(memory, 64, -7);
  if (kind == 6) return reply(memory, 2, 0);
  streams_put32(memory, 1); /* a row with a zero-byte key */
  streams_put32(memory + 4, 1);
  return reply(memory, 64, 1);
}
STREAMS_EXPORT("streams_abi_v1") int32_t abi(void) { return 1; }
STREAMS_EXPORT("streams_prepare") streams_desc *prepare(const uint8_t *p, uint32_t len) {
  lying = 0;
  for (uint32_t i = 0; i < len; i++) lying |= p[i] == '!';
  if (LIE / 10 == 1 && lying) return lie(LIE % 10);
  return reply(memory, 4, (streams_put32(memory, 0), 0));
}
STREAMS_EXPORT("streams_load") int32_t load(const uint8_t *p, uint32_t len) { (void)p; (void)len; return 0; }
STREAMS_EXPORT("streams_fold") streams_desc *fold(const uint8_t *p, uint32_t len) {
  (void)p; (void)len;
  streams_round_over = 1;
  if (LIE / 10 == 2 && lying) return lie(LIE % 10);
  return reply(memory, 4, (streams_put32(memory, 0), 0));
}
STREAMS_EXPORT("streams_take") streams_desc *take(void) {
  if (LIE / 10 == 3 && lying) return lie(LIE % 10);
  return reply(memory, 4, (streams_put32(memory, 0), 0));
}
