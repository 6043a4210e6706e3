/* anomaly: flags the readings of each (device, metric) that are far from what its recent past leads to expect.
 *
 * Input: puts of streams.Reading to `device:{id}:telemetry` (or any key of the keyspace, as in ../telemetry). Deletes of a
 * device's key leave what was learned. Purges (op 2) carry the row's own key.
 * Row: `device:{id}:{metric}` (`%` and `:` of the metric as %25 and %3a, so that keys are not ambiguous), a
 * streams.Anomaly; it expires with its latest reading. Output: a streams.Alert for each flagged reading, by the reading's key.
 *
 * Readings are judged in the log's order. One older than the latest before it is late: counted, not judged, and it teaches
 * nothing. (Equal times are fine.) So the table depends on the log alone.
 *
 * The test. Level m: exponentially weighted mean (weight 1/10) of readings, each first pulled to within 3 s of m (Huber, Robust
 * estimation of a location parameter, 1964), so an anomaly moves its own baseline little, however large. Deviation d:
 * exponentially weighted mean of |x - m|, likewise clipped at 3 s (weight 1/100: a scale needs more readings than a level, and
 * what is judged by it should hardly move it); s = 1.2533 d estimates the standard deviation of a normal distribution
 * (E|x| = s sqrt(2/pi)). s is at least a thousandth of |m|: less is resolution, not signal, and a constant series must not
 * make s 0. Weights are 1/n while that is more, and the first 8 readings are not clipped. After WARM_UP readings
 * |x - m| > THRESHOLD s is flagged. RUN flagged readings in a row on one side are a new level: their mean and their mean
 * absolute deviation (if that is more) replace m and d. */
#define STREAMS_NATIVE
#define STREAMS_COMPACT
#include "streams_rows.h"

enum { KEY_MAX = 1024, UNCLIPPED = 8 };
#define TIME_MAX_MS 253402300799999ll /* the year 9999; as far before 1970 */
#define LIMIT 1e300                   /* the baseline sees no larger values: nothing overflows */
#define SCORE_MAX 1e6
#define CLIP 3.0
#define LEVEL_WEIGHT 0.1
#define DEVIATION_WEIGHT 0.01
#define NORMAL 1.2533141373155003 /* sqrt(pi / 2) */
#define RESOLUTION 1e-3
#define LEAST 1e-9

typedef struct { double value, expected, score; int64_t time; } alert;
/* The score of the latest reading is off / sigma, which is worked out when somebody wants it: few do. What every reading looks
 * at comes first, together. */
typedef struct {
  int64_t time, readings, run;
  double level, deviation, value, expected, off, sigma;
  uint32_t anomalous, n_alerts;
  double run_level, run_deviation;
  int64_t late, anomalies, shifts;
  alert *alerts; /* room for ALERTS, once there was one: most sources have none. The latest is at (anomalies - 1) % ALERTS */
} state;

enum { ALERTS_BYTES = ALERTS * sizeof(alert) };

static void streams_native_free(void *native) {
  state *s = native;
  if (s->alerts) streams_free(s->alerts, ALERTS_BYTES);
  streams_free(s, sizeof *s);
}

STREAMS_INLINE double clamp(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }
STREAMS_INLINE double magnitude(double x) { return x < 0 ? -x : x; }
STREAMS_INLINE double score_of(const state *s) { return s->readings > WARM_UP ? clamp(s->off / s->sigma, SCORE_MAX) : 0; }

/* ---- stored rows ---- */

/* The metric in a row's key, unescaped into `to`; its length. */
static uint32_t metric_of(const streams_row *r, uint8_t *to) {
  const uint8_t *key = streams_row_key((streams_row *)r);
  uint32_t at = r->key_len, n = 0;
  while (at && key[at - 1] != ':') at--;
  for (; at < r->key_len; at++) {
    uint8_t c = key[at];
    if (c == '%' && at + 2 < r->key_len) {
      c = key[at + 1] == '3' ? ':' : '%';
      at += 2;
    }
    to[n++] = c;
  }
  return n;
}

