/* telemetry: readings -> panes of one second, from which windows are computed when they are asked for.
 *
 * Input: puts of streams.Reading to `device:{id}:telemetry` (or any key of the keyspace: the device is what stands between the
 * first colon and a trailing `:telemetry`). A reading more than GRACE_MS behind its device's watermark (the latest event time
 * of its readings) is late: counted in the device's row and written to late.device, in no pane. Deletes of a device's key
 * leave what was aggregated; puts' generations are not looked at. Purges (op 2) carry the row's own key.
 *
 * Rows, by key (0x1f sorts below every byte that a device or a metric may hold, so rows sort by device, metric, time):
 *     device:{id} 1f                        streams.TelemetryDevice: watermark, late, appended
 *     device:{id} 1f {metric} 1f {segment}  streams.TelemetrySegment: panes of 10 s of that metric
 *     device: 1f {metric} 1f {segment}      the same for all devices of this partition of this region
 * segment: floor(time / 10 s) + 2^39, as 10 hexadecimal digits. A row has one cell; it expires with the last reading in it.
 *
 * Why 10 s (sizes computed from the layout, not measured under load): a row is written anew by every commit that touched it, so a long segment costs bytes per commit and a short one
 * keys (160 bytes of row key, header and cell around the panes). A pane of one reading has 64 bytes. 10,000 devices at 1/s touch
 * 10,000 rows a second however commits are cut: 10 s segments make 500 bytes a row on average, 5 MB/s; 60 s would make 20 MB/s,
 * and 1 s would be no smaller than half of it, with ten times the rows to keep. 1,000 devices at 1,000/s: a pane has some 100
 * buckets (0.9 kB), a row 5 kB on average, 5 MB a commit; with 60 s it would be 27 MB.
 *
 * Quantiles: DDSketch (Masson, Rim, Lee, VLDB 2019) with the linearly interpolated logarithm and 50 buckets per octave: bucket
 * bounds are at most a factor 1.02 apart, so the middle is within 0.99 % of every value in it. Integer arithmetic on
 * the bits of the double, so it is exact and the same everywhere. Variance: Youngs and Cramer's update. */
#define STREAMS_NATIVE
#include "streams_rows.h"

enum { SEGMENT_S = 10, SEGMENT_MS = SEGMENT_S * 1000, SEPARATOR = 0x1f, KEY_MAX = 1024, SERIES_MAX = 16, NEAR = 4 };
#define TIME_MAX_MS 253402300799999ll /* the year 9999; as far before 1970 */
#define WEIGHT_MAX (1u << 24)         /* beyond it, a float no longer counts */

/* ---- native rows ---- */

typedef struct {
  double count, sum, min, max, m2;
  int32_t *index; /* ascending */
  uint32_t *weight;
  uint32_t n, cap, hot; /* buckets; cap 0: in `one_index`, `one_weight`; hot: the last one hit */
  uint16_t first, last;
  int32_t one_index;
  uint32_t one_weight;
} pane;

typedef struct { uint32_t kind; uint32_t n_buckets; int64_t start; pane *panes[SEGMENT_S]; } segment;
typedef struct { uint32_t kind; int64_t watermark, late, appended; } device_state;
enum { KIND_DEVICE, KIND_SEGMENT };

static void free_pane(pane *p) {
  if (p->cap) {
    streams_free(p->index, p->cap * 4);
    streams_free(p->weight, p->cap * 4);
  }
  streams_free(p, sizeof *p);
}

static void streams_native_free(void *native) {
  if (*(uint32_t *)native == KIND_DEVICE) { streams_free(native, sizeof(device_state)); return; }
  segment *s = native;
  for (uint32_t i = 0; i < SEGMENT_S; i++) if (s->panes[i]) free_pane(s->panes[i]);
  streams_free(s, sizeof *s);
}

static segment *new_segment(int64_t start) {
  segment *s = streams_malloc(sizeof *s);
  __builtin_memset(s, 0, sizeof *s);
  s->kind = KIND_SEGMENT;
  s->start = start;
  return s;
}

