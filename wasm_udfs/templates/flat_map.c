/* NAME: counts the words of the values of `kv` in `score`: each adds 1 to the word's key. Called once for every put. */
#include "streams_map.h"

static int is_letter(uint8_t c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }

int streams_flat_map_event(const streams_event *e) {
  streams_reader body = streams_body(e); /* streams.Json {"json": string} */
  uint32_t len;
  const uint8_t *text = streams_read_bytes(&body, &len);
  if (body.error) return streams_reject("malformed value"); /* becomes a dead letter */

  uint8_t one[1]; /* streams.CounterAdd {"add": long} */
  streams_write_long(one, 1);
  for (uint32_t i = 0; i < len;) {
    uint32_t start = i;
    while (i < len && i - start < 64 && is_letter(text[i])) i++;
    if (i > start) streams_emit(0, text + start, i - start, one, 1);
    else i++;
  }
  return 0;
}
