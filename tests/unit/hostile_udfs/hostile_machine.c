/* A machine that does as it is told: set KEY VALUE, get KEY, and what a machine must not do. */
#include "streams_machine_kv.h"

static uint32_t calls; /* of this instance: must not show */
static int down(int n) { volatile int deep[64] = {n}; return down(deep[0] + 1) + deep[0]; }

void streams_keys(streams_command *c) {
  streams_text words = c->text, what = streams_word(&words), key = streams_word(&words);
  if (streams_is(what, "prepare-trap")) __builtin_trap();
  if (key.len && !streams_is(what, "unnamed")) streams_need(key);
}

void streams_execute(streams_command *c) {
  streams_text words = c->text, what = streams_word(&words), key = streams_word(&words), value = streams_word(&words);
  if (key.len && !streams_is(what, "unnamed") && value.len) streams_set(key, value);
  if (streams_is(what, "trap")) __builtin_trap();
  if (streams_is(what, "unnamed")) streams_row(key);
  if (streams_is(what, "loop")) for (;;) calls++;
  if (streams_is(what, "deep")) streams_append_long(&c->reply, down(1));
  if (streams_is(what, "memory")) for (;;) *(volatile uint8_t *)streams_malloc(1 << 20) = 1;
  if (streams_is(what, "big")) for (int i = 0; i < 70000; i++) streams_append_literal(&c->reply, "x");
  if (streams_is(what, "zero")) streams_need(streams_literal("\0"));
  if (streams_is(what, "time")) streams_append_long(&c->reply, c->time_ms);
  if (streams_is(what, "calls")) streams_append_long(&c->reply, ++calls);
  if (streams_is(what, "get") && streams_row(key).p) streams_append_text(&c->reply, streams_row(key));
}
