/* streams.h: C SDK for fold UDFs, ABI v1 (../ABI.md). One source file includes it and writes one function:
 *
 *     int streams_fold_event(const streams_event *e, streams_row *r);
 *
 * It is called for every put. `streams_peek(e, r)` shows the cell the put would continue (NULL: it would start a new
 * one) and changes nothing; `streams_touch(e, r, len)` applies SPEC's rules of clocks, generations and expiry, marks the row
 * changed and returns the cell with a payload of len bytes (zeroed when the cell is new, kept as far as it fits
 * otherwise). Return 0, or `streams_reject("reason")`, which is allowed only before streams_touch.
 * With STREAMS_LAST_WINS defined, `e->is_last` is 0 when another put of the same key follows in this batch, for modules that
 * keep nothing of a put that the next one replaces (they touch the row, as for every put, but need not write its payload).
 * With STREAMS_LAST_ALONE defined as well, a put that another of its key follows at the same clock and expiry may not be shown at
 * all: only its clock counts. For modules that refuse no put, make no outputs, and write the same whatever came before.
 * STREAMS_COMPACT is for the platform's own modules (compact batches, ../ABI.md): `e->value` then holds until the function returns.
 * The function becomes part of the loop that calls it: `static`, so include this file before it is declared (or define
 * STREAMS_FOLD_ELSEWHERE when it is in another object), and a trap's backtrace shows it as `streams_fold`.
 * `streams_output(topic, …)` writes a record to a topic of the manifest's `outputs`, before or after streams_touch.
 * Deletes and purges, the row cache and the exports are done here and in streams_rows.h. STREAMS_MERGE comes from udf.toml (build.py). */
#ifndef STREAMS_H
#define STREAMS_H

#include "streams_rows.h"

#ifdef STREAMS_LAST_ALONE
__attribute__((always_inline)) inline /* it is called from several loops */
#endif
#ifndef STREAMS_FOLD_ELSEWHERE
static /* what follows in the same file then is too, and becomes part of the loop that calls it */
#endif
int streams_fold_event(const streams_event *e, streams_row *r);

STREAMS_INLINE streams_cell *streams_peek(const streams_event *e, streams_row *r) {
  uint64_t deleted = streams_max(r->deleted_hlc, e->generation);
  for (uint32_t i = r->n_cells; i-- > 0;) {
    streams_cell *c = &r->cells[i];
    if (streams_cell_mark(c) > deleted) return c->expires_ms > e->append_ms ? c : 0;
  }
  return 0;
}

STREAMS_INLINE streams_cell *streams_touch(const streams_event *e, streams_row *r, uint32_t payload_len) {
  r->touched = 1;
  r->exists = 1;
  streams_mark_dirty(r);
  r->deleted_hlc = streams_max(r->deleted_hlc, e->generation);
  if (r->n_cells && streams_cell_mark(&r->cells[0]) <= r->deleted_hlc) streams_drop_cells(r, r->deleted_hlc, INT64_MIN);
  streams_cell *c = r->n_cells ? &r->cells[r->n_cells - 1] : 0;
  if (!c || c->expires_ms <= e->append_ms) {
    if (c && STREAMS_MERGE == STREAMS_MERGE_LWW) streams_drop_cells(r, UINT64_MAX, INT64_MIN);
    c = streams_append_cell(r);
    c->start_hlc = e->h;
    c->expires_ms = e->expires_ms;
  }
  c->last_hlc = e->h;
  c->expires_ms = streams_max_i64(c->expires_ms, e->expires_ms);
  r->last_hlc = e->h;
  if (c->len != payload_len) streams_cell_resize(c, payload_len);
  return c;
}

/* What is no put. It takes a copy: an event whose address goes nowhere stays in registers. */
STREAMS_COLD static int streams_apply_other(streams_event e, streams_row *r) {
  if (e.op == STREAMS_OP_DELETE) {
    streams_drop_cells(r, UINT64_MAX, INT64_MIN);
    r->deleted_hlc = r->last_hlc = e.h;
    r->exists = 1;
    streams_mark_dirty(r);
    return 0;
  }
  if (e.op == STREAMS_OP_PURGE) return streams_purge(&e, r);
  return streams_reject("unknown operation");
}