static device_state *new_device_state(void) {
  device_state *d = streams_malloc(sizeof *d);
  d->kind = KIND_DEVICE;
  d->watermark = d->appended = INT64_MIN;
  d->late = 0;
  return d;
}

static pane *new_pane(void) {
  pane *p = streams_malloc(sizeof *p);
  __builtin_memset(p, 0, sizeof *p);
  p->index = &p->one_index;
  p->weight = &p->one_weight;
  return p;
}

static void reserve_buckets(pane *p, uint32_t wanted) {
  uint32_t k, cap;
  if (wanted <= (p->cap ? p->cap : 1)) return;
  cap = streams_class(wanted * 8, &k) / 4;
  int32_t *index = streams_malloc(cap * 4);
  uint32_t *weight = streams_malloc(cap * 4);
  __builtin_memcpy(index, p->index, p->n * 4);
  __builtin_memcpy(weight, p->weight, p->n * 4);
  if (p->cap) {
    streams_free(p->index, p->cap * 4);
    streams_free(p->weight, p->cap * 4);
  }
  p->index = index;
  p->weight = weight;
  p->cap = cap;
}

static void insert_bucket(segment *s, pane *p, uint32_t at, int32_t index) {
  reserve_buckets(p, p->n + 1);
  __builtin_memmove(p->index + at + 1, p->index + at, (p->n - at) * 4);
  __builtin_memmove(p->weight + at + 1, p->weight + at, (p->n - at) * 4);
  p->index[at] = index;
  p->weight[at] = 0;
  p->n++;
  s->n_buckets++;
}

STREAMS_INLINE int32_t bucket_of(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, 8);
  uint64_t mantissa = bits & 0xFFFFFFFFFFFFFull;
  int32_t exponent = (int32_t)(bits >> 52 & 0x7FF), index = exponent * 50 + (int32_t)(mantissa * 50 >> 52);
  return exponent == 0 ? 0 : (bits >> 63 ? -index : index);
}

STREAMS_INLINE void add_reading(segment *s, double x, int64_t time, int32_t bucket) {
  uint32_t offset = (uint32_t)(time - s->start), second = offset / 1000, ms = offset % 1000;
  pane *p = s->panes[second];
  if (!p) {
    p = s->panes[second] = new_pane();
    p->min = p->max = x;
    p->first = p->last = (uint16_t)ms;
  }
  p->count += 1;
  p->sum += x;
  if (p->count > 1) {
    double d = x * p->count - p->sum;
    p->m2 += d * d / (p->count * (p->count - 1));
  }
  p->min = x < p->min ? x : p->min;
  p->max = x > p->max ? x : p->max;
  p->first = ms < p->first ? (uint16_t)ms : p->first;
  p->last = ms > p->last ? (uint16_t)ms : p->last;
  uint32_t at = p->hot;
  if (at >= p->n || p->index[at] != bucket) {
    const int32_t *base = p->index;
    uint32_t n = p->n;
    while (n > 1) { /* without branches on the data */
      uint32_t half = n / 2;
      base += base[half - 1] < bucket ? half : 0;
      n -= half;
    }
    at = (uint32_t)(base - p->index) + (n && *base < bucket);
    if (at == p->n || p->index[at] != bucket) insert_bucket(s, p, at, bucket);
    p->hot = at;
  }
  p->weight[at] += p->weight[at] < WEIGHT_MAX;
}

/* ---- stored rows ---- */

static uint32_t streams_native_size(const streams_row *r, const void *native) {
  (void)r;
  if (*(const uint32_t *)native == KIND_DEVICE) {
    const device_state *d = native;
    return 5 + streams_long_size(d->watermark) + streams_long_size(d->late) + streams_long_size(d->appended);
  }
  const segment *s = native;
  uint32_t panes = 0;
  for (uint32_t i = 0; i < SEGMENT_S; i++) panes += s->panes[i] != 0;
  return 5 + streams_long_size(s->start) + 9 * 2 + panes * (4 * 4 + 5 * 8) + 2 * (streams_long_size(s->n_buckets) + 1) + s->n_buckets * 8;
}