static uint32_t streams_native_size(const streams_row *r, const void *native) {
  const state *s = native;
  uint8_t metric[KEY_MAX];
  uint32_t len = metric_of(r, metric), n = 5 + streams_long_size(len) + len + 7 * 8 + 1;
  n += streams_long_size(s->time) + streams_long_size(s->readings) + streams_long_size(s->late) + streams_long_size(s->anomalies);
  n += streams_long_size(s->shifts) + streams_long_size(s->run) + 1;
  for (uint32_t i = 0; i < s->n_alerts; i++) n += 24 + streams_long_size(s->alerts[i].time);
  return n + (s->n_alerts ? streams_long_size(s->n_alerts) : 0);
}

static uint8_t *write_bytes(uint8_t *p, const uint8_t *from, uint32_t len) {
  p = streams_write_long(p, len);
  streams_copy(p, from, len);
  return p + len;
}

/* The kept alerts start here in the ring. */
STREAMS_INLINE uint32_t first_alert(const state *s) { return (uint32_t)((uint64_t)(s->anomalies - s->n_alerts) % ALERTS); }

static uint32_t streams_native_write(const streams_row *r, const void *native, uint8_t *to) {
  const state *s = native;
  uint8_t metric[KEY_MAX], *p = streams_write_prefix(to, ANOMALY_ID);
  p = write_bytes(p, metric, metric_of(r, metric));
  p = streams_write_long(streams_write_double(p, s->value), s->time);
  p = streams_write_double(streams_write_double(p, s->expected), score_of(s));
  *p++ = (uint8_t)s->anomalous;
  p = streams_write_long(streams_write_long(p, s->readings), s->late);
  p = streams_write_long(streams_write_long(p, s->anomalies), s->shifts);
  p = streams_write_double(streams_write_double(p, s->level), s->deviation);
  p = streams_write_double(streams_write_double(streams_write_long(p, s->run), s->run_level), s->run_deviation);
  if (s->n_alerts) p = streams_write_long(p, s->n_alerts);
  for (uint32_t i = 0, at = first_alert(s); i < s->n_alerts; i++, at = (at + 1) % ALERTS) {
    const alert *a = &s->alerts[at];
    p = streams_write_long(streams_write_double(p, a->value), a->time);
    p = streams_write_double(streams_write_double(p, a->expected), a->score);
  }
  *p++ = 0;
  return (uint32_t)(p - to);
}

static int streams_native_read(const streams_row *r, uint8_t **native, const uint8_t *from, uint32_t len) {
  (void)r;
  if (streams_schema_id(from, len) != ANOMALY_ID) return 1;
  streams_reader in = {from + 5, from + len, 0};
  state *s = streams_malloc(sizeof *s);
  s->alerts = 0;
  *native = (uint8_t *)s;
  uint32_t skipped;
  streams_read_bytes(&in, &skipped);
  s->value = streams_read_double(&in);
  s->time = streams_read_long(&in);
  s->expected = streams_read_double(&in);
  s->off = streams_read_double(&in);
  s->sigma = 1;
  s->anomalous = (uint32_t)streams_read_boolean(&in);
  s->readings = streams_read_long(&in);
  s->late = streams_read_long(&in);
  s->anomalies = streams_read_long(&in);
  s->shifts = streams_read_long(&in);
  s->level = streams_read_double(&in);
  s->deviation = streams_read_double(&in);
  s->run = streams_read_long(&in);
  s->run_level = streams_read_double(&in);
  s->run_deviation = streams_read_double(&in);
  int64_t n = streams_read_long(&in);
  if (in.error || n < 0 || n > ALERTS || s->anomalies < n) return 1;
  s->n_alerts = (uint32_t)n;
  if (n) s->alerts = streams_malloc(ALERTS_BYTES);
  for (uint32_t i = 0, at = first_alert(s); i < s->n_alerts; i++, at = (at + 1) % ALERTS) {
    alert *a = &s->alerts[at];
    a->value = streams_read_double(&in);
    a->time = streams_read_long(&in);
    a->expected = streams_read_double(&in);
    a->score = streams_read_double(&in);
  }
  if (n && streams_read_long(&in)) return 1; /* the end of the array */
  return in.error || in.p != in.end;
}

