/* streams_function.h: C SDK for functions (kind = "function"), ABI v1 (../ABI.md). One source file includes it and writes
 *
 *     void streams_handle_request(const streams_request *q, streams_response *r);
 *
 * It is called once for each request, in an instance of its own: memory starts zeroed, nothing stays. What it asks of the host
 * needs the capability in udf.toml. Texts are pointer and length, not terminated. */
#ifndef STREAMS_FUNCTION_H
#define STREAMS_FUNCTION_H

#include "streams_text.h"

#define STREAMS_IMPORT(name) __attribute__((import_module("streams"), import_name(name)))
STREAMS_IMPORT("table_get") int32_t streams_host_table_get(const void *table, uint32_t table_len, const void *key, uint32_t key_len, void *out, uint32_t room);
STREAMS_IMPORT("table_scan") int32_t streams_host_table_scan(const void *table, uint32_t table_len, const void *prefix, uint32_t prefix_len, uint32_t limit, void *out, uint32_t room);
STREAMS_IMPORT("table_top") int32_t streams_host_table_top(const void *table, uint32_t table_len, const void *by, uint32_t by_len, uint32_t n, void *out, uint32_t room);
STREAMS_IMPORT("put") int32_t streams_host_put(const void *key, uint32_t key_len, const void *value, uint32_t value_len, int64_t ttl_ms);
STREAMS_IMPORT("clock") int64_t streams_host_clock(void);
STREAMS_IMPORT("random") int32_t streams_host_random(void *out, uint32_t len);
STREAMS_IMPORT("log") int32_t streams_host_log(const void *line, uint32_t len);

/* ---- the request ---- */

typedef struct { const uint8_t *p; uint32_t len, n; } streams_request;

/* A field by name: method, region, function, query.NAME, header.NAME, user.NAME, body. `p` is NULL when it is not there. */
STREAMS_UNUSED static streams_text streams_field(const streams_request *q, const char *name) {
  const uint8_t *at = q->p + 8 + 8 * q->n;
  for (uint32_t i = 0; i < q->n; i++) {
    uint32_t name_len = streams_get32(q->p + 8 + 8 * i), value_len = streams_get32(q->p + 12 + 8 * i);
    if (streams_is((streams_text){at, name_len}, name)) return (streams_text){at + name_len, value_len};
    at += name_len + value_len;
  }
  return (streams_text){0, 0};
}

/* ---- the response: 200 unless said otherwise ---- */

typedef struct { uint32_t status, headers_n; streams_buffer lengths, headers, body; } streams_response;

STREAMS_INLINE void streams_status(streams_response *r, uint32_t status) { r->status = status; }
STREAMS_UNUSED static void streams_header(streams_response *r, const char *name, streams_text value) {
  streams_text n = streams_literal(name);
  streams_append(&r->lengths, &n.len, 4);
  streams_append(&r->lengths, &value.len, 4);
  streams_append_text(&r->headers, n);
  streams_append_text(&r->headers, value);
  r->headers_n++;
}
STREAMS_INLINE void streams_write(streams_response *r, const char *s) { streams_append_literal(&r->body, s); }

void streams_handle_request(const streams_request *q, streams_response *r);

/* ---- the host ---- */

#define STREAMS_FIRST_ROOM 1024

STREAMS_INLINE streams_text streams_answered(int32_t len, uint8_t *p) {
  return len < 0 ? (streams_text){0, 0} : (streams_text){p, (uint32_t)len};
}
/* A row's value as JSON; `p` is NULL when there is none. Capability tables.read, the table in `tables`. */
STREAMS_UNUSED static streams_text streams_table_get(const char *table, streams_text key) {
  streams_text t = streams_literal(table);
  uint8_t *out = streams_malloc(STREAMS_FIRST_ROOM);
  int32_t len = streams_host_table_get(t.p, t.len, key.p, key.len, out, STREAMS_FIRST_ROOM);
  if (len > STREAMS_FIRST_ROOM) {
    uint32_t room = (uint32_t)len + 256;
    out = streams_malloc(room);
    len = streams_host_table_get(t.p, t.len, key.p, key.len, out, room);
    if (len > (int32_t)room) __builtin_trap();
  }
  return streams_answered(len, out);
}

/* Rows one after the other: for (streams_rows rows = streams_table_scan(…); streams_next(&rows, &key, &value);) */
typedef struct { const uint8_t *p, *at; uint32_t n, i; } streams_rows;

