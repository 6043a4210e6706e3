/* A flat_map that misbehaves by its event's key. */
#include "streams_map.h"

static int is(const streams_event *e, const char *word) {
  uint32_t n, at = 0;
  const uint8_t *rest = streams_rest(e, &n);
  while (word[at] && at < n && rest[at] == (uint8_t)word[at]) at++;
  return !word[at] && at == n;
}

static volatile uint32_t forever = 1;

int streams_flat_map_event(const streams_event *e) {
  static uint8_t big[1 << 16];
  uint8_t one[1] = {2};
  streams_emit(0, 0, 0, one, 1);
  if (is(e, "trap")) __builtin_trap();
  if (is(e, "spin")) while (forever) {}
  if (is(e, "output")) streams_emit(7, 0, 0, one, 1);
  if (is(e, "delete")) streams_emit_delete(0, 0, 0);
  if (is(e, "many")) for (int i = 0; i < 20000; i++) streams_emit(0, "x", 1, one, 1);
  if (is(e, "large")) for (int i = 0; i < 80; i++) streams_emit(0, 0, 0, big, sizeof big);
  if (is(e, "nonsense")) streams_emit(0, 0, 0, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11);
  if (is(e, "longkey")) streams_emit(0, big, 1100, one, 1);
  if (is(e, "latin")) streams_emit(0, "\xe9", 1, one, 1);
  if (is(e, "refuse")) return streams_reject("no thanks");
  return 0;
}
