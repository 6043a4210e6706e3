//! streams.zig: Zig SDK of folds, maps, filters and flat_maps: `const streams = @import("streams");`.
//!
//! A UDF exports the function of its kind with C's calling convention (`export fn`), as the C SDK's heads say
//! (streams.h, streams_map.h); rows, clocks and the ABI are done there. Memory of an event is valid during its call.

const std = @import("std");

/// An event as the module gets it. `value_ptr`: wire format, 5 bytes of prefix and the Avro body.
pub const Event = extern struct {
    append_ms: i64,
    expires_ms: i64,
    hlc: u64,
    generation: u64,
    h: u64,
    key_ptr: [*]const u8,
    value_ptr: [*]const u8,
    key_len: u32,
    value_len: u32,
    index: u32,
    op: u32,

    /// The whole key, as `score:alice`.
    pub fn key(e: *const Event) []const u8 {
        return e.key_ptr[0..e.key_len];
    }

    /// The key without its keyspace, as `alice`.
    pub fn rest(e: *const Event) []const u8 {
        const whole = e.key();
        const at = std.mem.indexOfScalar(u8, whole, ':') orelse return whole;
        return whole[at + 1 ..];
    }

    /// A reader of the put's Avro body.
    pub fn body(e: *const Event) Reader {
        return .{ .left = e.value_ptr[@min(5, e.value_len)..e.value_len] };
    }
};

/// Reads Avro's binary encoding; what is cut off is error.Malformed.
pub const Reader = struct {
    left: []const u8,

    pub fn long(r: *Reader) error{Malformed}!i64 {
        var v: u64 = 0;
        var shift: u7 = 0;
        while (shift < 70) : (shift += 7) {
            if (r.left.len == 0) return error.Malformed;
            const b = r.left[0];
            r.left = r.left[1..];
            if (shift < 64) v |= @as(u64, b & 0x7f) << @intCast(shift);
            if (b & 0x80 == 0) return @as(i64, @bitCast(v >> 1)) ^ -@as(i64, @intCast(v & 1));
        }
        return error.Malformed;
    }

    pub fn double(r: *Reader) error{Malformed}!f64 {
        if (r.left.len < 8) return error.Malformed;
        const v = std.mem.readInt(u64, r.left[0..8], .little);
        r.left = r.left[8..];
        return @bitCast(v);
    }

    pub fn boolean(r: *Reader) error{Malformed}!bool {
        if (r.left.len == 0) return error.Malformed;
        const b = r.left[0];
        r.left = r.left[1..];
        return b == 1;
    }

    /// The bytes of a string or bytes value.
    pub fn bytes(r: *Reader) error{Malformed}![]const u8 {
        const n = try r.long();
        if (n < 0 or n > r.left.len) return error.Malformed;
        const found = r.left[0..@intCast(n)];
        r.left = r.left[@intCast(n)..];
        return found;
    }
};

/// Writes Avro's binary encoding into `room`; too little room is error.NoRoom.
pub const Writer = struct {
    room: []u8,
    len: usize = 0,

    pub fn written(w: *const Writer) []const u8 {
        return w.room[0..w.len];
    }

    pub fn raw(w: *Writer, data: []const u8) error{NoRoom}!void {
        if (data.len > w.room.len - w.len) return error.NoRoom;
        @memcpy(w.room[w.len..][0..data.len], data);
        w.len += data.len;
    }

    pub fn long(w: *Writer, value: i64) error{NoRoom}!void {
        var v: u64 = (@as(u64, @bitCast(value)) << 1) ^ @as(u64, @bitCast(value >> 63));
        while (v > 0x7f) : (v >>= 7) try w.raw(&.{@as(u8, @truncate(v)) | 0x80});
        try w.raw(&.{@as(u8, @truncate(v))});
    }

    pub fn double(w: *Writer, value: f64) error{NoRoom}!void {
        var bits: [8]u8 = undefined;
        std.mem.writeInt(u64, &bits, @bitCast(value), .little);
        try w.raw(&bits);
    }

    pub fn bytes(w: *Writer, data: []const u8) error{NoRoom}!void {
        try w.long(@intCast(data.len));
        try w.raw(data);
    }
};

/// Refuse the event: `return streams.reject("why")`. It becomes a dead letter and leaves no trace.
pub fn reject(reason: [*:0]const u8) c_int {
    return streams_glue_reject(reason);
}

// ---- folds

/// The row of the event's key.
pub const Row = opaque {};

/// The payload that the put would continue; null: it would start a new one. Changes nothing.
pub fn peek(e: *const Event, r: *Row) ?[]const u8 {
    var len: u32 = 0;
    const p = streams_glue_peek(e, r, &len) orelse return null;
    return p[0..len];
}

/// The row is written: the payload to write, of `len` bytes, zeroed when it is new.
pub fn touch(e: *const Event, r: *Row, len: u32) []u8 {
    return streams_glue_touch(e, r, len)[0..len];
}

pub fn get64(p: []const u8) u64 {
    return std.mem.readInt(u64, p[0..8], .little);
}

pub fn put64(p: []u8, v: u64) void {
    std.mem.writeInt(u64, p[0..8], v, .little);
}

// ---- maps, filters, flat_maps

/// What a filter returns.
pub const drop: c_int = 0;
pub const keep: c_int = 2;

/// A put to output keyspace `output` under `key_rest` (empty: the event's own), with an Avro body in its schema.
pub fn emit(output: u32, key_rest: []const u8, avro_body: []const u8) void {
    streams_glue_emit(output, key_rest.ptr, @intCast(key_rest.len), avro_body.ptr, @intCast(avro_body.len));
}

extern fn streams_glue_reject(reason: [*:0]const u8) c_int;
extern fn streams_glue_peek(e: *const Event, r: *Row, len: *u32) ?[*]const u8;
extern fn streams_glue_touch(e: *const Event, r: *Row, len: u32) [*]u8;
extern fn streams_glue_emit(output: u32, rest: [*]const u8, rest_len: u32, body: [*]const u8, body_len: u32) void;
