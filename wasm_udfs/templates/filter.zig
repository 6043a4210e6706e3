//! NAME: passes the objects among the values of `kv` on to `content`. Called once for every put.
const streams = @import("streams");

export fn streams_filter_event(e: *const streams.Event) c_int {
    var body = e.body(); // streams.Json {"json": string}
    const text = body.bytes() catch return streams.reject("malformed value"); // becomes a dead letter
    return if (text.len > 0 and text[0] == '{') streams.keep else streams.drop;
}