STREAMS_INLINE streams_rows streams_rows_of(uint8_t *p) {
  streams_rows rows = {p, p + 4 + 8 * streams_get32(p), streams_get32(p), 0};
  return rows;
}
STREAMS_UNUSED static int streams_next(streams_rows *rows, streams_text *key, streams_text *value) {
  if (rows->i == rows->n) return 0;
  uint32_t key_len = streams_get32(rows->p + 4 + 8 * rows->i), value_len = streams_get32(rows->p + 8 + 8 * rows->i);
  *key = (streams_text){rows->at, key_len};
  *value = (streams_text){rows->at + key_len, value_len};
  rows->at += key_len + value_len;
  rows->i++;
  return 1;
}
/* At most `limit` rows whose key starts with `prefix`, in key order. */
STREAMS_UNUSED static streams_rows streams_table_scan(const char *table, streams_text prefix, uint32_t limit) {
  streams_text t = streams_literal(table);
  uint32_t room = 8192;
  uint8_t *out = streams_malloc(room);
  int32_t len = streams_host_table_scan(t.p, t.len, prefix.p, prefix.len, limit, out, room);
  while (len > (int32_t)room) {
    room = (uint32_t)len + 4096;
    out = streams_malloc(room);
    len = streams_host_table_scan(t.p, t.len, prefix.p, prefix.len, limit, out, room);
  }
  return streams_rows_of(out);
}
/* The `n` highest rows; `by`: a field of the value, "" for the value itself. */
STREAMS_UNUSED static streams_rows streams_table_top(const char *table, const char *by, uint32_t n) {
  streams_text t = streams_literal(table), b = streams_literal(by);
  uint32_t room = 8192;
  uint8_t *out = streams_malloc(room);
  int32_t len = streams_host_table_top(t.p, t.len, b.p, b.len, n, out, room);
  while (len > (int32_t)room) {
    room = (uint32_t)len + 4096;
    out = streams_malloc(room);
    len = streams_host_table_top(t.p, t.len, b.p, b.len, n, out, room);
  }
  return streams_rows_of(out);
}
/* Puts a value (JSON) when the request has ended well; the response goes out when it is durable. 0, or negative: refused, the
 * log says why. `ttl_ms` 0: the keyspace's own. Capability put, the keyspace in `puts`. */
STREAMS_INLINE int streams_put(streams_text key, streams_text value, int64_t ttl_ms) {
  return streams_host_put(key.p, key.len, value.p, value.len, ttl_ms);
}
STREAMS_INLINE int64_t streams_clock_ms(void) { return streams_host_clock(); }
STREAMS_INLINE void streams_random(void *out, uint32_t len) { streams_host_random(out, len); }
STREAMS_INLINE void streams_log(streams_text line) { streams_host_log(line.p, line.len); }

/* ---- a little JSON: members of an object, numbers and strings ---- */

