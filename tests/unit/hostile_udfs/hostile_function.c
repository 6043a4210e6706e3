/* A function that misbehaves as ?do= says, and else answers "fine". For tests only. */
#include "streams_function.h"

static volatile uint32_t sink;
static uint8_t *volatile hole;
static uint8_t page[1 << 20];

static uint32_t recurse(uint32_t n) {
  volatile uint8_t frame[64];
  frame[n % 64] = (uint8_t)n;
  return n == 0xFFFFFFFF ? 0 : recurse(n + 1) + frame[n % 64];
}

void streams_handle_request(const streams_request *q, streams_response *r) {
  streams_text what = streams_field(q, "query.do");
  if (streams_is(what, "loop")) for (;;) sink++;
  if (streams_is(what, "loop-with-put")) { streams_put(streams_literal("kv:never"), streams_literal("1"), 0); for (;;) sink++; }
  if (streams_is(what, "work")) for (uint32_t i = 0; i < 60000000; i++) sink++;
  if (streams_is(what, "trap")) __builtin_trap();
  if (streams_is(what, "trap-after-put")) { streams_put(streams_literal("kv:never"), streams_literal("1"), 0); __builtin_trap(); }
  if (streams_is(what, "divide")) sink = q->len / sink;
  if (streams_is(what, "wild")) *(volatile uint8_t *)0xFFFFFF00u = 1;
  if (streams_is(what, "bomb")) for (;;) hole = streams_malloc(1 << 20);
  if (streams_is(what, "deep")) sink = recurse(0);
  if (streams_is(what, "giant")) for (int i = 0; i < 3; i++) streams_append(&r->body, page, 1 << 20);
  if (streams_is(what, "wild-key")) streams_host_table_get("kv", 2, (void *)0xFFFFFF00u, 900, page, 64);
  if (streams_is(what, "wild-out")) streams_host_table_get("kv", 2, "kv:a", 4, (void *)0xFFFFFF00u, 0x7FFFFFFF);
  if (streams_is(what, "wild-value")) streams_host_put("kv:a", 4, (void *)0x7FFFFF00u, 0x7FFFFFFF, 0);
  if (streams_is(what, "wild-log")) streams_host_log((void *)0xFFFFFF00u, 100);
  if (streams_is(what, "wild-random")) streams_host_random((void *)0xFFFFFFF0u, 100);
  if (streams_is(what, "huge-random")) streams_host_random(page, 0xFFFFFFFF);
  if (streams_is(what, "foreign-table")) streams_table_get("prefs", streams_literal("prefs:a"));
  if (streams_is(what, "reads")) for (uint32_t i = 0; i < 1000; i++) streams_host_table_get("kv", 2, "kv:a", 4, page, 64);
  if (streams_is(what, "puts")) for (uint32_t i = 0; i < 1000; i++) streams_put(streams_literal("kv:many"), streams_literal("1"), 0);
  if (streams_is(what, "chatty")) for (uint32_t i = 0; i < 1000; i++) streams_log((streams_text){page, 1000});
  if (streams_is(what, "bad-status")) streams_status(r, 99);
  if (streams_is(what, "continue")) streams_status(r, 101);
  if (streams_is(what, "no-content")) { streams_status(r, 204); streams_write(r, "but a body"); }
  if (streams_is(what, "split")) streams_header(r, "x-a", streams_literal("b\r\nx-c: d"));
  if (streams_is(what, "name")) streams_header(r, "x a", streams_literal("b"));
  if (streams_is(what, "own")) streams_header(r, "Content-Length", streams_literal("5"));
  if (streams_is(what, "headers")) for (int i = 0; i < 40; i++) streams_header(r, "x-a", streams_literal("b"));
  if (streams_is(what, "refused")) {
    static const char *keys[] = {"nokeyspace", "score:a", "kv:ok"};
    for (int i = 0; i < 3; i++) streams_append_long(&r->body, streams_put(streams_literal(keys[i]), streams_literal(i < 2 ? "1" : "{"), 0));
    return;
  }
  if (streams_is(what, "past")) { streams_append_long(&r->body, streams_put(streams_literal("kv:ok"), streams_literal("1"), -5000)); return; }
  if (streams_is(what, "random")) { uint8_t bytes[8]; streams_random(bytes, 8); for (int i = 0; i < 8; i++) streams_append_long(&r->body, bytes[i]); return; }
  if (streams_is(what, "clock")) { streams_append_long(&r->body, streams_clock_ms()); return; }
  if (streams_is(what, "headers-seen")) { streams_append_text(&r->body, streams_field(q, "header.x-seen")); streams_append_text(&r->body, streams_field(q, "header.authorization")); return; }
  if (streams_is(what, "user")) { streams_append_text(&r->body, streams_field(q, "user.id")); streams_append_text(&r->body, streams_field(q, "user.tags")); return; }
  if (streams_is(what, "echo")) { streams_append_text(&r->body, streams_field(q, "body")); return; }
  if (streams_is(what, "scan") || streams_is(what, "top")) {
    streams_text key, value;
    streams_rows rows = streams_is(what, "scan") ? streams_table_scan("kv", streams_literal("kv:s"), 3) : streams_table_top("score", "", 2);
    while (streams_next(&rows, &key, &value)) { streams_append_text(&r->body, key); streams_write(r, "="); streams_append_text(&r->body, value); streams_write(r, " "); }
    return;
  }
  if (streams_is(what, "two-puts")) {
    streams_put(streams_literal("kv:two"), streams_literal("{\"n\": 1}"), 0);
    streams_put(streams_literal("kv:two"), streams_literal("{\"n\": 2}"), 0);
    streams_put(streams_literal("best:x"), streams_literal("7"), 3600000);
  }
  streams_header(r, "content-type", streams_literal("text/plain"));
  streams_write(r, "fine");
}
