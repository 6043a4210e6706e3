/* NAME: passes the objects among the values of `kv` on to `content`. Called once for every put. */
#include "streams_map.h"

int streams_filter_event(const streams_event *e) {
  streams_reader body = streams_body(e); /* streams.Json {"json": string} */
  uint32_t len;
  const uint8_t *text = streams_read_bytes(&body, &len);
  if (body.error) return streams_reject("malformed value"); /* becomes a dead letter */
  return len && text[0] == '{' ? STREAMS_KEEP : STREAMS_DROP;
}
