/* glue.c: the C SDK compiled for a module whose functions are written in Zig (streams.zig). */
#if defined(STREAMS_MAP) || defined(STREAMS_FILTER) || defined(STREAMS_FLAT_MAP)
#include "streams_map.h"

void streams_glue_emit(uint32_t output, const uint8_t *rest, uint32_t rest_len, const uint8_t *body, uint32_t body_len) {
  streams_emit(output, rest, rest_len, body, body_len);
}
#else
#define STREAMS_FOLD_ELSEWHERE
#include "streams.h"

const uint8_t *streams_glue_peek(const streams_event *e, streams_row *r, uint32_t *len) {
  streams_cell *c = streams_peek(e, r);
  *len = c ? c->len : 0;
  return c ? streams_payload(c) : 0;
}

uint8_t *streams_glue_touch(const streams_event *e, streams_row *r, uint32_t len) { return streams_payload(streams_touch(e, r, len)); }
#endif

int streams_glue_reject(const char *reason) { return streams_reject(reason); }
