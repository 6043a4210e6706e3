//! NAME: every put to `score` becomes a number in `best`, under the same name. Called once for every put.
const streams = @import("streams");

export fn streams_map_event(e: *const streams.Event) c_int {
    var body = e.body(); // streams.CounterAdd {"add": long}
    const add = body.long() catch return streams.reject("malformed value"); // becomes a dead letter

    var room: [8]u8 = undefined;
    var number = streams.Writer{ .room = &room }; // streams.Number {"value": double}
    number.double(@floatFromInt(add)) catch return streams.reject("no room");
    streams.emit(0, "", number.written()); // to the first output, under the event's own name
    return 0;
}
