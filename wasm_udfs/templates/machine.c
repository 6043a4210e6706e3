/* NAME: who holds which seat. Commands are words: "take SEAT WHO", "free SEAT WHO", "who SEAT"; answers are JSON. Every replica
 * executes them in the order of the log, so nobody takes a seat twice. */
#include "streams_machine_kv.h"

/* A row: seat:SEAT, whose value is who holds it. */
static streams_text row_of(streams_text seat) {
  streams_buffer key = {0, 0, 0};
  streams_append_literal(&key, "seat:");
  streams_append_text(&key, seat);
  return streams_text_of(&key);
}

void streams_keys(streams_command *c) {
  streams_text words = c->text;
  streams_word(&words);
  streams_need(row_of(streams_word(&words)));
}

void streams_execute(streams_command *c) {
  streams_text words = c->text, what = streams_word(&words), seat = streams_word(&words), who = streams_word(&words);
  streams_text row = row_of(seat), holder = streams_row(row);
  int known = (streams_is(what, "who") && !who.len) || ((streams_is(what, "take") || streams_is(what, "free")) && who.len);
  if (!seat.len || !known || words.len) {
    streams_append_literal(&c->reply, "{\"error\": \"say take SEAT WHO, free SEAT WHO or who SEAT\"}");
    return;
  }
  int mine = holder.p && holder.len == who.len && streams_equal(holder.p, who.p, who.len);
  int done = streams_is(what, "who") || (streams_is(what, "take") ? !holder.p || mine : mine);
  if (done && streams_is(what, "take")) streams_set(row, who);
  if (done && streams_is(what, "free")) streams_remove(row);
  holder = streams_row(row);
  streams_append_literal(&c->reply, done ? "{\"ok\": true, \"holder\": " : "{\"ok\": false, \"holder\": ");
  if (holder.p) streams_append_json(&c->reply, holder);
  else streams_append_literal(&c->reply, "null");
  streams_append_literal(&c->reply, "}");
}