STREAMS_INLINE uint32_t streams_json_space(streams_text t, uint32_t i) {
  while (i < t.len && (t.p[i] == ' ' || t.p[i] == '\n' || t.p[i] == '\t' || t.p[i] == '\r')) i++;
  return i;
}
/* Where the value that begins at `i` ends; t.len when it does not. */
STREAMS_UNUSED static uint32_t streams_json_end(streams_text t, uint32_t i) {
  uint32_t depth = 0;
  while (i < t.len) {
    uint8_t c = t.p[i];
    if (c == '"') {
      for (i++; i < t.len && t.p[i] != '"'; i++) if (t.p[i] == '\\') i++;
      if (i++ >= t.len) return t.len;
      if (!depth) return i;
      continue;
    }
    if (c == '{' || c == '[') depth++;
    else if (c == '}' || c == ']') {
      if (!depth) return i;
      if (!--depth) return i + 1;
    } else if (!depth && (c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r')) return i;
    i++;
  }
  return t.len;
}
/* A member of a JSON object as it stands there, a string with its quotes; `p` is NULL when it is not there. */
STREAMS_UNUSED static streams_text streams_json_get(streams_text t, const char *name) {
  streams_text wanted = streams_literal(name);
  uint32_t i = streams_json_space(t, 0);
  if (!t.p || i >= t.len || t.p[i] != '{') return (streams_text){0, 0};
  i = streams_json_space(t, i + 1);
  while (i < t.len && t.p[i] == '"') {
    uint32_t end = streams_json_end(t, i), found = end - i == wanted.len + 2 && streams_equal(t.p + i + 1, wanted.p, wanted.len);
    i = streams_json_space(t, end);
    if (i >= t.len || t.p[i] != ':') break;
    i = streams_json_space(t, i + 1);
    end = streams_json_end(t, i);
    if (found) return (streams_text){t.p + i, end - i};
    i = streams_json_space(t, end);
    if (i >= t.len || t.p[i] != ',') break;
    i = streams_json_space(t, i + 1);
  }
  return (streams_text){0, 0};
}
STREAMS_INLINE uint32_t streams_json_hex(const uint8_t *p) {
  uint32_t v = 0;
  for (int i = 0; i < 4; i++) v = v << 4 | (uint32_t)(p[i] <= '9' ? p[i] - '0' : (p[i] | 32) - 'a' + 10) % 16;
  return v;
}
/* What a JSON string says (UTF-8); `p` is NULL when it is none. */
STREAMS_UNUSED static streams_text streams_json_string(streams_text t) {
  if (!t.p || t.len < 2 || t.p[0] != '"') return (streams_text){0, 0};
  uint8_t *out = streams_malloc(t.len + 1); /* an escape is never shorter than what it says */
  uint32_t n = 0;
  for (uint32_t i = 1; i + 1 < t.len; i++) {
    uint32_t c = t.p[i];
    if (c != '\\') { out[n++] = (uint8_t)c; continue; }
    c = t.p[++i];
    if (c != 'u') { out[n++] = (uint8_t)(c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c == 'b' ? '\b' : c == 'f' ? '\f' : c); continue; }
    if (i + 5 > t.len) break;
    c = streams_json_hex(t.p + i + 1);
    i += 4;
    if (c >= 0xD800 && c < 0xDC00 && i + 7 <= t.len && t.p[i + 1] == '\\') {
      c = 0x10000 + ((c - 0xD800) << 10) + (streams_json_hex(t.p + i + 3) & 0x3FF);
      i += 6;
    }
    if (c < 0x80) out[n++] = (uint8_t)c;
    else if (c < 0x800) { out[n++] = (uint8_t)(0xC0 | c >> 6); out[n++] = (uint8_t)(0x80 | (c & 63)); }
    else if (c < 0x10000) { out[n++] = (uint8_t)(0xE0 | c >> 12); out[n++] = (uint8_t)(0x80 | (c >> 6 & 63)); out[n++] = (uint8_t)(0x80 | (c & 63)); }
    else { out[n++] = (uint8_t)(0xF0 | c >> 18); out[n++] = (uint8_t)(0x80 | (c >> 12 & 63)); out[n++] = (uint8_t)(0x80 | (c >> 6 & 63)); out[n++] = (uint8_t)(0x80 | (c & 63)); }
  }
  return (streams_text){out, n};
}
/* The whole part of a JSON number; `otherwise` when it is none. */
STREAMS_UNUSED static int64_t streams_json_long(streams_text t, int64_t otherwise) {
  uint32_t i = t.p && t.len && t.p[0] == '-';
  if (!t.p || i >= t.len || t.p[i] < '0' || t.p[i] > '9') return otherwise;
  uint64_t v = 0;
  for (uint32_t start = i; i < t.len && t.p[i] >= '0' && t.p[i] <= '9' && i - start < 18; i++) v = v * 10 + (uint64_t)(t.p[i] - '0');
  return t.p[0] == '-' ? -(int64_t)v : (int64_t)v;
}

/* ---- exports ---- */

STREAMS_EXPORT("streams_function_v1") int32_t streams_function_v1(void) { return 1; }

STREAMS_EXPORT("streams_handle") streams_desc *streams_handle(const uint8_t *p, uint32_t len) {
  static streams_desc answer;
  static streams_response r;
  streams_request q = {p, len, len < 8 ? 0 : streams_get32(p + 4)};
  if (len < 8 || streams_get32(p) != 0x31465453) { answer.status = -1; return &answer; }
  r.status = 200;
  streams_handle_request(&q, &r);
  streams_buffer out = {0, 0, 0};
  streams_append(&out, &r.status, 4);
  streams_append(&out, &r.headers_n, 4);
  streams_append(&out, &r.body.len, 4);
  streams_append(&out, r.lengths.p, r.lengths.len);
  streams_append(&out, r.headers.p, r.headers.len);
  streams_append(&out, r.body.p, r.body.len);
  answer = (streams_desc){(uint32_t)(uintptr_t)out.p, out.len, 0};
  return &answer;
}

#endif
