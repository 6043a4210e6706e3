/* NAME: how many puts of 10 points or more each key of `score` got. Called once for every put, in the log's order. */
#include "streams.h"

int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_reader body = streams_body(e); /* streams.CounterAdd {"add": long} */
  int64_t add = streams_read_long(&body);
  if (body.error) return streams_reject("malformed value"); /* becomes a dead letter */
  if (add < 10) return 0;

  streams_cell *old = streams_peek(e, r);
  uint64_t count = old ? streams_get64(streams_payload(old)) : 0;
  streams_put64(streams_payload(streams_touch(e, r, 16)), count + 1); /* a counter's cell: sum added, sum subtracted */
  return 0;
}
