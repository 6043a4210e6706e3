/* kv: the last writer wins, in the order of the log (clocks decide between replicas). Payload: the put's value as it came. */
#define STREAMS_LAST_WINS
#define STREAMS_LAST_ALONE
#define STREAMS_COMPACT
#include "streams.h"

int streams_fold_event(const streams_event *e, streams_row *r) {
  if (!e->is_last) { /* a put of the same key follows before the rows are taken: it writes the payload */
    streams_cell *old = streams_peek(e, r);
    streams_touch(e, r, old ? old->len : 0);
    return 0;
  }
  streams_cell *cell = streams_touch(e, r, e->value_len);
  streams_copy(streams_payload(cell), e->value, e->value_len);
  return 0;
}
