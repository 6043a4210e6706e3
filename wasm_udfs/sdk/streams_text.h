/* streams_text.h: texts (pointer and length, not terminated) and buffers that grow; part of the SDKs of functions and machines. */
#ifndef STREAMS_TEXT_H
#define STREAMS_TEXT_H

#include "streams_base.h"

typedef struct { const uint8_t *p; uint32_t len; } streams_text;

/* ---- texts ---- */

STREAMS_INLINE streams_text streams_literal(const char *s) {
  uint32_t n = 0;
  while (s[n]) n++;
  return (streams_text){(const uint8_t *)s, n};
}
STREAMS_INLINE int streams_is(streams_text t, const char *s) {
  streams_text o = streams_literal(s);
  return t.p && t.len == o.len && streams_equal(t.p, o.p, t.len);
}

/* A text that grows. */
typedef struct { uint8_t *p; uint32_t len, room; } streams_buffer;

STREAMS_UNUSED static void streams_append(streams_buffer *b, const void *p, uint32_t n) {
  if (n > b->room - b->len) {
    uint32_t room = b->room ? b->room : 256;
    while (room - b->len < n) { if (room > 0x30000000u) __builtin_trap(); room *= 2; }
    uint8_t *to = streams_malloc(room);
    streams_copy(to, b->p, b->len);
    if (b->room) streams_free(b->p, b->room);
    b->p = to;
    b->room = room;
  }
  streams_copy(b->p + b->len, p, n);
  b->len += n;
}
STREAMS_INLINE void streams_append_text(streams_buffer *b, streams_text t) { streams_append(b, t.p, t.len); }
STREAMS_INLINE void streams_append_literal(streams_buffer *b, const char *s) { streams_append_text(b, streams_literal(s)); }
STREAMS_INLINE streams_text streams_text_of(const streams_buffer *b) { return (streams_text){b->p, b->len}; }

STREAMS_UNUSED static void streams_append_long(streams_buffer *b, int64_t value) {
  uint8_t digits[20];
  uint32_t at = 20;
  uint64_t v = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
  do digits[--at] = (uint8_t)('0' + v % 10); while (v /= 10);
  if (value < 0) streams_append(b, "-", 1);
  streams_append(b, digits + at, 20 - at);
}
/* As a JSON string, quotes included. */
STREAMS_UNUSED static void streams_append_json(streams_buffer *b, streams_text t) {
  static const char hex[] = "0123456789abcdef";
  streams_append(b, "\"", 1);
  for (uint32_t i = 0; i < t.len; i++) {
    uint8_t c = t.p[i], escaped[6] = {'\\', c, '0', '0', 0, 0};
    if (c == '"' || c == '\\') streams_append(b, escaped, 2);
    else if (c < 0x20) { escaped[1] = 'u'; escaped[4] = (uint8_t)hex[c >> 4]; escaped[5] = (uint8_t)hex[c & 15]; streams_append(b, "\\u", 2); streams_append(b, escaped + 2, 4); }
    else streams_append(b, &c, 1);
  }
  streams_append(b, "\"", 1);
}
/* As text within HTML, an attribute's value too. */
STREAMS_UNUSED static void streams_append_html(streams_buffer *b, streams_text t) {
  for (uint32_t i = 0; i < t.len; i++) {
    uint8_t c = t.p[i];
    if (c == '<') streams_append(b, "&lt;", 4);
    else if (c == '>') streams_append(b, "&gt;", 4);
    else if (c == '&') streams_append(b, "&amp;", 5);
    else if (c == '"') streams_append(b, "&quot;", 6);
    else if (c == '\'') streams_append(b, "&#39;", 5);
    else streams_append(b, &c, 1);
  }
}

#endif