STREAMS_INLINE int streams_apply(streams_event *e, streams_row *r) {
  /* Never before its acceptance: a slow clock must not put an event into a life that had already ended. */
  uint64_t accepted = (uint64_t)e->append_ms << 16;
  e->h = streams_max(streams_max(e->hlc, accepted), r->last_hlc + 1);
  e->h = streams_max(e->h, streams_max(r->deleted_hlc, e->generation) + 1);
  if (e->op == STREAMS_OP_PUT) {
    r->touched = 0;
#ifdef STREAMS_OUTPUTS
    uint32_t outputs = streams_outputs_n;
#else
    enum { outputs = 0, streams_outputs_n = 0 };
#endif
    int rejected = streams_fold_event(e, r);
    if (rejected && (r->touched || streams_outputs_n != outputs)) __builtin_trap(); /* a rejected event leaves no trace */
    return rejected;
  }
  return streams_apply_other(*e, r);
}

/* ---- exports ---- */

static streams_row **streams_round_rows; /* per event of the prepared batch: its row */
#ifdef STREAMS_LAST_WINS
static uint32_t *streams_round_last; /* per key id: its last event; NULL: not known */
#endif

#ifdef STREAMS_LAST_ALONE
static uint32_t *streams_round_number; /* per key id: its row's number in the round; NULL: events are folded one by one */

/* Numbers the rows of a batch with key ids: a row has one number, however many ids its key has. */
static void streams_number_rows(const streams_batch *b, const uint32_t *firsts, streams_row *const *found, uint32_t ids) {
  uint32_t *numbers = streams_scratch(b->key_ids * sizeof *numbers), n = 0;
  for (uint32_t i = 0; i < ids; i++) {
    streams_row *row = found[i];
    if (row->asked != streams_round_id) {
      streams_ask(row);
      row->asked = streams_round_id;
      row->number = n;
      streams_round_rows[n++] = row;
    }
    numbers[streams_get32(b->key_id + 4 * firsts[i])] = row->number;
  }
  streams_round_number = numbers;
}

/* `puts` of one key in one run, of which e is the last. One that nothing follows moves the clock on by one and gives its
 * expiry: no more than that is left of the others. */
STREAMS_INLINE void streams_apply_last(streams_event *e, streams_row *r, uint32_t puts) {
  e->is_last = 1;
  if (streams_apply(e, r)) __builtin_trap(); /* such a module refuses no put */
  streams_cell *c = &r->cells[r->n_cells - 1];
  c->last_hlc = r->last_hlc += puts - 1;
}

typedef struct { uint32_t last, puts; } streams_seen; /* of a row in a run */

/* The run's puts by row. 0; else a row is not loaded. */
STREAMS_APART static int streams_fold_puts(const streams_batch *b, uint32_t first, uint32_t end, streams_seen *seen, uint32_t *list) {
  uint32_t n = 0;
#pragma clang loop unroll_count(4)
  for (uint32_t i = first; i < end; i++) {
    uint32_t number = streams_round_number[streams_get32(b->key_id + 4 * i)];
    seen[number].last = i;
    list[n] = number; /* stays, if it is the first of the row */
    n += !seen[number].puts++;
  }
  for (uint32_t i = 0; i < n; i++) {
    streams_row *row = streams_round_rows[list[i]];
    streams_event e;
    if (!row->known) return 1;
    streams_event_read(b, seen[list[i]].last, &e);
    streams_apply_last(&e, row, seen[list[i]].puts);
    seen[list[i]].puts = 0;
  }
  return 0;
}

/* Each run by rows, if its puts outlive their acceptance (else each begins anew). 0; else a row is not loaded. */
STREAMS_APART static int streams_fold_runs(const streams_batch *b, streams_reject_list *rejects) {
  uint32_t *list = streams_scratch((b->n + 1) * sizeof *list), size = b->n * sizeof(streams_seen);
  streams_seen *seen = streams_scratch(size);
  __builtin_memset(seen, 0, size);
  for (uint32_t k = 0; k < b->n_runs; k++) {
    uint32_t first = streams_get32(b->runs + 4 * k), end = k + 1 < b->n_runs ? streams_get32(b->runs + 4 * (k + 1)) : b->n;
    streams_event e;
    streams_event_read(b, first, &e);
    if (e.op == STREAMS_OP_PUT && e.expires_ms > e.append_ms) {
      if (streams_fold_puts(b, first, end, seen, list)) return 1;
      continue;
    }
    for (uint32_t i = first; i < end; i++) {
      streams_row *row = streams_round_rows[streams_round_number[streams_get32(b->key_id + 4 * i)]];
      streams_event_read(b, i, &e);
      e.is_last = 1;
      if (!row->known) return 1;
      if (streams_apply(&e, row)) streams_add_reject(rejects, i);
    }
  }
  return 0;
}
#endif

