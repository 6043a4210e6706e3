/* NAME: every put to `score` becomes a number in `best`, under the same name. Called once for every put. */
#include "streams_map.h"

int streams_map_event(const streams_event *e) {
  streams_reader body = streams_body(e); /* streams.CounterAdd {"add": long} */
  int64_t add = streams_read_long(&body);
  if (body.error) return streams_reject("malformed value"); /* becomes a dead letter */

  uint8_t number[8]; /* streams.Number {"value": double} */
  streams_write_double(number, (double)add);
  streams_emit(0, 0, 0, number, 8); /* to the first output, under the event's own name */
  return 0;
}
