//! NAME: counts the words of the values of `kv` in `score`: each adds 1 to the word's key. Called once for every put.
const streams = @import("streams");

fn isLetter(c: u8) bool {
    return (c | 32) >= 'a' and (c | 32) <= 'z';
}

export fn streams_flat_map_event(e: *const streams.Event) c_int {
    var body = e.body(); // streams.Json {"json": string}
    const text = body.bytes() catch return streams.reject("malformed value"); // becomes a dead letter

    const one = [_]u8{2}; // streams.CounterAdd {"add": 1}
    var i: usize = 0;
    while (i < text.len) {
        const start = i;
        while (i < text.len and i - start < 64 and isLetter(text[i])) i += 1;
        if (i > start) streams.emit(0, text[start..i], &one) else i += 1;
    }
    return 0;
}