/* ---- the test ---- */

STREAMS_INLINE double sigma_of(double level, double deviation) {
  double sigma = NORMAL * deviation, least = RESOLUTION * magnitude(level) + LEAST;
  return sigma > least ? sigma : least;
}

/* Mean and mean absolute deviation of the flagged readings in a row on one side; when they are many enough, the new level. */
static void extend_run(state *s, double x, int64_t side) {
  if (s->run * side <= 0) { s->run = 0; s->run_level = s->run_deviation = 0; }
  s->run += side;
  double weight = 1 / (double)(s->run * side), off = magnitude(x - s->run_level);
  if (s->run == side) { s->run_level = x; return; }
  s->run_level += weight * (x - s->run_level);
  s->run_deviation += weight * (off - s->run_deviation);
  if (s->run * side < RUN) return;
  s->level = s->run_level;
  if (s->run_deviation > s->deviation) s->deviation = s->run_deviation;
  s->run = 0;
  s->run_level = s->run_deviation = 0;
  s->shifts++;
}

/* A reading that may be an anomaly. */
STREAMS_COLD static void judge_far(state *s, double x) {
  double score = score_of(s);
  s->anomalous = magnitude(score) > THRESHOLD;
  if (!s->anomalous) return;
  if (!s->alerts) s->alerts = streams_malloc(ALERTS_BYTES);
  s->alerts[s->anomalies++ % ALERTS] = (alert){s->value, s->expected, score, s->time};
  s->n_alerts += s->n_alerts < ALERTS;
  extend_run(s, x, score > 0 ? 1 : -1);
}

/* Judges the reading and learns from it. A weight is 1 / n while that is more than its own: then n is smaller than these. */
STREAMS_INLINE void judge(state *s, double value, int64_t time) {
  enum { LEVEL_FROM = 10, DEVIATION_FROM = 100 };
  int64_t n = ++s->readings;
  double x = clamp(value, LIMIT), level = s->level, deviation = s->deviation, off = n > 1 ? x - level : 0;
  double sigma = sigma_of(level, deviation), pulled = n > UNCLIPPED ? clamp(off, CLIP * sigma) : off;
  s->value = value;
  s->time = time;
  s->expected = n > 1 ? level : x;
  s->off = off;
  s->sigma = sigma;
  s->level = (n > 1 ? level : x) + (n < LEVEL_FROM ? 1 / (double)n : LEVEL_WEIGHT) * pulled;
  if (n > 1) s->deviation += (n <= DEVIATION_FROM ? 1 / (double)(n - 1) : DEVIATION_WEIGHT) * (magnitude(pulled) - deviation);
  s->anomalous = 0;
  if (magnitude(off) > (THRESHOLD - 0.01) * sigma) judge_far(s, x); /* rounding moves a score by far less */
  if (!s->anomalous && s->run) { s->run = 0; s->run_level = s->run_deviation = 0; }
}

/* ---- from an event to its row; sources stay as long as the instance lives ---- */

typedef struct source {
  struct source *successor; /* of the reading that last came after one of this source */
  streams_row *row;
  const char *bad;
  uint32_t known; /* its row is, and stays so */
  uint32_t key_len, wire_len, id_at, id_len, name_at; /* the event's key, then prefix and metric of its value, follow the struct */
} source;

typedef struct { uint32_t hash; source *source; } source_slot;
static source_slot *slots;
static uint32_t slots_cap, slots_used;
static source no_source, *latest = &no_source;

typedef struct { source *source; const char *bad; double value; int64_t time; } prepared;
static prepared *round_events;

/* A metric, as values begin with it: prefix and Avro string. number: in a batch. */
typedef struct { const uint8_t *wire; uint32_t len, name_at, hash, number; } metric;

