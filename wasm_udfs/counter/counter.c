/* counter: per-origin PN-counter. Value: streams.CounterAdd{add: long}. Payload: i64 positive sum, i64 negative sum. */
#include "streams.h"

int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_reader body = streams_body(e);
  int64_t add = streams_read_long(&body);
  if (body.error) return streams_reject("malformed value");

  streams_cell *old = streams_peek(e, r);
  uint64_t positive = old ? streams_get64(streams_payload(old)) : 0;
  uint64_t negative = old ? streams_get64(streams_payload(old) + 8) : 0;
  if (add >= 0) positive += (uint64_t)add;
  else negative += 0 - (uint64_t)add;
  if (positive > INT64_MAX || negative > INT64_MAX) return streams_reject("counter overflow");

  uint8_t *payload = streams_payload(streams_touch(e, r, 16));
  streams_put64(payload, positive);
  streams_put64(payload + 8, negative);
  return 0;
}
