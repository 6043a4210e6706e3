/* streams_machine.h: what machines (kind = "machine", ABI.md) share: the batch of commands, and descriptors.
 *
 * A machine includes it, begins `streams_prepare` with `if (!machine_batch(p, len)) return answered(0, 0, -1);`, and reads command i
 * of `batch_n` with `command`, `append_ms` and `offset_of` until the next batch. */
#ifndef STREAMS_MACHINE_H
#define STREAMS_MACHINE_H

#include "streams_base.h"

/* u32 magic, u32 n, i64 append_ms[n], i64 offset[n], u32 end[n], commands */
enum { MACHINE_MAGIC = 0x314d5453 };
static const uint8_t *batch;
static uint32_t batch_n;
static streams_desc answer;

STREAMS_EXPORT("streams_machine_v1") int32_t streams_machine_v1(void) { return 1; }

static streams_desc *answered(const void *p, uint32_t len, int32_t status) {
  answer.ptr = (uint32_t)(uintptr_t)p;
  answer.len = len;
  answer.status = status;
  return &answer;
}

/* Takes a batch; 0 when it is malformed: each command is within it, then. */
static int machine_batch(const uint8_t *p, uint32_t len) {
  uint32_t n = len < 8 ? 0 : streams_get32(p + 4);
  if (len < 8 || streams_get32(p) != MACHINE_MAGIC || n > (len - 8) / 20) return 0;
  batch = p;
  batch_n = n;
  for (uint32_t i = 0, last = 0; i < n; i++) {
    uint32_t end = streams_get32(p + 8 + 16 * n + 4 * i);
    if (end < last || end > len - 8 - 20 * n) return 0;
    last = end;
  }
  return 1;
}

static int64_t append_ms(uint32_t i) { return (int64_t)streams_get64(batch + 8 + 8 * i); }
static uint64_t offset_of(uint32_t i) { return streams_get64(batch + 8 + 8 * (batch_n + i)); }
static const uint8_t *command(uint32_t i, uint32_t *len) {
  const uint8_t *ends = batch + 8 + 16 * batch_n, *blob = ends + 4 * batch_n;
  uint32_t from = i ? streams_get32(ends + 4 * (i - 1)) : 0;
  *len = streams_get32(ends + 4 * i) - from;
  return blob + from;
}

#endif