/* Where a reading goes. row NULL: nowhere, its source is bad. state: what the row holds, once a reading of run number `run` has
 * touched it; later ones of it only move the clock on, by `more` in the end. */
typedef struct { source *source; streams_row *row; state *state; uint32_t run, more; } target;

/* A batch of nothing but readings whose numbers and metrics come in columns: the target of event i is targets[pairs[i]], or
 * targets[i] when keys have no ids. targets NULL: the batch is none, and `round_events` says where its events go. */
static struct { target *targets; const uint8_t *pairs; } columns;
static uint32_t runs_begun; /* of the batch */

static int has_control(const uint8_t *p, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) if (p[i] < 0x20) return 1;
  return 0;
}

STREAMS_INLINE int is_source(const source *s, const uint8_t *key, uint32_t key_len, const uint8_t *value, uint32_t value_len) {
  const uint8_t *bytes = (const uint8_t *)(s + 1);
  return s->key_len == key_len && s->wire_len <= value_len && streams_equal(bytes, key, s->key_len) &&
         streams_equal(bytes + s->key_len, value, s->wire_len);
}

/* The row's key; 0: it would be too long. */
static uint32_t row_key(const source *s, uint8_t *key) {
  const uint8_t *bytes = (const uint8_t *)(s + 1), *name = bytes + s->key_len + s->name_at;
  uint32_t n = s->id_at + s->id_len, name_len = s->wire_len - s->name_at;
  if (n + 1 + name_len > KEY_MAX) return 0;
  streams_copy(key, bytes, n);
  key[n++] = ':';
  for (uint32_t i = 0; i < name_len; i++) {
    if (n + 3 > KEY_MAX) return 0;
    if (name[i] != ':' && name[i] != '%') { key[n++] = name[i]; continue; }
    key[n++] = '%';
    key[n++] = name[i] == ':' ? '3' : '2';
    key[n++] = name[i] == ':' ? 'a' : '5';
  }
  return n;
}

static source *new_source(const uint8_t *event_key, uint32_t key_len, const metric *m) {
  static const char suffix[] = ":telemetry";
  enum { SUFFIX_LEN = sizeof suffix - 1 };
  source *s = streams_malloc(sizeof *s + key_len + m->len);
  __builtin_memset(s, 0, sizeof *s);
  uint8_t *bytes = (uint8_t *)(s + 1), key[KEY_MAX];
  s->key_len = key_len;
  s->wire_len = m->len;
  s->name_at = m->name_at;
  streams_copy(bytes, event_key, key_len);
  streams_copy(bytes + key_len, m->wire, m->len);
  while (s->id_at < s->key_len && bytes[s->id_at++] != ':') {}
  s->id_len = s->key_len - s->id_at;
  if (s->id_len > SUFFIX_LEN && streams_equal(bytes + s->key_len - SUFFIX_LEN, suffix, SUFFIX_LEN)) s->id_len -= SUFFIX_LEN;
  uint32_t len = row_key(s, key);
  if (!s->id_len || has_control(bytes + s->id_at, s->id_len)) s->bad = "the device's name holds control characters or is empty";
  else if (has_control(bytes + s->key_len + s->name_at, s->wire_len - s->name_at)) s->bad = "the metric holds control characters";
  else if (!len) s->bad = "the key is too long for anomaly";
  else s->row = streams_find(key, len);
  return s;
}

static void grow_slots(void) {
  uint32_t cap = slots_cap ? slots_cap * 2 : 1024;
  source_slot *grown = streams_malloc(cap * sizeof *grown);
  __builtin_memset(grown, 0, cap * sizeof *grown);
  for (uint32_t i = 0; i < slots_cap; i++) {
    if (!slots[i].source) continue;
    uint32_t at = slots[i].hash & (cap - 1);
    while (grown[at].source) at = (at + 1) & (cap - 1);
    grown[at] = slots[i];
  }
  if (slots_cap) streams_free(slots, slots_cap * sizeof *slots);
  slots = grown;
  slots_cap = cap;
}

STREAMS_INLINE uint32_t source_hash(const uint8_t *key, uint32_t len, const metric *m) { return streams_hash(key, len) ^ m->hash; }