STREAMS_INLINE uint8_t *write_float(uint8_t *p, float v) { __builtin_memcpy(p, &v, 4); return p + 4; }

static uint8_t *write_segment(const segment *s, uint8_t *p) {
  const pane *panes[SEGMENT_S];
  uint8_t second[SEGMENT_S];
  uint32_t n = 0;
  for (uint32_t i = 0; i < SEGMENT_S; i++) {
    if (!s->panes[i]) continue;
    second[n] = (uint8_t)i;
    panes[n++] = s->panes[i];
  }
  p = streams_write_long(streams_write_prefix(p, SEGMENT_ID), s->start);
#define COLUMN(write, field) \
  *p++ = (uint8_t)(n * 2); \
  for (uint32_t i = 0; i < n; i++) p = write(p, field); \
  *p++ = 0
  COLUMN(write_float, (float)second[i]);
  COLUMN(write_float, (float)panes[i]->first);
  COLUMN(write_float, (float)panes[i]->last);
  COLUMN(write_float, (float)panes[i]->n);
  COLUMN(streams_write_double, panes[i]->count);
  COLUMN(streams_write_double, panes[i]->sum);
  COLUMN(streams_write_double, panes[i]->min);
  COLUMN(streams_write_double, panes[i]->max);
  COLUMN(streams_write_double, panes[i]->m2);
  p = streams_write_long(p, s->n_buckets);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < panes[i]->n; j++) p = write_float(p, (float)panes[i]->index[j]);
  *p++ = 0;
  p = streams_write_long(p, s->n_buckets);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < panes[i]->n; j++) p = write_float(p, (float)panes[i]->weight[j]);
  *p++ = 0;
  return p;
}

static uint32_t streams_native_write(const streams_row *r, const void *native, uint8_t *to) {
  (void)r;
  uint8_t *p = to;
  if (*(const uint32_t *)native == KIND_SEGMENT) return (uint32_t)(write_segment(native, p) - to);
  const device_state *d = native;
  p = streams_write_prefix(p, DEVICE_ID);
  p = streams_write_long(streams_write_long(streams_write_long(p, d->watermark), d->late), d->appended);
  return (uint32_t)(p - to);
}

/* A column of one block: where its items are; the number of them must be n (n 0: any, told in *found). */
static const uint8_t *read_column(streams_reader *in, uint32_t width, uint32_t n, uint32_t *found) {
  int64_t count = streams_read_long(in);
  if (in->error || count < 1 || (n && count != n) || count > (in->end - in->p) / width) { in->error = 1; return in->p; }
  const uint8_t *at = in->p;
  in->p += (uint32_t)count * width;
  if (in->p >= in->end || *in->p++ != 0) in->error = 1;
  if (found) *found = (uint32_t)count;
  return at;
}

STREAMS_INLINE float float_at(const uint8_t *p, uint32_t i) { float v; __builtin_memcpy(&v, p + 4 * i, 4); return v; }

