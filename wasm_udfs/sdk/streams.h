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
 * The function becomes part of the loop that calls it: `static`, so include this file before it is declared (or define
 * STREAMS_FOLD_ELSEWHERE when it is in another object), and a trap's backtrace shows it as `streams_fold`.
 * `streams_output(topic, …)` writes a record to a topic of the manifest's `outputs`, before or after streams_touch.
 * Deletes and purges, the row cache and the exports are done here and in streams_rows.h. STREAMS_MERGE comes from udf.toml (build.py). */
#ifndef STREAMS_H
#define STREAMS_H

#include "streams_rows.h"

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

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  streams_row **rows = streams_scratch(b.n * sizeof *rows + 16);
  streams_row **by_id = streams_by_key_id(&b);
  streams_ask_begin(b.n);
#ifdef STREAMS_LAST_WINS
  uint32_t *last = streams_round_last = by_id ? streams_scratch(b.key_ids * sizeof *last) : 0;
#endif
#pragma clang loop unroll_count(2)
  for (uint32_t i = 0, at = 0; i < b.n; i++) {
    uint32_t end = streams_get32(b.key_end + 4 * i), id = by_id ? streams_get32(b.key_id + 4 * i) : 0;
#ifdef STREAMS_LAST_WINS
    if (last) last[id] = i;
#endif
    streams_row *row = by_id ? by_id[id] : 0;
    if (!row) {
      row = streams_find(b.keys + at, end - at);
      streams_ask(row);
      if (by_id) by_id[id] = row;
    }
    rows[i] = row;
    at = end;
  }
  streams_round_rows = rows;
  return streams_answer_missing(p, b.n);
}

STREAMS_EXPORT("streams_fold") streams_desc *streams_fold(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  if (streams_round_ptr != (uint32_t)(uintptr_t)p || streams_round_n != b.n) return streams_answer(0, 0, -3);
  streams_row **rows = streams_round_rows;
  streams_reject_list rejects = {0, 0, 0, 0};
#pragma clang loop unroll_count(2) /* the engine looks at its deadline in every round */
  for (uint32_t i = 0; i < b.n; i++) {
    streams_event e;
    streams_event_read(&b, i, &e);
    if (!rows[i]->known) return streams_answer(0, 0, -4);
#ifdef STREAMS_LAST_WINS
    e.is_last = !streams_round_last || streams_round_last[streams_get32(b.key_id + 4 * i)] == i;
#endif
    if (streams_apply(&e, rows[i])) streams_add_reject(&rejects, i);
  }
  return streams_answer_rejects(&rejects);
}

#endif