static source *hashed_source(const uint8_t *key, uint32_t key_len, const metric *m, uint32_t hash) {
  if (slots_used * 2 >= slots_cap) grow_slots();
  for (uint32_t at = hash & (slots_cap - 1);; at = (at + 1) & (slots_cap - 1)) {
    source_slot *s = &slots[at];
    if (!s->source) {
      slots_used++;
      s->hash = hash;
      return s->source = new_source(key, key_len, m);
    }
    if (s->hash == hash && s->source->wire_len == m->len && is_source(s->source, key, key_len, m->wire, m->len)) return s->source;
  }
}

/* The metric of a value; why there is none. */
STREAMS_INLINE const char *read_metric(const streams_event *e, metric *m) {
  streams_reader in = streams_body(e);
  uint32_t len;
  const uint8_t *name = streams_read_bytes(&in, &len);
  if (streams_schema_id(e->value, e->value_len) != READING_ID) return "not a streams.Reading";
  if (in.error) return "malformed value";
  *m = (metric){e->value, (uint32_t)(name + len - e->value), (uint32_t)(name - e->value), 0, 0};
  m->hash = streams_hash(m->wire, m->len) * 0x9E3779B1u;
  return 0;
}

STREAMS_INLINE const char *bad_numbers(double value, int64_t time) {
  if (!(value - value == 0)) return "non-finite value";
  return time > TIME_MAX_MS || time < -TIME_MAX_MS ? "time out of range" : 0;
}

STREAMS_INLINE int is_metric(const source *s, const streams_event *e) {
  return s->wire_len <= e->value_len && streams_equal((const uint8_t *)(s + 1) + s->key_len, e->value, s->wire_len);
}

/* `known`: the source of an earlier reading of the same key in this batch, or NULL. */
STREAMS_INLINE void prepare_put(const streams_batch *b, const streams_event *e, source **known, prepared *at) {
  source *s = known ? *known : latest->successor;
  /* Sources tend to report in the same order again and again. */
  if (!s || (known ? !is_metric(s, e) : !is_source(s, e->key, e->key_len, e->value, e->value_len))) {
    metric m;
    if ((at->bad = read_metric(e, &m))) return;
    s = hashed_source(e->key, e->key_len, &m, source_hash(e->key, e->key_len, &m));
    if (known) *known = s;
    else latest->successor = s;
  }
  if (!known) latest = s;
  streams_reader in = {e->value + s->wire_len, e->value + e->value_len, 0};
  at->value = b->typed[1] ? streams_get_f64(b->typed[1] + 8 * e->index) : streams_read_double(&in);
  at->time = b->typed[2] ? (int64_t)streams_get64(b->typed[2] + 8 * e->index) : streams_read_long(&in);
  at->bad = s->bad;
  const char *bad = in.error ? "malformed value" : bad_numbers(at->value, at->time);
  if (bad) at->bad = bad;
  if (at->bad) return;
  at->source = s;
  streams_ask(s->row);
}

/* ---- readings in columns: a source is looked for once a pair of ids, and no value is looked at ---- */

enum { PAIRS_MIN = 1024, PAIRS_EACH = 8, METRICS_TRIED = 8 }; /* more pairs than this of ids are not listed: most would not be there */

