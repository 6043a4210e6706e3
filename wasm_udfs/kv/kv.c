/* kv: the last writer wins, in the order of the log (clocks decide between replicas). Payload: the put's value as it came. */
#include "streams.h"

int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_cell *cell = streams_touch(e, r, e->value_len);
  streams_copy(streams_payload(cell), e->value, e->value_len);
  return 0;
}
