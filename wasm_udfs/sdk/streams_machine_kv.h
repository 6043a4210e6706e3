/* streams_machine_kv.h: C SDK for machines that are deployed (kind = "machine", ../ABI.md). One source file includes it and writes
 *
 *     void streams_keys(streams_command *c);      the rows that the command looks at or changes: streams_need(key), each
 *     void streams_execute(streams_command *c);   streams_row, streams_set, streams_remove; the answer goes to c->reply
 *
 * Both see the command (`text`), the log's time and its offset, and nothing else: no clock, no randomness, nothing of earlier
 * commands but by rows. So every replica comes to the same rows and answers. A trap undoes its command and no other. */
#ifndef STREAMS_MACHINE_KV_H
#define STREAMS_MACHINE_KV_H

#include "streams_machine.h"
#include "streams_text.h"

typedef struct { streams_text text; int64_t time_ms; uint64_t offset; streams_buffer reply; } streams_command;

void streams_keys(streams_command *c);
void streams_execute(streams_command *c);

typedef struct streams_entry {
  struct streams_entry *next, *later;
  streams_text key, value;
  uint8_t present, dirty, owned;
} streams_entry;
enum { STREAMS_HEADS = 1024 };
static streams_entry *streams_heads[STREAMS_HEADS], *streams_first, *streams_last;
static uint32_t streams_entries_n;
static int streams_naming;

static streams_text streams_copied(streams_text t) {
  uint8_t *p = streams_malloc(t.len);
  streams_copy(p, t.p, t.len);
  return (streams_text){p, t.len};
}

STREAMS_UNUSED static streams_entry *streams_entry_of(streams_text key) {
  streams_entry **at = &streams_heads[streams_hash(key.p, key.len) % STREAMS_HEADS];
  for (; *at; at = &(*at)->next)
    if ((*at)->key.len == key.len && streams_equal((*at)->key.p, key.p, key.len)) return *at;
  if (!streams_naming || !key.len) __builtin_trap(); /* a row that streams_keys did not name */
  streams_entry *e = streams_malloc(sizeof *e);
  __builtin_memset(e, 0, sizeof *e);
  e->key = streams_copied(key);
  if (streams_last) streams_last->later = e;
  else streams_first = e;
  streams_last = *at = e;
  streams_entries_n++;
  return e;
}

/* ---- for authors ---- */

/* The command will look at this row, or change it. In streams_keys only. */
STREAMS_UNUSED static void streams_need(streams_text key) {
  if (!streams_naming) __builtin_trap();
  streams_entry_of(key);
}
/* A row's value; `p` is NULL when there is none. */
STREAMS_UNUSED static streams_text streams_row(streams_text key) {
  streams_entry *e = streams_entry_of(key);
  return e->present ? e->value : (streams_text){0, 0};
}
STREAMS_UNUSED static void streams_change(streams_text key, streams_text value, int present) {
  if (streams_naming) __builtin_trap();
  streams_entry *e = streams_entry_of(key);
  streams_text old = e->value;
  e->value = present ? streams_copied(value) : (streams_text){0, 0};
  if (e->owned) streams_free((void *)old.p, old.len);
  e->owned = e->present = (uint8_t)present;
  e->dirty = 1;
}
STREAMS_INLINE void streams_set(streams_text key, streams_text value) { streams_change(key, value, 1); }
STREAMS_INLINE void streams_remove(streams_text key) { streams_change(key, (streams_text){0, 0}, 0); }

/* The next word of the text, which is shortened; empty at its end. */
STREAMS_UNUSED static streams_text streams_word(streams_text *t) {
  while (t->len && *t->p == ' ') { t->p++; t->len--; }
  streams_text word = {t->p, 0};
  while (t->len && *t->p != ' ') { t->p++; t->len--; word.len++; }
  return word;
}
/* A whole number that is the whole text; 0 for anything else. */
STREAMS_UNUSED static int64_t streams_number(streams_text t) {
  int negative = t.len && *t.p == '-';
  uint64_t v = 0;
  for (uint32_t i = (uint32_t)negative; i < t.len; i++) {
    if (t.p[i] < '0' || t.p[i] > '9' || v > 900000000000000000ull) return 0;
    v = v * 10 + (uint64_t)(t.p[i] - '0');
  }
  return negative ? -(int64_t)v : (int64_t)v;
}

/* ---- the ABI ---- */

static streams_command streams_command_at(uint32_t i) {
  streams_command c = {{0, 0}, append_ms(i), offset_of(i), {0, 0, 0}};
  c.text.p = command(i, &c.text.len);
  return c;
}