static int read_segment(streams_reader in, segment **out) {
  segment *s = new_segment(streams_read_long(&in));
  *out = s;
  uint32_t n = 0, m = 0, at = 0;
  const uint8_t *second = read_column(&in, 4, 0, &n);
  if (in.error || n > SEGMENT_S) return 1;
  const uint8_t *first = read_column(&in, 4, n, 0), *last = read_column(&in, 4, n, 0), *buckets = read_column(&in, 4, n, 0);
  const uint8_t *count = read_column(&in, 8, n, 0), *sum = read_column(&in, 8, n, 0), *min = read_column(&in, 8, n, 0);
  const uint8_t *max = read_column(&in, 8, n, 0), *m2 = read_column(&in, 8, n, 0);
  const uint8_t *index = read_column(&in, 4, 0, &m), *weight = read_column(&in, 4, m, 0);
  if (in.error || in.p != in.end) return 1;
  for (uint32_t i = 0; i < n; i++) {
    float which = float_at(second, i), width = float_at(buckets, i), from = float_at(first, i), to = float_at(last, i);
    if (!(which >= 0 && which < SEGMENT_S && width >= 1 && width <= (float)(m - at))) return 1;
    if (!(from >= 0 && from < 1000 && to >= 0 && to < 1000) || s->panes[(uint32_t)which]) return 1;
    pane *p = s->panes[(uint32_t)which] = new_pane();
    *p = (pane){streams_get_f64(count + 8 * i), streams_get_f64(sum + 8 * i), streams_get_f64(min + 8 * i), streams_get_f64(max + 8 * i),
                streams_get_f64(m2 + 8 * i), &p->one_index, &p->one_weight, 0, 0, 0, (uint16_t)from, (uint16_t)to, 0, 0};
    reserve_buckets(p, (uint32_t)width);
    p->n = (uint32_t)width;
    for (uint32_t j = 0; j < p->n; j++, at++) {
      p->index[j] = (int32_t)float_at(index, at);
      p->weight[j] = (uint32_t)float_at(weight, at);
    }
  }
  s->n_buckets = m;
  return at != m;
}

static int streams_native_read(const streams_row *r, uint8_t **native, const uint8_t *from, uint32_t len) {
  int is_device = streams_row_key((streams_row *)r)[r->key_len - 1] == SEPARATOR;
  uint32_t id = streams_schema_id(from, len);
  if (id != (is_device ? DEVICE_ID : SEGMENT_ID)) return 1;
  streams_reader in = {from + 5, from + len, 0};
  if (!is_device) return read_segment(in, (segment **)native);
  device_state *d = new_device_state();
  d->watermark = streams_read_long(&in);
  d->late = streams_read_long(&in);
  d->appended = streams_read_long(&in);
  *native = (uint8_t *)d;
  return in.error || in.p != in.end;
}

/* ---- from an event to its rows; pointers stay valid as long as the instance lives ---- */

typedef struct { int64_t number; streams_row *row; } near_segment;

typedef struct series {
  struct series *next;
  const uint8_t *metric;
  uint32_t metric_len, cap;
  near_segment near[NEAR], region[NEAR];
} series;

typedef struct {
  streams_row *row;
  series *first;
  const char *bad;
  uint32_t prefix_len, id_len, key_len, n_series; /* `device:`, the id after it, the event's key; its bytes follow the struct */
} device;

typedef struct { uint32_t hash; device *device; } device_slot;
static device_slot *slots;
static uint32_t slots_cap, slots_used;

typedef struct { streams_row *device, *segment, *region; double value; int64_t time; const char *bad; } prepared;
static prepared *round_events;

static int has_control(const uint8_t *p, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) if (p[i] <= SEPARATOR) return 1;
  return 0;
}

static device *new_device(const uint8_t *key, uint32_t len) {
  static const char suffix[] = ":telemetry";
  device *d = streams_malloc(sizeof *d + len + 1);
  __builtin_memset(d, 0, sizeof *d);
  uint8_t *bytes = (uint8_t *)(d + 1);
  d->key_len = len;
  streams_copy(bytes, key, len);
  while (d->prefix_len < len && bytes[d->prefix_len++] != ':') {}
  uint32_t n = sizeof suffix - 1;
  d->id_len = len - d->prefix_len;
  if (d->id_len > n && streams_equal(bytes + len - n, suffix, n)) d->id_len -= n;
  uint32_t row_len = d->prefix_len + d->id_len + 1;
  if (!d->id_len || has_control(bytes + d->prefix_len, d->id_len)) d->bad = "the device's name holds control characters or is empty";
  else if (row_len > KEY_MAX) d->bad = "the key is too long for telemetry";
  else {
    uint8_t row_key[KEY_MAX];
    streams_copy(row_key, bytes, row_len - 1);
    row_key[row_len - 1] = SEPARATOR;
    d->row = streams_find(row_key, row_len);
  }
  return d;
}