/* The metric of each item id, and how many there are (one may be counted twice); NULL: they are not of readings. */
static const metric *metrics_of_items(const streams_batch *b, uint32_t ids_end, uint32_t *metrics) {
  metric *found = streams_scratch(ids_end * sizeof *found), *latest_ones[METRICS_TRIED];
  uint32_t *firsts = streams_scratch(ids_end * sizeof *firsts), n = streams_first_of_ids(b->item_id[0], ids_end, b->n, firsts);
  uint32_t room_bytes = 0;
  for (uint32_t i = 0, len; b->is_compact && i < n; i++, room_bytes += 5 + len)
    streams_word(b, 0, streams_get32(b->item_id[0] + 4 * firsts[i]), &len);
  uint8_t *room = b->is_compact ? streams_scratch(room_bytes) : 0;
  for (uint32_t i = 0; i < n; i++) {
    streams_event e;
    streams_event_read(b, firsts[i], &e);
    metric *m = &found[streams_get32(b->item_id[0] + 4 * firsts[i])];
    if (read_metric(&e, m)) return 0;
    if (room) { /* the value is gone when the next one is read */
      streams_copy(room, m->wire, m->len);
      m->wire = room;
      room += m->len;
    }
    m->number = *metrics;
    for (uint32_t k = 0; k < METRICS_TRIED && k < *metrics; k++) {
      const metric *other = latest_ones[k];
      if (other->len == m->len && streams_equal(other->wire, m->wire, m->len)) m->number = other->number;
    }
    if (m->number == *metrics) latest_ones[(*metrics)++ % METRICS_TRIED] = m;
  }
  return found;
}

/* The targets of n of the events; their slots and sources are loaded ahead, as streams_rows_ahead does with rows. */
STREAMS_APART static void find_targets(const streams_batch *b, const metric *metrics, const uint32_t *events, uint32_t n, target *to) {
  uint32_t hashes[STREAMS_AHEAD], sum = 0;
  const source *ahead[STREAMS_AHEAD];
  for (uint32_t from = 0; from < n; from += STREAMS_AHEAD) {
    uint32_t some = n - from < STREAMS_AHEAD ? n - from : STREAMS_AHEAD;
    for (uint32_t i = 0; i < some; i++) {
      uint32_t event = events[from + i], len;
      const uint8_t *key = streams_event_key(b, event, &len);
      hashes[i] = source_hash(key, len, &metrics[streams_get32(b->item_id[0] + 4 * event)]);
    }
    for (uint32_t i = 0; slots_cap && i < some; i++) ahead[i] = slots[hashes[i] & (slots_cap - 1)].source;
    for (uint32_t i = 0; slots_cap && i < some; i++) sum += ahead[i] ? ahead[i]->key_len + ((const uint8_t *)(ahead[i] + 1))[32] : 0;
    for (uint32_t i = 0; i < some; i++) {
      uint32_t event = events[from + i], len;
      const uint8_t *key = streams_event_key(b, event, &len);
      const metric *m = &metrics[streams_get32(b->item_id[0] + 4 * event)];
      source *s = hashed_source(key, len, m, hashes[i]);
      to[from + i] = (target){s, s->row, 0, 0, 0};
      if (s->known || !s->row) continue;
      s->known = s->row->known;
      streams_ask(s->row);
    }
  }
  streams_loaded = sum;
}

/* A number for each pair of key id and metric, by event. */
static const uint8_t *number_pairs(const streams_batch *b, const metric *metrics, uint32_t n_metrics) {
  if (n_metrics == 1) return b->key_id;
  uint32_t *pairs = streams_scratch(b->n * sizeof *pairs);
  for (uint32_t i = 0; i < b->n; i++)
    pairs[i] = streams_get32(b->key_id + 4 * i) * n_metrics + metrics[streams_get32(b->item_id[0] + 4 * i)].number;
  return (const uint8_t *)pairs;
}

static void prepare_columns(const streams_batch *b) {
  columns.targets = 0;
  columns.pairs = 0;
  runs_begun = 0; /* no target remembers one */
  if (!b->item_id[0] || !b->typed[1] || !b->typed[2] || !streams_all_puts(b)) return;
  uint32_t most = b->n * PAIRS_EACH + PAIRS_MIN, item_ids = streams_ids_end(b->item_id[0], b->n), n_metrics = 0;
  if (!item_ids || item_ids > most) return;
  const metric *metrics = metrics_of_items(b, item_ids, &n_metrics);
  if (!metrics || (b->key_id && n_metrics > most / b->key_ids)) return;
  if (b->key_id) {
    uint32_t end = b->key_ids * n_metrics;
    columns.pairs = number_pairs(b, metrics, n_metrics);
    uint32_t *firsts = streams_scratch(end * sizeof *firsts), n = streams_first_of_ids(columns.pairs, end, b->n, firsts);
    target *found = streams_scratch(n * sizeof *found);
    find_targets(b, metrics, firsts, n, found);
    columns.targets = streams_scratch(end * sizeof *columns.targets);
    for (uint32_t i = 0; i < n; i++) columns.targets[streams_get32(columns.pairs + 4 * firsts[i])] = found[i];
    return;
  }
  uint32_t *events = streams_scratch(b->n * sizeof *events);
  for (uint32_t i = 0; i < b->n; i++) events[i] = i;
  columns.targets = streams_scratch(b->n * sizeof *columns.targets);
  find_targets(b, metrics, events, b->n, columns.targets);
}