/* The rows of a batch without key ids, which are at hand. */
STREAMS_APART static void streams_near_rows(const streams_batch *b) {
#pragma clang loop unroll_count(2)
  for (uint32_t i = 0, at = 0; i < b->n; i++) { /* keys without ids stand one after the other */
    uint32_t end = streams_get32(b->key_end + 4 * i);
    streams_row *row = streams_find(b->keys + at, end - at);
    streams_ask(row);
    streams_round_rows[i] = row;
    at = end;
  }
}

/* The rows of a batch without key ids. */
static void streams_rows_by_key(const streams_batch *b) {
  if (streams_slot_used < STREAMS_ROWS_NEAR) { streams_near_rows(b); return; }
  uint32_t *events = streams_scratch(b->n * sizeof *events);
  for (uint32_t i = 0; i < b->n; i++) events[i] = i;
  streams_find_rows(b, events, b->n, streams_round_rows);
  for (uint32_t i = 0; i < b->n; i++) streams_ask(streams_round_rows[i]);
}

/* The rows of a batch with key ids: each id is looked up once. */
static void streams_rows_by_id(const streams_batch *b) {
  uint32_t *firsts = streams_scratch(b->key_ids * sizeof *firsts);
  uint32_t ids = streams_first_of_ids(b->key_id, b->key_ids, b->n, firsts);
  streams_row **found = streams_scratch(ids * sizeof *found), **by_id;
  streams_find_rows(b, firsts, ids, found);
#ifdef STREAMS_LAST_ALONE
  if (b->runs) { streams_number_rows(b, firsts, found, ids); return; }
#endif
  by_id = streams_scratch(b->key_ids * sizeof *by_id);
  for (uint32_t i = 0; i < ids; i++) {
    streams_ask(found[i]);
    by_id[streams_get32(b->key_id + 4 * firsts[i])] = found[i];
  }
#pragma clang loop unroll_count(4)
  for (uint32_t i = 0; i < b->n; i++) streams_round_rows[i] = by_id[streams_get32(b->key_id + 4 * i)];
#ifdef STREAMS_LAST_WINS
  streams_round_last = streams_scratch(b->key_ids * sizeof *streams_round_last);
  for (uint32_t i = 0; i < b->n; i++) streams_round_last[streams_get32(b->key_id + 4 * i)] = i;
#endif
}

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  if (streams_batch_open(p, len, &streams_round)) return streams_answer(0, 0, -1);
  const streams_batch *b = &streams_round;
  streams_round_rows = streams_scratch(b->n * sizeof *streams_round_rows + 16);
#ifdef STREAMS_LAST_WINS
  streams_round_last = 0;
#endif
#ifdef STREAMS_LAST_ALONE
  streams_round_number = 0;
#endif
  streams_ask_begin(b->n);
  if (b->key_id) streams_rows_by_id(b);
  else streams_rows_by_key(b);
  return streams_answer_missing(p, b->n);
}

STREAMS_EXPORT("streams_fold") streams_desc *streams_fold(const uint8_t *p, uint32_t len) {
  (void)len;
  streams_batch b = streams_round;
  if (!streams_is_prepared(p)) return streams_answer(0, 0, -3);
  streams_row **rows = streams_round_rows;
  streams_reject_list rejects = {0, 0, 0, 0};
  int far = !b.key_id && streams_slot_used >= STREAMS_ROWS_NEAR;
#ifdef STREAMS_LAST_ALONE
  if (streams_round_number)
    return streams_fold_runs(&b, &rejects) ? streams_answer(0, 0, -4) : streams_answer_rejects(&rejects);
#endif
#pragma clang loop unroll_count(2) /* the engine looks at its deadline in every round */
  for (uint32_t i = 0; i < b.n; i++) {
    streams_event e;
    streams_event_read(&b, i, &e);
    if (far && !(i % STREAMS_AHEAD)) streams_cells_ahead(rows + i, b.n - i);
    if (!rows[i]->known) return streams_answer(0, 0, -4);
#ifdef STREAMS_LAST_WINS
    e.is_last = !streams_round_last || streams_round_last[streams_get32(b.key_id + 4 * i)] == i;
#endif
    if (streams_apply(&e, rows[i])) streams_add_reject(&rejects, i);
  }
  return streams_answer_rejects(&rejects);
}

#endif
