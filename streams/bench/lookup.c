/* lookup: the small function of `streams bench udf`: the points of ?player=, from the region's table. */
#include "streams_function.h"

void streams_handle_request(const streams_request *q, streams_response *r) {
  streams_buffer key = {0, 0, 0};
  streams_append_literal(&key, "score:");
  streams_append_text(&key, streams_field(q, "query.player"));
  streams_text points = streams_table_get("score", streams_text_of(&key));
  streams_header(r, "content-type", streams_literal("application/json"));
  streams_write(r, "{\"points\": ");
  streams_append_long(&r->body, streams_json_long(points, 0));
  streams_write(r, "}");
}