/* ---- exports ---- */

static streams_row *purged_row(const streams_event *e) { return streams_find(e->key, e->key_len); }

STREAMS_APART static void prepare_events(const streams_batch *b) {
  round_events = streams_scratch(b->n * sizeof *round_events);
  source **by_id = streams_by_key_id(b);
  for (uint32_t i = 0; i < b->n; i++) {
    streams_event e;
    streams_event_read(b, i, &e);
    round_events[i].source = 0;
    round_events[i].bad = 0;
    if (e.op == STREAMS_OP_PUT) prepare_put(b, &e, by_id ? &by_id[streams_get32(b->key_id + 4 * i)] : 0, &round_events[i]);
    else if (e.op == STREAMS_OP_PURGE) streams_ask(purged_row(&e));
  }
}

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  if (streams_batch_open(p, len, &streams_round)) return streams_answer(0, 0, -1);
  streams_ask_begin(streams_round.n);
  prepare_columns(&streams_round);
  if (!columns.targets) prepare_events(&streams_round);
  return streams_answer_missing(p, streams_round.n);
}

STREAMS_COLD static void put_alert(const uint8_t *key, uint32_t key_len, const source *from, const state *s) {
  uint8_t value[2 * KEY_MAX + 128], *p = streams_write_prefix(value, ALERT_ID);
  const uint8_t *bytes = (const uint8_t *)(from + 1);
  p = write_bytes(p, bytes + from->id_at, from->id_len);
  p = write_bytes(p, bytes + from->key_len + from->name_at, from->wire_len - from->name_at);
  p = streams_write_long(streams_write_double(p, s->value), s->time);
  p = streams_write_double(streams_write_double(p, s->expected), score_of(s));
  streams_output(0, key, key_len, value, (uint32_t)(p - value));
}

typedef struct { int64_t append_ms, expires_ms; uint64_t clock; } moment;

STREAMS_INLINE moment moment_of(const streams_event *e) {
  return (moment){e->append_ms, e->expires_ms, streams_max(e->hlc, (uint64_t)e->append_ms << 16)};
}

STREAMS_INLINE state *touched_state(const moment *now, streams_row *row) {
  streams_cell *c = streams_touch_at(row, now->clock, now->append_ms, now->expires_ms);
  state *s = (state *)c->payload.heap;
  if (!s) {
    s = streams_malloc(sizeof *s);
    __builtin_memset(s, 0, sizeof *s);
    s->time = INT64_MIN;
    s->sigma = 1;
    c->payload.heap = (uint8_t *)s;
  }
  return s;
}

/* The state that a reading was judged to be an anomaly by, else NULL. */
STREAMS_INLINE const state *fold_reading(state *s, double value, int64_t time) {
  if (time < s->time) {
    s->late++;
    return 0;
  }
  judge(s, value, time);
  return s->anomalous ? s : 0;
}

/* The rows of the next events, and what of their states is looked at. */
STREAMS_APART static void states_ahead(const target *targets, uint32_t left) {
  uint32_t n = left < STREAMS_AHEAD ? left : STREAMS_AHEAD, sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += targets[i].row ? (uint32_t)targets[i].row->last_hlc + targets[i].row->known + targets[i].row->first.cap : 0;
  for (uint32_t i = 0; i < n; i++) {
    const state *s = targets[i].row ? (const state *)targets[i].row->first.payload.heap : 0;
    if (targets[i].row && targets[i].row->n_cells && s) sum += streams_get32(&s->value) + (uint32_t)s->time + s->anomalous;
  }
  streams_loaded = sum;
}

