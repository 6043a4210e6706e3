//! NAME: how many puts of 10 points or more each key of `score` got. Called once for every put, in the log's order.
const streams = @import("streams");

export fn streams_fold_event(e: *const streams.Event, r: *streams.Row) c_int {
    var body = e.body(); // streams.CounterAdd {"add": long}
    const add = body.long() catch return streams.reject("malformed value"); // becomes a dead letter
    if (add < 10) return 0;

    const count = if (streams.peek(e, r)) |old| streams.get64(old) else 0;
    streams.put64(streams.touch(e, r, 16), count + 1); // a counter's cell: sum added, sum subtracted
    return 0;
}