static void grow_slots(void) {
  uint32_t cap = slots_cap ? slots_cap * 2 : 1024;
  device_slot *grown = streams_malloc(cap * sizeof *grown);
  __builtin_memset(grown, 0, cap * sizeof *grown);
  for (uint32_t i = 0; i < slots_cap; i++) {
    if (!slots[i].device) continue;
    uint32_t at = slots[i].hash & (cap - 1);
    while (grown[at].device) at = (at + 1) & (cap - 1);
    grown[at] = slots[i];
  }
  if (slots_cap) streams_free(slots, slots_cap * sizeof *slots);
  slots = grown;
  slots_cap = cap;
}

STREAMS_INLINE device *find_device(const uint8_t *key, uint32_t len) {
  if (slots_used * 2 >= slots_cap) grow_slots();
  uint32_t hash = streams_hash(key, len), at = hash & (slots_cap - 1);
  for (;; at = (at + 1) & (slots_cap - 1)) {
    device_slot *s = &slots[at];
    if (!s->device) {
      slots_used++;
      s->hash = hash;
      return s->device = new_device(key, len);
    }
    if (s->hash == hash && s->device->key_len == len && streams_equal(s->device + 1, key, len)) return s->device;
  }
}

/* The device's series of a metric, moved to the front; of more than SERIES_MAX metrics, those used least recently are forgotten. */
static series *find_series(device *d, const uint8_t *metric, uint32_t len) {
  series **link = &d->first, *s = 0;
  for (;;) {
    s = *link;
    if (!s || (s->metric_len == len && streams_equal(s->metric, metric, len))) break;
    if (!s->next && d->n_series == SERIES_MAX) break; /* the last one is made over */
    link = &s->next;
  }
  if (s) *link = s->next;
  if (!s || s->metric_len != len || !streams_equal(s->metric, metric, len)) {
    if (s) streams_free(s, sizeof *s + s->cap);
    else d->n_series++;
    s = streams_malloc(sizeof *s + len);
    __builtin_memset(s, 0, sizeof *s);
    s->metric = (uint8_t *)(s + 1);
    s->metric_len = s->cap = len;
    streams_copy(s + 1, metric, len);
  }
  s->next = d->first;
  return d->first = s;
}

static streams_row *segment_row(const device *d, uint32_t id_len, const series *s, int64_t number) {
  uint8_t key[KEY_MAX], *p = key;
  uint32_t head = d->prefix_len + id_len;
  streams_copy(p, d + 1, head);
  p += head;
  *p++ = SEPARATOR;
  streams_copy(p, s->metric, s->metric_len);
  p += s->metric_len;
  *p++ = SEPARATOR;
  uint64_t biased = (uint64_t)(number + (1ll << 39));
  for (int shift = 36; shift >= 0; shift -= 4) *p++ = (uint8_t)"0123456789abcdef"[biased >> shift & 15];
  return streams_find(key, (uint32_t)(p - key));
}

STREAMS_INLINE streams_row *near_row(near_segment *near, const device *d, uint32_t id_len, const series *s, int64_t number) {
  near_segment *at = &near[(uint64_t)number % NEAR];
  if (!at->row || at->number != number) *at = (near_segment){number, segment_row(d, id_len, s, number)};
  return at->row;
}

STREAMS_INLINE int64_t segment_number(int64_t time) {
  return time >= 0 ? time / SEGMENT_MS : -((SEGMENT_MS - 1 - time) / SEGMENT_MS);
}