/* The clocks of the rows that n targets touched in a run, moved on. */
static void end_run(target **list, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    streams_row *r = list[i]->row;
    r->cells[r->n_cells - 1].last_hlc = r->last_hlc += list[i]->more;
    list[i]->more = 0;
  }
}

/* Readings in columns, of one run. 0; else a row is not loaded. */
STREAMS_APART static int fold_run(const streams_batch *b, uint32_t first, uint32_t end, target **list, streams_reject_list *rejects) {
  streams_event e;
  streams_event_read(b, first, &e);
  moment now = moment_of(&e);
  uint32_t run = ++runs_begun, n = 0, lives = now.expires_ms > now.append_ms;
#pragma clang loop unroll_count(2)
  for (uint32_t i = first; i < end; i++) {
    if (!columns.pairs && !(i % STREAMS_AHEAD)) states_ahead(columns.targets + i, b->n - i);
    target *to = &columns.targets[columns.pairs ? streams_get32(columns.pairs + 4 * i) : i];
    double value = streams_get_f64(b->typed[1] + 8 * i);
    int64_t time = (int64_t)streams_get64(b->typed[2] + 8 * i);
    if (bad_numbers(value, time) || !to->row) {
      const char *bad = bad_numbers(value, time);
      streams_reject(bad ? bad : to->source->bad);
      streams_add_reject(rejects, i);
      continue;
    }
    if (to->run == run && lives) {
      to->more++;
    } else {
      if (!to->row->known) return 1;
      to->state = touched_state(&now, to->row);
      to->run = run;
      list[n] = to;
      n += lives;
    }
    const state *s = fold_reading(to->state, value, time);
    if (!s) continue;
    uint32_t len;
    const uint8_t *key = streams_event_key(b, i, &len);
    put_alert(key, len, to->source, s);
  }
  end_run(list, n);
  return 0;
}

static int fold_columns(const streams_batch *b, streams_reject_list *rejects) {
  target **list = streams_scratch((b->n + 1) * sizeof *list);
  for (uint32_t i = 0, run = 0, end; i < b->n; i = end) {
    end = streams_run_end(b, i, &run);
    if (fold_run(b, i, end, list, rejects)) return 1;
  }
  return 0;
}

/* 0; else a row is not loaded. */
STREAMS_APART static int fold_events(const streams_batch *b, streams_reject_list *rejects) {
  for (uint32_t i = 0; i < b->n; i++) {
    const prepared *at = &round_events[i];
    streams_event e;
    streams_event_read(b, i, &e);
    streams_row *row = at->source ? at->source->row : e.op == STREAMS_OP_PURGE ? purged_row(&e) : 0;
    int rejected = 0;
    if (row && !row->known) return 1;
    if (at->source) {
      moment now = moment_of(&e);
      const state *s = fold_reading(touched_state(&now, row), at->value, at->time);
      if (s) put_alert(e.key, e.key_len, at->source, s);
    } else if (at->bad) rejected = streams_reject(at->bad);
    else if (e.op == STREAMS_OP_PURGE) rejected = streams_purge(&e, row);
    else if (e.op != STREAMS_OP_DELETE) rejected = streams_reject("unknown operation");
    if (rejected) streams_add_reject(rejects, i);
  }
  return 0;
}

STREAMS_EXPORT("streams_fold") streams_desc *streams_fold(const uint8_t *p, uint32_t len) {
  (void)len;
  streams_reject_list rejects = {0, 0, 0, 0};
  if (!streams_is_prepared(p)) return streams_answer(0, 0, -3);
  if (columns.targets ? fold_columns(&streams_round, &rejects) : fold_events(&streams_round, &rejects)) return streams_answer(0, 0, -4);
  return streams_answer_rejects(&rejects);
}
