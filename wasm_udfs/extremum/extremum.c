/* extremum: the greatest (merge = max) or least (merge = min) number put. Value: streams.Number{value: double}. Payload: f64. */
#include "streams.h"

int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_reader body = streams_body(e);
  double value = streams_read_double(&body);
  if (body.error) return streams_reject("malformed value");
  if (__builtin_isnan(value) || __builtin_isinf(value)) return streams_reject("non-finite number");

  streams_cell *old = streams_peek(e, r);
  if (old) {
    double best = streams_get_f64(streams_payload(old));
    if (STREAMS_MERGE == STREAMS_MERGE_MAX ? best >= value : best <= value) value = best;
  }
  streams_put_f64(streams_payload(streams_touch(e, r, 8)), value);
  return 0;
}