static void streams_forget(void) {
  for (streams_entry *e = streams_first, *later; e; e = later) {
    later = e->later;
    streams_free((void *)e->key.p, e->key.len);
    if (e->owned) streams_free((void *)e->value.p, e->value.len);
    streams_free(e, sizeof *e);
  }
  __builtin_memset(streams_heads, 0, sizeof streams_heads);
  streams_first = streams_last = 0;
  streams_entries_n = 0;
}

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  if (!machine_batch(p, len)) return answered(0, 0, -1);
  streams_forget();
  streams_naming = 1;
  for (uint32_t i = 0; i < batch_n; i++) {
    streams_command c = streams_command_at(i);
    streams_keys(&c);
  }
  streams_naming = 0;
  uint32_t n = streams_entries_n, bytes = 0, k = 0;
  for (streams_entry *e = streams_first; e; e = e->later) bytes += e->key.len;
  uint8_t *out = streams_scratch(4 + 8 * n + bytes), *blob = out + 4 + 8 * n, *at = blob;
  streams_put32(out, n);
  for (streams_entry *e = streams_first; e; e = e->later, k++) {
    streams_copy(at, e->key.p, e->key.len);
    at += e->key.len;
    streams_put32(out + 4 + 4 * k, (uint32_t)(at - blob));
    streams_put32(out + 4 + 4 * (n + k), UINT32_MAX);
  }
  return answered(out, 4 + 8 * n + bytes, 0);
}

STREAMS_EXPORT("streams_load") int32_t streams_load(const uint8_t *p, uint32_t len) {
  uint32_t n = len < 4 ? 0 : streams_get32(p);
  if (len < 4 || n != streams_entries_n || n > (len - 4) / 9) return -1;
  const uint8_t *key_end = p + 4, *row_end = key_end + 4 * n, *present = row_end + 4 * n, *keys = present + n;
  const uint8_t *rows = keys + (n ? streams_get32(key_end + 4 * (n - 1)) : 0);
  uint32_t key_at = 0, row_at = 0, i = 0;
  for (streams_entry *e = streams_first; e; e = e->later, i++) {
    uint32_t ke = streams_get32(key_end + 4 * i), re = streams_get32(row_end + 4 * i);
    if (ke - key_at != e->key.len || !streams_equal(keys + key_at, e->key.p, e->key.len)) return -2;
    e->present = present[i];
    e->value = (streams_text){rows + row_at, re - row_at};
    key_at = ke;
    row_at = re;
  }
  return 0;
}

STREAMS_EXPORT("streams_apply") streams_desc *streams_apply(void) {
  streams_buffer replies = {0, 0, 0};
  uint8_t *head = streams_malloc(4 + 4 * batch_n);
  streams_put32(head, batch_n);
  for (uint32_t i = 0; i < batch_n; i++) {
    streams_command c = streams_command_at(i);
    streams_execute(&c);
    streams_append(&replies, c.reply.p, c.reply.len);
    if (c.reply.room) streams_free(c.reply.p, c.reply.room);
    streams_put32(head + 4 + 4 * i, replies.len);
  }
  uint32_t len = 4 + 4 * batch_n + replies.len;
  uint8_t *out = streams_scratch(len);
  streams_copy(out, head, 4 + 4 * batch_n);
  streams_copy(out + 4 + 4 * batch_n, replies.p, replies.len);
  streams_free(head, 4 + 4 * batch_n);
  if (replies.room) streams_free(replies.p, replies.room);
  return answered(out, len, 0);
}

STREAMS_EXPORT("streams_take") streams_desc *streams_take(void) {
  uint32_t n = 0, key_bytes = 0, row_bytes = 0, k = 0;
  for (streams_entry *e = streams_first; e; e = e->later) {
    if (!e->dirty) continue;
    n++;
    key_bytes += e->key.len;
    row_bytes += e->present ? e->value.len : 0;
  }
  uint32_t len = 4 + 9 * n + key_bytes + row_bytes;
  uint8_t *out = streams_scratch(len), *key_end = out + 4, *row_end = key_end + 4 * n, *present = row_end + 4 * n;
  uint8_t *keys = present + n, *rows = keys + key_bytes, *key = keys, *row = rows;
  streams_put32(out, n);
  for (streams_entry *e = streams_first; e; e = e->later) {
    if (!e->dirty) continue;
    streams_copy(key, e->key.p, e->key.len);
    key += e->key.len;
    if (e->present) {
      streams_copy(row, e->value.p, e->value.len);
      row += e->value.len;
    }
    streams_put32(key_end + 4 * k, (uint32_t)(key - keys));
    streams_put32(row_end + 4 * k, (uint32_t)(row - rows));
    present[k++] = e->present;
    e->dirty = 0;
  }
  streams_round_over = 1;
  return answered(out, len, 0);
}

#endif