/* Reads a put and finds its rows; prepared.bad says why it will be rejected. */
STREAMS_INLINE void prepare_put(const streams_batch *b, const streams_event *e, prepared *out) {
  streams_reader in = streams_body(e);
  uint32_t metric_len;
  const uint8_t *metric = streams_read_bytes(&in, &metric_len);
  out->value = b->typed[1] ? streams_get_f64(b->typed[1] + 8 * e->index) : streams_read_double(&in);
  out->time = b->typed[2] ? (int64_t)streams_get64(b->typed[2] + 8 * e->index) : streams_read_long(&in);
  if (streams_schema_id(e->value, e->value_len) != READING_ID) { out->bad = "not a streams.Reading"; return; }
  if (in.error) { out->bad = "malformed value"; return; }
  if (!(out->value - out->value == 0)) { out->bad = "non-finite value"; return; }
  if (out->time > TIME_MAX_MS || out->time < -TIME_MAX_MS) { out->bad = "time out of range"; return; }
  device *d = find_device(e->key, e->key_len);
  if (d->bad) { out->bad = d->bad; return; }
  series *s = d->first;
  if (!s || s->metric_len != metric_len || !streams_equal(s->metric, metric, metric_len)) {
    if (has_control(metric, metric_len)) { out->bad = "the metric holds control characters"; return; }
    if (d->prefix_len + d->id_len + metric_len + 12 > KEY_MAX) { out->bad = "the key is too long for telemetry"; return; }
    s = find_series(d, metric, metric_len);
  }
  int64_t number = segment_number(out->time);
  out->device = d->row;
  out->segment = near_row(s->near, d, d->id_len, s, number);
  out->region = near_row(s->region, d, 0, s, number);
}

/* ---- exports ---- */

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  round_events = streams_scratch(b.n * sizeof *round_events + 16);
  streams_ask_begin(3 * b.n);
  for (uint32_t i = 0; i < b.n; i++) {
    streams_event e;
    streams_event_read(&b, i, &e);
    prepared *at = &round_events[i];
    at->device = at->segment = at->region = 0;
    at->bad = 0;
    if (e.op == STREAMS_OP_PUT) {
      prepare_put(&b, &e, at);
    } else if (e.op == STREAMS_OP_PURGE && has_control(e.key, e.key_len)) { /* else of the device's own key: no row of ours */
      at->segment = streams_find(e.key, e.key_len);
    }
    if (at->segment) streams_ask(at->segment);
    if (at->device) { streams_ask(at->device); streams_ask(at->region); }
  }
  return streams_answer_missing(p, b.n);
}

STREAMS_INLINE void fold_put(const streams_event *e, const prepared *at) {
  streams_cell *c = streams_touch_single(e, at->device);
  if (!c->payload.heap) c->payload.heap = (uint8_t *)new_device_state();
  device_state *d = (device_state *)c->payload.heap;
  d->appended = streams_max_i64(d->appended, e->append_ms);
  if (d->watermark > INT64_MIN && at->time < d->watermark - GRACE_MS) {
    d->late++;
    streams_output(0, e->key, e->key_len, e->value, e->value_len);
    return;
  }
  d->watermark = streams_max_i64(d->watermark, at->time);
  int32_t bucket = bucket_of(at->value);
  streams_row *rows[2] = {at->segment, at->region};
  for (int i = 0; i < 2; i++) {
    c = streams_touch_single(e, rows[i]);
    if (!c->payload.heap) c->payload.heap = (uint8_t *)new_segment(segment_number(at->time) * SEGMENT_MS);
    add_reading((segment *)c->payload.heap, at->value, at->time, bucket);
  }
}

STREAMS_EXPORT("streams_fold") streams_desc *streams_fold(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  if (streams_round_ptr != (uint32_t)(uintptr_t)p || streams_round_n != b.n) return streams_answer(0, 0, -3);
  streams_reject_list rejects = {0, 0, 0, 0};
  for (uint32_t i = 0; i < b.n; i++) {
    const prepared *at = &round_events[i];
    streams_event e;
    streams_event_read(&b, i, &e);
    int rejected = 0;
    if ((at->segment && !at->segment->known) || (at->device && !(at->device->known && at->region->known))) return streams_answer(0, 0, -4);
    if (at->bad) rejected = streams_reject(at->bad);
    else if (e.op == STREAMS_OP_PUT) fold_put(&e, at);
    else if (e.op == STREAMS_OP_PURGE) rejected = at->segment && streams_purge(&e, at->segment);
    else if (e.op != STREAMS_OP_DELETE) rejected = streams_reject("unknown operation");
    if (rejected) streams_add_reject(&rejects, i);
  }
  return streams_answer_rejects(&rejects);
}
