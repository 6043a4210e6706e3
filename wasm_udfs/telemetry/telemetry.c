/* telemetry: readings -> panes of one second, from which windows are computed when they are asked for.
 *
 * Input: puts of streams.Reading to `device:{id}:telemetry` (or any key of the keyspace: the device is what stands between the
 * first colon and a trailing `:telemetry`). A reading more than GRACE_MS behind its device's watermark (the latest event time
 * of its readings) is late: counted in the device's row and written to late.device, in no pane. Deletes of a device's key
 * leave what was aggregated; puts' generations are not looked at. Purges (op 2) carry the row's own key.
 *
 * Rows, by key (0x1f sorts below every byte that a device or a metric may hold, so rows sort by device, metric, time):
 *     device:{id} 1f                        streams.TelemetryDevice: watermark, late, appended
 *     device:{id} 1f {metric} 1f {segment}  streams.TelemetryPanes: panes of 10 s of that metric
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
#define STREAMS_EVICT
#define STREAMS_COMPACT
#include "streams_rows.h"

enum { SEGMENT_S = 10, SEGMENT_MS = SEGMENT_S * 1000, SEPARATOR = 0x1f, KEY_MAX = 1024, SERIES_MAX = 16, NEAR = 2, METRIC_LISTS = 256 };
enum { DENSE_FROM = 16, DENSE_SPAN = 8, REST_MAX = 1 << 14 };
#define TIME_MAX_MS 253402300799999ll /* the year 9999; as far before 1970 */
#define WEIGHT_MAX (1u << 24)         /* where a bucket stops counting: sketches were floats once */
#define BUCKET_MAX (2047 * 50 + 49)   /* of all doubles, in magnitude */

/* ---- native rows ---- */

/* The buckets of a pane are kept in one of three ways: one, in the pane itself; a few, sorted, by index; many of which most lie
 * close together, as the weights of `cap` indices from `base` on, 0 where there is none, and after these the rest (0 is far
 * from all else, and so is what has the other sign), sorted, by index. Rows do not show which. */
typedef struct {
  uint64_t count;
  double sum, min, max, m2;
  uint32_t n, cap; /* buckets; room in `block`, 0: it is `one` */
  union {
    struct { int32_t index; uint32_t weight; } one;
    struct { uint32_t *block; uint16_t dense, rest_cap; } many; /* dense: 0, or 1 + how many the rest is */
  };
  int32_t base;
  uint16_t first, last;
} pane;

typedef struct {
  uint32_t kind, n_buckets;
  int64_t start;
  pane *panes; /* in the order in which they began, together: they are made, written and freed together */
  uint8_t n, cap, at[SEGMENT_S]; /* at: 1 + the second's position in panes, 0: it has none */
} segment;
typedef struct { uint32_t kind; int64_t watermark, late, appended; } device_state;
enum { KIND_DEVICE, KIND_SEGMENT };

static void free_block(pane *p) {
  if (p->cap) streams_free(p->many.block, p->many.dense ? p->cap * 4 + p->many.rest_cap * 8u : p->cap * 8);
}

/* Of the rest: how many, their indices, their weights. */
STREAMS_INLINE uint32_t rest_n(const pane *p) { return p->many.dense - 1u; }
STREAMS_INLINE int32_t *rest_index(const pane *p) { return (int32_t *)p->many.block + p->cap; }
STREAMS_INLINE uint32_t *rest_weight(const pane *p) { return p->many.block + p->cap + p->many.rest_cap; }

static void streams_native_free(void *native) {
  if (*(uint32_t *)native == KIND_DEVICE) { streams_free(native, sizeof(device_state)); return; }
  segment *s = native;
  for (uint32_t i = 0; i < s->n; i++) free_block(&s->panes[i]);
  if (s->cap) streams_free(s->panes, s->cap * sizeof(pane));
  streams_free(s, sizeof *s);
}

static segment *new_segment(int64_t start) {
  segment *s = streams_malloc(sizeof *s);
  streams_zero(s, sizeof *s);
  s->kind = KIND_SEGMENT;
  s->start = start;
  return s;
}

static pane *new_pane(segment *s, uint32_t second) {
  if (s->n == s->cap) {
    uint32_t cap = !s->cap ? 1 : s->cap < 2 ? 2 : s->cap < 4 ? 4 : SEGMENT_S; /* with many devices most have one */
    pane *panes = streams_malloc(cap * sizeof *panes);
    streams_copy(panes, s->panes, s->n * sizeof *panes);
    if (s->cap) streams_free(s->panes, s->cap * sizeof *panes);
    s->panes = panes;
    s->cap = (uint8_t)cap;
  }
  s->at[second] = ++s->n;
  return &s->panes[s->n - 1];
}

static device_state *new_device_state(void) {
  device_state *d = streams_malloc(sizeof *d);
  d->kind = KIND_DEVICE;
  d->watermark = d->appended = INT64_MIN;
  d->late = 0;
  return d;
}

/* The first n of the buckets, all there are, as sorted arrays. */
static void list_buckets(const pane *p, uint32_t n, int32_t *index, uint32_t *weight) {
  if (!p->cap) {
    if (n) { index[0] = p->one.index; weight[0] = p->one.weight; }
  } else if (!p->many.dense) {
    __builtin_memcpy(index, p->many.block, n * 4);
    __builtin_memcpy(weight, p->many.block + p->cap, n * 4);
  } else {
    uint32_t rest = 0, at = 0;
    for (; rest < rest_n(p) && rest_index(p)[rest] < p->base; rest++, at++) { index[at] = rest_index(p)[rest]; weight[at] = rest_weight(p)[rest]; }
    for (uint32_t i = 0; i < p->cap; i++) {
      if (!p->many.block[i]) continue;
      index[at] = p->base + (int32_t)i;
      weight[at++] = p->many.block[i];
    }
    for (; rest < rest_n(p); rest++, at++) { index[at] = rest_index(p)[rest]; weight[at] = rest_weight(p)[rest]; }
  }
}

/* The weight, 0, of a bucket put between n sorted ones. */
static uint32_t *insert_bucket(int32_t *index, uint32_t *weight, uint32_t n, int32_t bucket) {
  uint32_t at = n;
  for (; at && index[at - 1] > bucket; at--) {
    index[at] = index[at - 1];
    weight[at] = weight[at - 1];
  }
  index[at] = bucket;
  weight[at] = 0;
  return weight + at;
}

/* Those of n sorted buckets that lie close enough together: from *from on, how many. At least half of them, else none. */
static uint32_t close_buckets(const int32_t *index, uint32_t n, uint32_t *from) {
  uint32_t low = 0, high = n;
  while (high - low >= DENSE_FROM && high - low >= (n + 1) / 2 && n - (high - low) <= REST_MAX) {
    if ((uint32_t)(index[high - 1] - index[low]) < DENSE_SPAN * (high - low)) {
      *from = low;
      return high - low;
    }
    if (index[low + 1] - index[low] > index[high - 1] - index[high - 2]) low++;
    else high--;
  }
  return 0;
}

/* All n buckets and another one laid out anew, in the way that suits; the weight of that one, 0. */
static uint32_t *lay_out(pane *p, uint32_t n, int32_t bucket) {
  uint32_t k, cap, size, rest_cap = 0, all = n + 1, from = 0, *block, *list = streams_malloc(all * 8), *found = 0;
  int32_t *index = (int32_t *)list;
  uint32_t *weight = list + all;
  list_buckets(p, n, index, weight);
  insert_bucket(index, weight, n, bucket);
  uint32_t near = close_buckets(index, all, &from), rest = all - near, dense = near > 0;
  if (dense) {
    uint32_t span = (uint32_t)(index[from + near - 1] - index[from]) + 1;
    rest_cap = (rest + rest / 2 + near / 8 + 4) & ~1u; /* so that laying out costs little a bucket, wherever new ones are */
    size = streams_class((span + span / 2) * 4 + rest_cap * 8, &k);
    cap = (size - rest_cap * 8) / 4;
    p->base = index[from] - (int32_t)((cap - span) / 2);
    for (; from && index[from - 1] >= p->base; from--) near++; /* there is room for them, too */
    while (from + near < all && (uint32_t)(index[from + near] - p->base) < cap) near++;
    rest = all - near;
  } else {
    cap = streams_class((n < 2 ? 4 : n * 2) * 8, &k) / 8;
    size = cap * 8;
  }
  block = streams_malloc(size); /* before the old one is given back */
  free_block(p);
  p->many.block = block;
  p->many.dense = (uint16_t)(dense ? rest + 1 : 0);
  p->many.rest_cap = (uint16_t)rest_cap;
  p->cap = cap;
  if (dense) __builtin_memset(block, 0, cap * 4);
  for (uint32_t i = 0, at = 0; i < all; i++) {
    uint32_t *to = block + (uint32_t)(index[i] - p->base);
    if (!dense || i - from >= near) {
      int32_t *indices = dense ? rest_index(p) : (int32_t *)block;
      indices[at] = index[i];
      to = (dense ? rest_weight(p) : block + cap) + at++;
    }
    *to = weight[i];
    if (index[i] == bucket) found = to;
  }
  streams_free(list, all * 8);
  return found;
}

/* The weight of a bucket that is not there yet: 0. */
STREAMS_COLD static uint32_t *add_bucket(segment *s, pane *p, int32_t bucket) {
  s->n_buckets++;
  uint32_t n = p->n++, at = (uint32_t)(bucket - p->base);
  if (!n) {
    p->one.index = bucket;
    p->one.weight = 0;
    return &p->one.weight;
  }
  if (!p->cap) return lay_out(p, n, bucket);
  if (!p->many.dense) return n == p->cap ? lay_out(p, n, bucket) : insert_bucket((int32_t *)p->many.block, p->many.block + p->cap, n, bucket);
  if (at < p->cap) return p->many.block + at;
  uint32_t rest = rest_n(p);
  if (rest == p->many.rest_cap) return lay_out(p, n, bucket);
  p->many.dense++;
  return insert_bucket(rest_index(p), rest_weight(p), rest, bucket);
}

/* The weight of a bucket among n sorted ones; NULL: it is none of them. */
STREAMS_INLINE uint32_t *listed_weight(const int32_t *index, uint32_t *weight, uint32_t n, int32_t bucket) {
  const int32_t *base = index;
  for (; n > 1;) { /* without branches on the data */
    uint32_t half = n / 2;
    base += base[half - 1] < bucket ? half : 0;
    n -= half;
  }
  return n && *base == bucket ? weight + (base - index) : 0;
}

STREAMS_INLINE uint32_t *bucket_weight(segment *s, pane *p, int32_t bucket) {
  uint32_t at = (uint32_t)(bucket - p->base), *found;
  if (!p->cap) return p->n && p->one.index == bucket ? &p->one.weight : add_bucket(s, p, bucket);
  if (p->many.dense) {
    if (at < p->cap && p->many.block[at]) return p->many.block + at;
    found = at < p->cap ? 0 : listed_weight(rest_index(p), rest_weight(p), rest_n(p), bucket);
  } else {
    found = listed_weight((const int32_t *)p->many.block, p->many.block + p->cap, p->n, bucket);
  }
  return found ? found : add_bucket(s, p, bucket);
}

STREAMS_INLINE int32_t bucket_of(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, 8);
  uint64_t mantissa = bits & 0xFFFFFFFFFFFFFull;
  int32_t exponent = (int32_t)(bits >> 52 & 0x7FF), index = exponent * 50 + (int32_t)(mantissa * 50 >> 52);
  return exponent == 0 ? 0 : (bits >> 63 ? -index : index);
}

STREAMS_INLINE void add_reading(segment *s, double x, int64_t time, int32_t bucket) {
  uint32_t offset = (uint32_t)(time - s->start), second = offset * 8389 >> 23, ms = offset - 1000 * second; /* exact below 10,000 */
  uint32_t at = s->at[second];
  if (!at) {
    pane *p = new_pane(s, second);
    p->count = 1;
    p->sum = x + 0.0;
    p->min = p->max = x;
    p->m2 = 0;
    p->n = 1;
    p->cap = 0;
    p->one.index = bucket;
    p->one.weight = 1;
    p->first = p->last = (uint16_t)ms;
    s->n_buckets++;
    return;
  }
  pane *p = &s->panes[at - 1];
  uint64_t n = ++p->count;
  double count = (double)(int64_t)n, sum = p->sum += x, d = x * count - sum;
  p->m2 += d * d / (n >> 31 ? count * (count - 1) : (double)(int64_t)(n * (n - 1)));
  p->min = x < p->min ? x : p->min;
  p->max = x > p->max ? x : p->max;
  p->first = ms < p->first ? (uint16_t)ms : p->first;
  p->last = ms > p->last ? (uint16_t)ms : p->last;
  uint32_t *weight = bucket_weight(s, p, bucket);
  *weight += *weight < WEIGHT_MAX;
}

/* Readings of a batch: the events that `index` lists, or without it those from `first` on. */
typedef struct { const uint8_t *values, *times; const uint32_t *index; uint32_t first, n; } readings;

STREAMS_INLINE uint32_t event_of(const readings *r, uint32_t k) { return r->index ? r->index[k] : r->first + k; }
STREAMS_INLINE int64_t time_of(const readings *r, uint32_t k) { return (int64_t)streams_get64(r->times + 8 * event_of(r, k)); }
STREAMS_INLINE double value_of(const readings *r, uint32_t k) { return streams_get_f64(r->values + 8 * event_of(r, k)); }

/* Adds readings from the k-th on to the pane of `second`, which has some, as add_reading does, up to one of another second;
 * which that is. What add_reading reads and writes for each is in locals here. */
STREAMS_INLINE uint32_t add_to_pane(segment *s, uint32_t second, readings r, uint32_t k, int64_t *latest) {
  pane *p = &s->panes[s->at[second] - 1];
  int64_t from = s->start + 1000 * (int64_t)second, to = *latest;
  uint64_t n = p->count;
  double sum = p->sum, min = p->min, max = p->max, m2 = p->m2;
  int64_t first = p->first, last = p->last;
#pragma clang loop unroll_count(2)
  for (; k < r.n; k++) {
    int64_t time = time_of(&r, k), ms = time - from;
    if ((uint64_t)ms >= 1000) break;
    double x = value_of(&r, k), count = (double)(int64_t)++n, d;
    uint32_t *weight = bucket_weight(s, p, bucket_of(x));
    sum += x;
    d = x * count - sum;
    m2 += d * d / (n >> 31 ? count * (count - 1) : (double)(int64_t)(n * (n - 1)));
    min = x < min ? x : min;
    max = x > max ? x : max;
    first = ms < first ? ms : first;
    last = ms > last ? ms : last;
    to = time > to ? time : to;
    *weight += *weight < WEIGHT_MAX;
  }
  p->count = n;
  p->sum = sum;
  p->min = min;
  p->max = max;
  p->m2 = m2;
  p->first = (uint16_t)first;
  p->last = (uint16_t)last;
  *latest = to;
  return k;
}

/* As add_reading for each, in order; the latest time among them. */
STREAMS_INLINE int64_t add_readings(segment *s, readings r) {
  int64_t latest = INT64_MIN;
  for (uint32_t k = 0; k < r.n;) {
    int64_t time = time_of(&r, k);
    uint32_t second = (uint32_t)(time - s->start) * 8389 >> 23;
    int64_t next = k + 1 < r.n ? time_of(&r, k + 1) - s->start - 1000 * (int64_t)second : -1;
    if (s->at[second] && (uint64_t)next < 1000) { /* more than one */
      k = add_to_pane(s, second, r, k, &latest);
      continue;
    }
    add_reading(s, value_of(&r, k), time, bucket_of(value_of(&r, k)));
    latest = time > latest ? time : latest;
    k++;
  }
  return latest;
}

STREAMS_APART static int64_t add_listed(segment *s, const readings *r) { return add_readings(s, *r); }

STREAMS_APART static int64_t add_in_turn(segment *s, const readings *r) {
  return add_readings(s, (readings){r->values, r->times, 0, r->first, r->n});
}

/* ---- stored rows ---- */

enum { BUCKET_BYTES_MAX = 3 + 4, SKETCH_LENGTH_MAX = 5 }; /* an index is below 2^18, a weight at most WEIGHT_MAX */

static uint32_t streams_native_size(const streams_row *r, const void *native) {
  (void)r;
  if (*(const uint32_t *)native == KIND_DEVICE) {
    const device_state *d = native;
    return 5 + streams_long_size(d->watermark) + streams_long_size(d->late) + streams_long_size(d->appended);
  }
  const segment *s = native; /* at most: what the buckets take is known when they are written */
  return 5 + streams_long_size(s->start) + 9 * 2 + s->n * (4 * 4 + 5 * 8) + SKETCH_LENGTH_MAX + s->n_buckets * BUCKET_BYTES_MAX;
}

STREAMS_INLINE uint8_t *write_float(uint8_t *p, float v) { __builtin_memcpy(p, &v, 4); return p + 4; }

STREAMS_INLINE uint8_t *write_number(uint8_t *p, uint32_t v) {
  for (; v > 0x7f; v >>= 7) *p++ = (uint8_t)(v | 0x80);
  *p++ = (uint8_t)v;
  return p;
}

STREAMS_INLINE uint8_t *write_bucket(uint8_t *p, int32_t *before, int32_t index, uint32_t weight) {
  uint32_t delta = (uint32_t)(index - *before);
  *before = index;
  if ((delta | weight) < 0x80) {
    streams_put16(p, (uint16_t)(delta | weight << 8));
    return p + 2;
  }
  return write_number(write_number(p, delta), weight);
}

/* The first bucket's index is written as zigzag of itself: as the difference to what gives that. */
STREAMS_INLINE int32_t before_first(int32_t index) { return index - (int32_t)((uint32_t)index << 1 ^ (uint32_t)(index >> 31)); }

static uint8_t *write_buckets(const pane *p, uint8_t *to) {
  if (!p->cap) {
    int32_t before = before_first(p->one.index);
    return write_bucket(to, &before, p->one.index, p->one.weight);
  }
  const uint32_t *block = p->many.block;
  uint32_t i = 0, rest = 0;
  if (!p->many.dense) {
    int32_t before = before_first((int32_t)block[0]);
    for (; i < p->n; i++) to = write_bucket(to, &before, (int32_t)block[i], block[p->cap + i]);
    return to;
  }
  const int32_t *index = rest_index(p);
  const uint32_t *weight = rest_weight(p);
  while (!block[i]) i++;
  int32_t first = p->base + (int32_t)i, before = before_first(rest_n(p) && index[0] < first ? index[0] : first);
  for (; rest < rest_n(p) && index[rest] < first; rest++) to = write_bucket(to, &before, index[rest], weight[rest]);
  for (; i < p->cap; i++) if (block[i]) to = write_bucket(to, &before, p->base + (int32_t)i, block[i]);
  for (; rest < rest_n(p); rest++) to = write_bucket(to, &before, index[rest], weight[rest]);
  return to;
}

static uint8_t *write_segment(const segment *s, uint8_t *p) {
  const pane *panes[SEGMENT_S];
  uint8_t second[SEGMENT_S];
  uint32_t n = 0;
  for (uint32_t i = 0; i < SEGMENT_S; i++) {
    if (!s->at[i]) continue;
    second[n] = (uint8_t)i;
    panes[n++] = &s->panes[s->at[i] - 1];
  }
  p = streams_write_long(streams_write_prefix(p, PANES_ID), s->start);
#define COLUMN(write, field) \
  *p++ = (uint8_t)(n * 2); \
  for (uint32_t i = 0; i < n; i++) p = write(p, field); \
  *p++ = 0
  COLUMN(write_float, (float)second[i]);
  COLUMN(write_float, (float)panes[i]->first);
  COLUMN(write_float, (float)panes[i]->last);
  COLUMN(write_float, (float)panes[i]->n);
  COLUMN(streams_write_double, (double)(int64_t)panes[i]->count);
  COLUMN(streams_write_double, panes[i]->sum);
  COLUMN(streams_write_double, panes[i]->min);
  COLUMN(streams_write_double, panes[i]->max);
  COLUMN(streams_write_double, panes[i]->m2);
  uint8_t *sketch = p + SKETCH_LENGTH_MAX, *end = sketch;
  for (uint32_t i = 0; i < n; i++) end = write_buckets(panes[i], end);
  p = streams_write_long(p, end - sketch);
  __builtin_memmove(p, sketch, (uint32_t)(end - sketch));
  return p + (end - sketch);
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

/* An unsigned LEB128 number. */
STREAMS_INLINE uint32_t read_number(streams_reader *in) {
  uint32_t v = 0;
  for (uint32_t shift = 0; shift < 35 && in->p < in->end; shift += 7) {
    uint8_t b = *in->p++;
    v |= (uint32_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) return v;
  }
  in->error = 1;
  return 0;
}

/* The buckets of a stored segment: packed (streams.TelemetryPanes), or as they were before (streams.TelemetrySegment), in columns. */
typedef struct { streams_reader packed; const uint8_t *index, *weight; uint32_t n, at; } stored_buckets;

static int read_buckets(stored_buckets *from, segment *s, pane *p, uint32_t n) {
  int32_t index = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t weight;
    if (from->index) {
      if (from->at == from->n) return 1;
      index = (int32_t)float_at(from->index, from->at);
      weight = (uint32_t)float_at(from->weight, from->at++);
    } else {
      uint32_t delta = read_number(&from->packed);
      index = i ? index + (int32_t)delta : (int32_t)(delta >> 1 ^ -(delta & 1));
      weight = read_number(&from->packed);
      if (from->packed.error || (i && !delta)) return 1;
    }
    if (!weight || index > BUCKET_MAX || index < -BUCKET_MAX) return 1;
    *bucket_weight(s, p, index) = weight;
  }
  return p->n != n;
}

static int read_segment(streams_reader in, int packed, segment **out) {
  segment *s = new_segment(streams_read_long(&in));
  *out = s;
  uint32_t n = 0;
  const uint8_t *second = read_column(&in, 4, 0, &n);
  if (in.error || n > SEGMENT_S) return 1;
  const uint8_t *first = read_column(&in, 4, n, 0), *last = read_column(&in, 4, n, 0), *buckets = read_column(&in, 4, n, 0);
  const uint8_t *count = read_column(&in, 8, n, 0), *sum = read_column(&in, 8, n, 0), *min = read_column(&in, 8, n, 0);
  const uint8_t *max = read_column(&in, 8, n, 0), *m2 = read_column(&in, 8, n, 0);
  stored_buckets sketch = {{0, 0, 0}, 0, 0, 0, 0};
  if (packed) {
    uint32_t len;
    sketch.packed.p = streams_read_bytes(&in, &len);
    sketch.packed.end = sketch.packed.p + len;
  } else {
    sketch.index = read_column(&in, 4, 0, &sketch.n);
    sketch.weight = read_column(&in, 4, sketch.n, 0);
  }
  if (in.error || in.p != in.end) return 1;
  for (uint32_t i = 0; i < n; i++) {
    float which = float_at(second, i), width = float_at(buckets, i), from = float_at(first, i), to = float_at(last, i);
    if (!(which >= 0 && which < SEGMENT_S && width >= 1 && width <= 2 * BUCKET_MAX + 1)) return 1;
    if (!(from >= 0 && from < 1000 && to >= 0 && to < 1000) || s->at[(uint32_t)which]) return 1;
    if (!(streams_get_f64(count + 8 * i) >= 1 && streams_get_f64(count + 8 * i) < 0x1p53)) return 1;
    pane *p = new_pane(s, (uint32_t)which);
    *p = (pane){.count = (uint64_t)streams_get_f64(count + 8 * i), .sum = streams_get_f64(sum + 8 * i), .min = streams_get_f64(min + 8 * i),
                .max = streams_get_f64(max + 8 * i), .m2 = streams_get_f64(m2 + 8 * i), .first = (uint16_t)from, .last = (uint16_t)to};
    if (read_buckets(&sketch, s, p, (uint32_t)width)) return 1;
  }
  return packed ? sketch.packed.p != sketch.packed.end : sketch.at != sketch.n || s->n_buckets != sketch.n;
}

/* No device's watermark is above it. */
static int64_t highest_mark = INT64_MIN;

static int streams_native_read(const streams_row *r, uint8_t **native, const uint8_t *from, uint32_t len) {
  int is_device = streams_row_key((streams_row *)r)[r->key_len - 1] == SEPARATOR;
  uint32_t id = streams_schema_id(from, len);
  if (is_device ? id != DEVICE_ID : id != PANES_ID && id != SEGMENT_ID) return 1;
  streams_reader in = {from + 5, from + len, 0};
  if (!is_device) return read_segment(in, id == PANES_ID, (segment **)native);
  device_state *d = new_device_state();
  d->watermark = streams_read_long(&in);
  highest_mark = streams_max_i64(highest_mark, d->watermark);
  d->late = streams_read_long(&in);
  d->appended = streams_read_long(&in);
  *native = (uint8_t *)d;
  return in.error || in.p != in.end;
}

/* ---- devices and metrics; they stay as long as the instance lives, segments' rows may be evicted ---- */

/* row 0: none. known: its row is, and stays so. group: in that chunk of columns. */
typedef struct { int64_t start; streams_row *row; uint32_t known, chunk, group; } near_segment;

/* A metric of the keyspace: what the value of a reading of it begins with (prefix and Avro string) follows the struct. */
typedef struct metric {
  struct metric *next;
  uint32_t wire_len, name_at;
  near_segment near[NEAR]; /* of the region */
} metric;

typedef struct series {
  struct series *next;
  metric *metric;
  near_segment near[NEAR];
} series;

typedef struct device {
  struct device *successor; /* the device of the reading that last came after one of this device */
  uint32_t key_len, group, chunk; /* group: in that chunk; the event's key follows the struct */
  metric *metric; /* of the first series */
  series *first;
  struct device *leader; /* itself, or the other device with this row, whose group it shares */
  streams_row *row;
  const char *bad;
  uint32_t prefix_len, id_len, n_series; /* `device:`, the id after it */
  uint32_t known; /* its row is, and stays so */
} device;

typedef struct { uint32_t hash; device *device; } device_slot;
static device_slot *slots;
static uint32_t slots_cap, slots_used;
static device no_device, *latest = &no_device;
static metric *metrics[METRIC_LISTS];

static int has_control(const uint8_t *p, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) if (p[i] <= SEPARATOR) return 1;
  return 0;
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

/* The slot of a key, or the empty one where it would be. */
static device_slot *device_slot_of(const uint8_t *key, uint32_t len, uint32_t hash) {
  uint32_t at = hash & (slots_cap - 1);
  for (;; at = (at + 1) & (slots_cap - 1)) {
    device_slot *s = &slots[at];
    if (!s->device || (s->hash == hash && s->device->key_len == len && streams_equal(s->device + 1, key, len))) return s;
  }
}

static const char suffix[] = ":telemetry";
enum { SUFFIX_LEN = sizeof suffix - 1 };

static int has_suffix(const uint8_t *key, uint32_t len) {
  return len > SUFFIX_LEN && streams_equal(key + len - SUFFIX_LEN, suffix, SUFFIX_LEN);
}

/* A device's readings may come with the suffix and without: two keys, one row. */
static device *leader_of(device *d, const uint8_t *key, uint32_t len) {
  uint8_t other[KEY_MAX + SUFFIX_LEN];
  uint32_t n = d->prefix_len + d->id_len;
  streams_copy(other, key, n);
  if (n == len) {
    streams_copy(other + n, suffix, SUFFIX_LEN);
    n += SUFFIX_LEN;
  }
  const device_slot *twin = device_slot_of(other, n, streams_hash(other, n));
  return twin->device && twin->device->row == d->row ? twin->device->leader : d;
}

static device *new_device(const uint8_t *key, uint32_t len) {
  device *d = streams_malloc(sizeof *d + len);
  __builtin_memset(d, 0, sizeof *d);
  d->leader = d;
  d->key_len = len;
  streams_copy(d + 1, key, len);
  while (d->prefix_len < len && key[d->prefix_len++] != ':') {}
  d->id_len = len - d->prefix_len;
  if (has_suffix(key + d->prefix_len, d->id_len)) d->id_len -= SUFFIX_LEN;
  uint32_t row_len = d->prefix_len + d->id_len + 1;
  if (!d->id_len || has_control(key + d->prefix_len, d->id_len)) d->bad = "the device's name holds control characters or is empty";
  else if (row_len > KEY_MAX) d->bad = "the key is too long for telemetry";
  else {
    uint8_t row_key[KEY_MAX];
    streams_copy(row_key, key, row_len - 1);
    row_key[row_len - 1] = SEPARATOR;
    d->row = streams_find(row_key, row_len);
    streams_hold(d->row);
    d->leader = leader_of(d, key, len);
  }
  return d;
}

static device *hashed_device(const uint8_t *key, uint32_t len, uint32_t hash) {
  if (slots_used * 2 >= slots_cap) grow_slots();
  device_slot *s = device_slot_of(key, len, hash);
  if (!s->device) {
    slots_used++;
    s->device = new_device(key, len);
    s->hash = hash;
  }
  return s->device;
}

/* Devices tend to report in the same order again and again, so the successor is tried before the table. */
STREAMS_INLINE device *find_device(const uint8_t *key, uint32_t len) {
  device *d = latest->successor;
  if (!d || d->key_len != len || !streams_equal(d + 1, key, len)) d = latest->successor = hashed_device(key, len, streams_hash(key, len));
  return latest = d;
}

STREAMS_INLINE int is_metric(const metric *m, const uint8_t *value, uint32_t len) {
  return m && m->wire_len <= len && streams_equal(m + 1, value, m->wire_len);
}

static void forget_near(near_segment *near) {
  for (uint32_t i = 0; i < NEAR; i++) {
    if (near[i].row) streams_let_go(near[i].row);
    near[i] = (near_segment){INT64_MIN, 0, 0, 0, 0};
  }
}

static metric *find_metric(const uint8_t *wire, uint32_t len, uint32_t name_at) {
  metric **list = &metrics[streams_hash(wire, len) % METRIC_LISTS], *m;
  for (m = *list; m; m = m->next) if (m->wire_len == len && is_metric(m, wire, len)) return m;
  m = streams_malloc(sizeof *m + len);
  __builtin_memset(m, 0, sizeof *m);
  m->next = *list;
  m->wire_len = len;
  m->name_at = name_at;
  forget_near(m->near);
  streams_copy(m + 1, wire, len);
  return *list = m;
}

/* The device's series of a metric, moved to the front; of more than SERIES_MAX metrics, those used least recently are forgotten. */
static series *find_series(device *d, metric *m) {
  series **link = &d->first, *s = 0;
  for (;;) {
    s = *link;
    if (!s || s->metric == m) break;
    if (!s->next && d->n_series == SERIES_MAX) break; /* the last one is made over */
    link = &s->next;
  }
  if (s) *link = s->next;
  if (!s) {
    s = streams_malloc(sizeof *s);
    __builtin_memset(s, 0, sizeof *s);
    d->n_series++;
  }
  if (s->metric != m) forget_near(s->near);
  s->metric = d->metric = m;
  s->next = d->first;
  return d->first = s;
}

/* ---- rows of segments ---- */

static streams_row *segment_row(const device *d, uint32_t id_len, const metric *m, int64_t number) {
  uint8_t key[KEY_MAX], *p = key;
  uint32_t head = d->prefix_len + id_len, name_len = m->wire_len - m->name_at;
  streams_copy(p, d + 1, head);
  p += head;
  *p++ = SEPARATOR;
  streams_copy(p, (const uint8_t *)(m + 1) + m->name_at, name_len);
  p += name_len;
  *p++ = SEPARATOR;
  uint64_t biased = (uint64_t)(number + (1ll << 39));
  for (int shift = 36; shift >= 0; shift -= 4) *p++ = (uint8_t)"0123456789abcdef"[biased >> shift & 15];
  return streams_find(key, (uint32_t)(p - key));
}

STREAMS_INLINE int64_t segment_number(int64_t time) {
  return time >= 0 ? time / SEGMENT_MS : -((SEGMENT_MS - 1 - time) / SEGMENT_MS);
}

STREAMS_INLINE int has_time(const near_segment *near, int64_t time) { return (uint64_t)(time - near->start) < SEGMENT_MS; }

/* Whether the device cannot have a row of the segment from `start` on, so that none need be asked for: each reading in such
 * a row has raised the watermark of the device's present life. What an earlier life left (expired, not purged yet) changes
 * nothing: its clocks are below the present life's first, and the event's clock is not below that one. */
static int is_new_segment(int64_t append_ms, const streams_row *r, int64_t start) {
  if (!r->known || r->n_cells != 1 || r->cells->expires_ms <= append_ms) return 0;
  if (((uint64_t)append_ms << 16) < r->cells->start_hlc) return 0;
  return ((const device_state *)r->cells->payload.heap)->watermark < start;
}

static streams_row *add_near(near_segment *near, const device *d, uint32_t id_len, const metric *m, int64_t time, int64_t append_ms) {
  int64_t number = segment_number(time), start = number * SEGMENT_MS;
  streams_row *row = segment_row(d, id_len, m, number);
  if (id_len && !row->known) row->known = (uint8_t)is_new_segment(append_ms, d->row, start);
  streams_hold(row);
  if (near[NEAR - 1].row) streams_let_go(near[NEAR - 1].row);
  for (uint32_t i = NEAR - 1; i > 0; i--) near[i] = near[i - 1];
  near[0] = (near_segment){start, row, 0, 0, 0};
  streams_ask(row);
  return row;
}

/* The row of a segment, asked for if need be: of the device, or with id_len 0 of its region. */
STREAMS_INLINE streams_row *near_row(near_segment *near, const device *d, uint32_t id_len, const metric *m, int64_t time, int64_t append_ms) {
  for (uint32_t i = 0; i < NEAR; i++) {
    if (!has_time(&near[i], time)) continue;
    if (!near[i].row->known) streams_ask(near[i].row);
    return near[i].row;
  }
  return add_near(near, d, id_len, m, time, append_ms);
}

/* ---- prepare ----
 *
 * A batch is folded in chunks, and a chunk device by device: a device's rows are then at hand when its readings come, which
 * matters more than anything else when many devices report in turn. Only what devices share goes by the log's order: the
 * region's rows, the outputs, the rejects. A chunk that holds anything but puts is folded in the log's order altogether.
 *
 * Readings of frames come in columns, and what they have in common is looked for once: see "readings in columns". */

enum { CHUNK = 1 << 14 };
typedef struct { int64_t append_ms, expires_ms; uint64_t clock; } moment;

/* One event. Puts: the region's row and the moment; else region 0 and why it is refused, or for a purge its row. */
typedef struct { streams_row *region; union { uint32_t moment; const char *bad; streams_row *purged; }; } logged;

/* A put that is folded: which event of the chunk, and its rows. */
typedef struct { uint32_t index; streams_row *device, *segment; } put;

/* n: its events; puts: those folded by device. Of columns: its first run, that one's moment, its first group, their number,
 * and what the times lie between. */
typedef struct {
  uint32_t first, n, puts, kind, run, moment, group, n_groups;
  int64_t from, to;
} chunk;
enum { BY_DEVICE, IN_ORDER, COLUMNS };
typedef struct { device *device; series *series; metric *metric; uint32_t group; } found_put;

static streams_row late_row = {.known = 1}; /* in a log entry: the reading was late */
/* by_id: the device of each key id of the batch, as far as it is known; NULL when the batch has none. */
static struct { logged *log; put *puts; moment *moments; chunk *chunks; device **by_id; uint32_t n_moments, n_chunks; } plan;
static found_put found[CHUNK];
static uint32_t group_sizes[CHUNK], n_groups, chunk_id;

/* The metric of a value that is not of the device's latest series; NULL: *bad says why there is none. */
static metric *other_metric(const streams_event *e, const device *d, const char **bad) {
  streams_reader in = streams_body(e);
  uint32_t len;
  const uint8_t *name = streams_read_bytes(&in, &len);
  *bad = 0;
  if (streams_schema_id(e->value, e->value_len) != READING_ID) *bad = "not a streams.Reading";
  else if (in.error) *bad = "malformed value";
  else if (d->bad) *bad = d->bad;
  else if (has_control(name, len)) *bad = "the metric holds control characters";
  else if (d->prefix_len + d->id_len + len + 12 > KEY_MAX) *bad = "the key is too long for telemetry";
  return *bad ? 0 : find_metric(e->value, (uint32_t)(name + len - e->value), (uint32_t)(name - e->value));
}

typedef struct { double value; int64_t time; } numbers;

/* The numbers of a put, after `head` bytes of its value. */
STREAMS_INLINE numbers read_numbers(const streams_batch *b, uint32_t i, streams_reader *in) {
  numbers x;
  x.value = b->typed[1] ? streams_get_f64(b->typed[1] + 8 * i) : streams_read_double(in);
  x.time = b->typed[2] ? (int64_t)streams_get64(b->typed[2] + 8 * i) : streams_read_long(in);
  return x;
}

STREAMS_INLINE numbers numbers_of(const streams_batch *b, uint32_t i) {
  streams_reader in = {0, 0, 0};
  if (!b->typed[1] || !b->typed[2]) {
    streams_event e;
    uint32_t len;
    streams_event_read(b, i, &e);
    in = streams_body(&e);
    streams_read_bytes(&in, &len);
  }
  return read_numbers(b, i, &in);
}

static uint32_t new_group(device *d) {
  streams_ask(d->row);
  d->chunk = chunk_id;
  group_sizes[n_groups] = 0;
  return d->group = n_groups++;
}

/* Whether the put will be folded; else at->bad says why it is refused. */
STREAMS_INLINE int prepare_put(const streams_batch *b, const streams_event *e, logged *at, found_put *to) {
  device **known = plan.by_id ? &plan.by_id[streams_get32(b->key_id + 4 * e->index)] : 0;
  device *d = known && *known ? *known : find_device(e->key, e->key_len);
  if (known) *known = d;
  metric *m = d->metric;
  at->region = 0;
  if (!is_metric(m, e->value, e->value_len)) {
    m = other_metric(e, d, &at->bad);
    if (!m) return 0;
    find_series(d, m);
  }
  streams_reader in = {e->value + m->wire_len, e->value + e->value_len, 0};
  numbers x = read_numbers(b, e->index, &in);
  at->bad = in.error ? "malformed value" : !(x.value - x.value == 0) ? "non-finite value"
            : x.time > TIME_MAX_MS || x.time < -TIME_MAX_MS ? "time out of range" : 0;
  if (at->bad) return 0;
  at->region = near_row(m->near, d, 0, m, x.time, 0);
  device *leader = d->leader;
  to->group = leader->chunk == chunk_id ? leader->group : new_group(leader);
  group_sizes[to->group]++;
  to->device = d;
  to->series = d->first;
  to->metric = m;
  return 1;
}

/* The moment of an event: most have that of the event before. */
STREAMS_INLINE uint32_t moment_of(const streams_event *e) {
  moment now = {e->append_ms, e->expires_ms, streams_max(e->hlc, (uint64_t)e->append_ms << 16)};
  uint32_t n = plan.n_moments;
  const moment *last = &plan.moments[n - 1];
  if (n && last->append_ms == now.append_ms && last->expires_ms == now.expires_ms && last->clock == now.clock) return n - 1;
  plan.moments[plan.n_moments++] = now;
  return n;
}

/* The puts of the chunk by device, keeping each device's order; or all by the log's order. Asks for their rows. */
STREAMS_APART static void plan_puts(const streams_batch *b, chunk *c) {
  put *puts = plan.puts + c->first;
  uint32_t at = 0, first = c->first, n = c->n, in_order = c->kind == IN_ORDER;
  for (uint32_t g = 0; g < n_groups; g++) {
    uint32_t size = group_sizes[g];
    group_sizes[g] = at;
    at += size;
  }
  c->puts = in_order ? n : at;
  for (uint32_t i = 0; i < n; i++)
    if (plan.log[first + i].region) puts[in_order ? i : group_sizes[found[i].group]++].index = i;
  for (uint32_t i = 0; i < c->puts; i++) {
    uint32_t index = in_order ? i : puts[i].index;
    const logged *e = &plan.log[first + index];
    if (!e->region) continue;
    const found_put *f = &found[index];
    series *s = f->series->metric == f->metric ? f->series : find_series(f->device, f->metric); /* it may have been made over */
    puts[i].device = f->device->row;
    puts[i].segment = near_row(s->near, f->device, f->device->id_len, f->metric, numbers_of(b, first + index).time,
                               plan.moments[e->moment].append_ms);
  }
}

STREAMS_APART static void prepare_chunk(const streams_batch *b, chunk *c) {
  if (!plan.log) {
    plan.log = streams_scratch(b->n * sizeof *plan.log);
    plan.puts = streams_scratch(b->n * sizeof *plan.puts);
    plan.by_id = streams_by_key_id(b);
  }
  n_groups = 0;
  chunk_id++;
  c->kind = BY_DEVICE;
  for (uint32_t i = 0; i < c->n; i++) {
    streams_event e;
    streams_event_read(b, c->first + i, &e);
    logged *at = &plan.log[c->first + i];
    if (e.op == STREAMS_OP_PUT) {
      if (prepare_put(b, &e, at, &found[i])) at->moment = moment_of(&e);
      continue;
    }
    c->kind = IN_ORDER;
    at->region = at->purged = 0;
    if (e.op == STREAMS_OP_PURGE && has_control(e.key, e.key_len)) { /* else of the device's own key: no row of ours */
      at->purged = streams_find(e.key, e.key_len);
      streams_ask(at->purged);
      streams_hold(at->purged);
      streams_let_go(at->purged); /* on the list, if nothing changes it */
    }
  }
  plan_puts(b, c);
}

/* ---- readings in columns ----
 *
 * When a batch holds nothing but readings whose numbers and metrics come in columns, and the frames are not small, a chunk of
 * it is some runs of events that differ in key, value and time alone. Its events are grouped by the row of their segment, and a
 * group is added to it in one go, in the log's order; so is all to the region's row. Nothing is late if the times reach no
 * further back than GRACE_MS from any watermark: then the order among a device's segments does not matter, since all that a
 * reading does to the device's row is to count its clock on, within one moment. So a chunk holds one run, or one segment of
 * one metric. Whatever else there is goes as other events do. */

enum { RUN_MIN = 64, GROUPS_AHEAD = 16 };
_Static_assert(GRACE_MS >= SEGMENT_MS, "within a segment nothing is late");

typedef struct { streams_row *device, *segment, *region; uint32_t end; } group; /* end: in `order` */

/* leaders: by key id, NULL where the key is bad. metrics: by item id; metric: the only one, if there is one only. */
static struct {
  int on;
  device **leaders;
  metric **metrics, *metric;
  group *groups;
  uint32_t *group_at, *order, n_groups;
  streams_row **regions; /* room for those of a chunk, where their events end in by_region, and these */
  uint32_t *region_ends, *by_region;
} columns;

/* The leaders of the keys of n events, at most STREAMS_AHEAD, NULL for a bad one; what is looked at is loaded ahead. */
static void find_leaders(const streams_batch *b, const uint32_t *events, uint32_t n, device **to) {
  uint32_t hashes[STREAMS_AHEAD], sum = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t len;
    const uint8_t *key = streams_event_key(b, events[i], &len);
    hashes[i] = streams_hash(key, len);
  }
  for (uint32_t i = 0; slots_cap && i < n; i++) to[i] = slots[hashes[i] & (slots_cap - 1)].device;
  for (uint32_t i = 0; slots_cap && i < n; i++) sum += to[i] ? to[i]->known + *(const uint8_t *)(to[i] + 1) : 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t len;
    const uint8_t *key = streams_event_key(b, events[i], &len);
    device *d = hashed_device(key, len, hashes[i]);
    to[i] = d->bad ? 0 : d->leader;
  }
  for (uint32_t i = 0; i < n; i++) sum += to[i] && to[i]->first ? to[i]->first->near[0].group : 0;
  streams_loaded = sum;
}

/* 0: the items are metrics of readings. */
static int find_metrics(const streams_batch *b, uint32_t ids_end) {
  uint32_t *firsts = streams_scratch(ids_end * sizeof *firsts), n = streams_first_of_ids(b->item_id[0], ids_end, b->n, firsts);
  columns.metrics = streams_scratch(ids_end * sizeof *columns.metrics);
  for (uint32_t i = 0; i < n; i++) {
    streams_event e;
    streams_event_read(b, firsts[i], &e);
    streams_reader in = streams_body(&e);
    uint32_t len;
    const uint8_t *name = streams_read_bytes(&in, &len);
    if (streams_schema_id(e.value, e.value_len) != READING_ID || in.error || has_control(name, len)) return 1;
    metric *m = find_metric(e.value, (uint32_t)(name + len - e.value), (uint32_t)(name - e.value));
    columns.metrics[streams_get32(b->item_id[0] + 4 * firsts[i])] = m;
    columns.metric = i && columns.metric != m ? 0 : m;
  }
  return 0;
}

static void open_columns(const streams_batch *b) {
  columns.on = 0;
  if (!b->item_id[0] || !b->typed[1] || !b->typed[2] || !b->runs || b->n / b->n_runs < RUN_MIN || !streams_all_puts(b)) return;
  uint32_t ids_end = streams_ids_end(b->item_id[0], b->n);
  if (!ids_end || ids_end > b->n + STREAMS_KEY_IDS_MAX || find_metrics(b, ids_end)) return;
  columns.on = 1;
  columns.n_groups = 0;
  columns.groups = streams_scratch(b->n * sizeof *columns.groups);
  columns.group_at = streams_scratch(b->n * sizeof *columns.group_at);
  columns.order = streams_scratch(b->n * sizeof *columns.order);
  columns.regions = streams_scratch(CHUNK * sizeof *columns.regions);
  columns.region_ends = streams_scratch(CHUNK * sizeof *columns.region_ends);
  columns.by_region = streams_scratch(CHUNK * sizeof *columns.by_region);
  columns.leaders = 0;
  if (!b->key_id) return;
  uint32_t *firsts = streams_scratch(b->key_ids * sizeof *firsts), n = streams_first_of_ids(b->key_id, b->key_ids, b->n, firsts);
  columns.leaders = streams_scratch(b->key_ids * sizeof *columns.leaders);
  for (uint32_t at = 0; at < n; at += STREAMS_AHEAD) {
    device *found[STREAMS_AHEAD];
    uint32_t some = n - at < STREAMS_AHEAD ? n - at : STREAMS_AHEAD;
    find_leaders(b, firsts + at, some, found);
    for (uint32_t i = 0; i < some; i++) columns.leaders[streams_get32(b->key_id + 4 * firsts[at + i])] = found[i];
  }
}

/* The device's series of a metric; NULL: keys of its rows would be too long. */
static series *series_of(device *d, metric *m) {
  if (d->prefix_len + d->id_len + (m->wire_len - m->name_at) + 12 > KEY_MAX) return 0;
  return find_series(d, m);
}

static uint32_t new_column_group(near_segment *near, device *d, metric *m, int64_t time) {
  uint32_t g = columns.n_groups++;
  if (!near->known && !(near->known = near->row->known)) streams_ask(near->row);
  if (!d->known && !(d->known = d->row->known)) streams_ask(d->row);
  near->chunk = chunk_id;
  near->group = g;
  columns.groups[g] = (group){d->row, near->row, near_row(m->near, d, 0, m, time, 0), 0};
  return g;
}

/* The segment of a time that is not the series' latest, made the latest if it is new. */
STREAMS_COLD static near_segment *other_near(series *s, const device *d, metric *m, int64_t time, int64_t append_ms) {
  for (uint32_t i = 1; i < NEAR; i++) if (has_time(&s->near[i], time)) return &s->near[i];
  add_near(s->near, d, d->id_len, m, time, append_ms);
  return s->near;
}

/* Groups the events of a run; 0: all have rows. */
STREAMS_APART static int group_run(const streams_batch *b, uint32_t first, uint32_t end, int64_t append_ms) {
  device *found[STREAMS_AHEAD];
#pragma clang loop unroll_count(2)
  for (uint32_t i = first; i < end; i++) {
    uint32_t ahead = (i - first) % STREAMS_AHEAD;
    if (!columns.leaders && !ahead) {
      uint32_t events[STREAMS_AHEAD], n = end - i < STREAMS_AHEAD ? end - i : STREAMS_AHEAD;
      for (uint32_t k = 0; k < n; k++) events[k] = i + k;
      find_leaders(b, events, n, found);
    }
    device *d = columns.leaders ? columns.leaders[streams_get32(b->key_id + 4 * i)] : found[ahead];
    metric *m = columns.metric ? columns.metric : columns.metrics[streams_get32(b->item_id[0] + 4 * i)];
    if (!d) return 1;
    series *s = d->first;
    if ((!s || s->metric != m) && !(s = series_of(d, m))) return 1;
    int64_t time = (int64_t)streams_get64(b->typed[2] + 8 * i);
    near_segment *near = has_time(s->near, time) ? s->near : other_near(s, d, m, time, append_ms);
    uint32_t g = near->chunk == chunk_id ? near->group : new_column_group(near, d, m, time);
    columns.groups[g].end++;
    columns.group_at[i] = g;
  }
  return 0;
}

STREAMS_INLINE uint32_t run_start(const streams_batch *b, uint32_t run) { return run < b->n_runs ? streams_get32(b->runs + 4 * run) : b->n; }

/* Groups the chunk's events, and lists them group by group in their order; 0: all have rows. */
static int group_chunk(const streams_batch *b, chunk *c) {
  uint32_t end = c->first + c->n, at = c->first;
  chunk_id++;
  c->moment = plan.n_moments;
  c->group = columns.n_groups;
  for (uint32_t i = c->first, run = c->run; i < end; run++) {
    uint32_t to = run_start(b, run + 1) < end ? run_start(b, run + 1) : end;
    streams_event e;
    streams_event_read(b, i, &e);
    plan.moments[plan.n_moments++] = (moment){e.append_ms, e.expires_ms, streams_max(e.hlc, (uint64_t)e.append_ms << 16)};
    if (e.expires_ms <= e.append_ms || group_run(b, i, to, e.append_ms)) return 1;
    i = to;
  }
  c->n_groups = columns.n_groups - c->group;
  for (uint32_t g = c->group; g < columns.n_groups; g++) {
    uint32_t n = columns.groups[g].end;
    columns.groups[g].end = at;
    at += n;
  }
#pragma clang loop unroll_count(4)
  for (uint32_t i = c->first; i < end; i++) columns.order[columns.groups[columns.group_at[i]].end++] = i;
  return 0;
}

/* What the times of n events lie between; 0: a number is none that is folded. */
STREAMS_APART static int scan_numbers(const streams_batch *b, uint32_t first, uint32_t n, int64_t *from, int64_t *to) {
  const uint8_t *values = b->typed[1] + 8 * first, *times = b->typed[2] + 8 * first;
  int64_t least = INT64_MAX, most = INT64_MIN, odd = 0;
  for (uint32_t i = 0; i < n; i++) {
    int64_t time = (int64_t)streams_get64(times + 8 * i);
    least = time < least ? time : least;
    most = time > most ? time : most;
    odd |= (int64_t)((streams_get64(values + 8 * i) & 0x7ff0000000000000ull) + 0x0010000000000000ull);
  }
  *from = least;
  *to = most;
  return odd >= 0 && least >= -TIME_MAX_MS && most <= TIME_MAX_MS && most - least <= GRACE_MS;
}

/* The chunk that begins with event `first`, in or at the start of run *run, which becomes that of the next chunk's. */
static chunk next_chunk(const streams_batch *b, uint32_t first, uint32_t *run) {
  chunk c = {.first = first, .n = b->n - first < CHUNK ? b->n - first : CHUNK, .kind = BY_DEVICE};
  if (!columns.on) return c;
  uint32_t end = run_start(b, *run + 1);
  c.run = *run;
  if (end - first < c.n) c.n = end - first;
  if (scan_numbers(b, first, c.n, &c.from, &c.to)) c.kind = COLUMNS;
  if (first + c.n == end) ++*run;
  if (c.kind != COLUMNS || first + c.n != end || !columns.metric) return c;
  for (int64_t segment = segment_number(c.from), from, to; segment == segment_number(c.to) && *run < b->n_runs; ++*run) {
    uint32_t n = run_start(b, *run + 1) - end;
    if (n > CHUNK - c.n || !scan_numbers(b, end, n, &from, &to) || segment_number(from) != segment || segment_number(to) != segment) break;
    c.from = from < c.from ? from : c.from;
    c.to = to > c.to ? to : c.to;
    c.n += n;
    end += n;
  }
  return c;
}

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  if (streams_batch_open(p, len, &streams_round)) return streams_answer(0, 0, -1);
  const streams_batch *b = &streams_round;
  streams_ask_begin(3 * b->n);
  open_columns(b);
  plan.log = 0;
  plan.moments = streams_scratch((b->n + b->n / CHUNK + b->n_runs + 1) * sizeof *plan.moments);
  plan.chunks = streams_scratch((b->n / CHUNK + b->n_runs + 1) * sizeof *plan.chunks);
  plan.n_moments = plan.n_chunks = 0;
  for (uint32_t at = 0, run = 0; at < b->n;) {
    chunk *c = &plan.chunks[plan.n_chunks++];
    *c = next_chunk(b, at, &run);
    if (c->kind != COLUMNS || group_chunk(b, c)) prepare_chunk(b, c);
    at += c->n;
  }
  return streams_answer_missing(p, b->n);
}

/* ---- fold ---- */

/* The row that was touched last, and at which moment. Touching it again at the same moment only moves its clock on. */
typedef struct { streams_row *row; streams_cell *cell; uint32_t moment; } latest_touch;
static latest_touch at_device, at_segment, at_region;

STREAMS_INLINE streams_cell *touch(latest_touch *t, streams_row *r, uint32_t moment_number) {
  if (t->row == r && t->moment == moment_number) {
    t->cell->last_hlc = ++r->last_hlc;
    return t->cell;
  }
  const moment *m = &plan.moments[moment_number];
  streams_cell *c = streams_touch_at(r, m->clock, m->append_ms, m->expires_ms);
  *t = (latest_touch){m->expires_ms > m->append_ms ? r : 0, c, moment_number};
  return c;
}

static void forget_touches(void) { at_device.row = at_segment.row = at_region.row = 0; }

STREAMS_INLINE void fold_into(latest_touch *t, streams_row *r, uint32_t moment_number, numbers x) {
  streams_cell *c = touch(t, r, moment_number);
  if (!c->payload.heap) c->payload.heap = (uint8_t *)new_segment(segment_number(x.time) * SEGMENT_MS);
  add_reading((segment *)c->payload.heap, x.value, x.time, bucket_of(x.value));
}

/* The device's own rows. A late reading changes its count alone, and its entry in the log says so. */
STREAMS_INLINE void fold_put(const streams_batch *b, uint32_t i, const put *at) {
  uint32_t now = plan.log[i].moment;
  numbers x = numbers_of(b, i);
  streams_cell *c = touch(&at_device, at->device, now);
  if (!c->payload.heap) c->payload.heap = (uint8_t *)new_device_state();
  device_state *d = (device_state *)c->payload.heap;
  d->appended = streams_max_i64(d->appended, plan.moments[now].append_ms);
  if (d->watermark > INT64_MIN && x.time < d->watermark - GRACE_MS) {
    d->late++;
    plan.log[i].region = &late_row;
    return;
  }
  d->watermark = streams_max_i64(d->watermark, x.time);
  highest_mark = streams_max_i64(highest_mark, x.time);
  fold_into(&at_segment, at->segment, now, x);
}

STREAMS_INLINE void fold_shared(const streams_batch *b, uint32_t i) {
  const logged *at = &plan.log[i];
  if (at->region != &late_row) {
    fold_into(&at_region, at->region, at->moment, numbers_of(b, i));
    return;
  }
  streams_event e;
  streams_event_read(b, i, &e);
  streams_output(0, e.key, e.key_len, e.value, e.value_len);
}

/* An event that is no good put; whether it is refused. */
static int fold_other(const streams_batch *b, uint32_t i) {
  const logged *at = &plan.log[i];
  streams_event e;
  streams_event_read(b, i, &e);
  if (e.op == STREAMS_OP_PUT) return streams_reject(at->bad);
  if (e.op == STREAMS_OP_PURGE) return at->purged && streams_purge(&e, at->purged);
  return e.op != STREAMS_OP_DELETE && streams_reject("unknown operation");
}

/* 0; else rows that the chunk needs are not loaded. */
STREAMS_APART static int fold_chunk(const streams_batch *b, const chunk *c, streams_reject_list *rejects) {
  put *puts = plan.puts + c->first;
  for (uint32_t i = 0; c->kind == BY_DEVICE && i < c->puts; i++) {
    if (!puts[i].device->known || !puts[i].segment->known) return 1;
    fold_put(b, c->first + puts[i].index, &puts[i]);
  }
  for (uint32_t i = 0; i < c->n; i++) {
    uint32_t at = c->first + i;
    const logged *e = &plan.log[at];
    if (e->region) {
      if (!e->region->known) return 1;
      if (c->kind == IN_ORDER) {
        if (!puts[i].device->known || !puts[i].segment->known) return 1;
        fold_put(b, at, &puts[i]);
      }
      fold_shared(b, at);
      continue;
    }
    if (!b->is_compact && b->op[at] == STREAMS_OP_PURGE && e->purged && !e->purged->known) return 1;
    if (fold_other(b, at)) streams_add_reject(rejects, at);
    forget_touches();
  }
  return 0;
}

/* ---- readings in columns ---- */

/* The row touched by n readings at one moment: each after the first only moves its clock on, since none has expired. */
STREAMS_INLINE void *touch_all(streams_row *r, const moment *m, uint32_t n) {
  streams_cell *c = streams_touch_at(r, m->clock, m->append_ms, m->expires_ms);
  c->last_hlc = r->last_hlc += n - 1;
  return &c->payload.heap;
}

STREAMS_INLINE int64_t add_all(streams_row *r, const moment *m, const readings *some) {
  segment **s = touch_all(r, m, some->n);
  if (!*s) *s = new_segment(segment_number(time_of(some, 0)) * SEGMENT_MS);
  return some->index ? add_listed(*s, some) : add_in_turn(*s, some);
}

static void fold_group(const group *g, const moment *m, const readings *some) {
  device_state **d = touch_all(g->device, m, some->n);
  if (!*d) *d = new_device_state();
  (*d)->appended = streams_max_i64((*d)->appended, m->append_ms);
  (*d)->watermark = streams_max_i64((*d)->watermark, add_all(g->segment, m, some));
}

/* The run of an event of the chunk. */
STREAMS_INLINE uint32_t run_of(const streams_batch *b, const chunk *c, uint32_t event) {
  uint32_t low = c->run, high = b->n_runs;
  if (event < run_start(b, low + 1)) return low;
  while (high - low > 1) {
    uint32_t middle = (low + high) / 2;
    if (run_start(b, middle) <= event) low = middle;
    else high = middle;
  }
  return low;
}

/* Rows of the next groups, and what of them is looked at, are loaded. */
STREAMS_APART static void groups_ahead(const group *groups, uint32_t left) {
  uint32_t n = left < GROUPS_AHEAD ? left : GROUPS_AHEAD, sum = 0;
  const segment *segments[GROUPS_AHEAD];
  const pane *panes[GROUPS_AHEAD];
  for (uint32_t i = 0; i < n; i++) {
    const streams_row *d = groups[i].device, *s = groups[i].segment;
    sum += (uint32_t)d->last_hlc + d->n_cells + d->first.cap + (uint32_t)s->last_hlc + s->n_cells + s->first.cap;
  }
  for (uint32_t i = 0; i < n; i++) {
    const streams_row *d = groups[i].device, *s = groups[i].segment;
    segments[i] = s->n_cells ? (const segment *)s->first.payload.heap : 0;
    if (d->n_cells && d->first.payload.heap) sum += (uint32_t)((const device_state *)d->first.payload.heap)->late;
  }
  for (uint32_t i = 0; i < n; i++) panes[i] = segments[i] && segments[i]->n ? &segments[i]->panes[segments[i]->n - 1] : 0;
  for (uint32_t i = 0; i < n; i++) sum += panes[i] ? (uint32_t)panes[i]->count + panes[i]->last : 0;
  for (uint32_t i = 0; i < n; i++) sum += panes[i] && panes[i]->cap ? panes[i]->many.block[panes[i]->cap - 1] : 0;
  streams_loaded = sum;
}

/* Whether one of the chunk's readings may be late: its time is too far behind a watermark of its device. */
static int may_be_late(const chunk *c) {
  if (highest_mark == INT64_MIN || c->from >= highest_mark - GRACE_MS) return 0;
  for (uint32_t g = c->group; g < c->group + c->n_groups; g++) {
    const streams_row *r = columns.groups[g].device;
    const device_state *d = r->n_cells ? (const device_state *)r->cells[0].payload.heap : 0;
    if (d && d->watermark > INT64_MIN && c->from < d->watermark - GRACE_MS) return 1;
  }
  return 0;
}

/* The region's rows: one, or several of one moment, each in the log's order. */
STREAMS_APART static void fold_regions(const streams_batch *b, const chunk *c) {
  const group *groups = columns.groups + c->group;
  readings some = {b->typed[1], b->typed[2], 0, c->first, 0};
  uint32_t n = 0, end = c->first + c->n, *ends = columns.region_ends, *order = columns.by_region, at = 0;
  streams_row **rows = columns.regions;
  for (uint32_t g = 0; g < c->n_groups; g++) {
    streams_row *r = groups[g].region;
    if (r->number < n && rows[r->number] == r) continue;
    r->number = n;
    rows[n++] = r;
  }
  if (n == 1) {
    for (uint32_t run = c->run; some.first < end; run++, some.first += some.n) {
      uint32_t to = run_start(b, run + 1) < end ? run_start(b, run + 1) : end;
      some.n = to - some.first;
      add_all(rows[0], &plan.moments[c->moment + run - c->run], &some);
    }
    return;
  }
  __builtin_memset(ends, 0, n * sizeof *ends);
  for (uint32_t i = c->first; i < end; i++) ends[columns.groups[columns.group_at[i]].region->number]++;
  for (uint32_t k = 0; k < n; k++) { at += ends[k]; ends[k] = at - ends[k]; }
  for (uint32_t i = c->first; i < end; i++) order[ends[columns.groups[columns.group_at[i]].region->number]++] = i;
  for (uint32_t k = 0; k < n; k++) {
    some.index = order + (k ? ends[k - 1] : 0);
    some.n = ends[k] - (k ? ends[k - 1] : 0);
    add_all(rows[k], &plan.moments[c->moment], &some);
  }
}

/* One by one, in the log's order. */
STREAMS_APART static void fold_columns_in_order(const streams_batch *b, const chunk *c) {
  if (!plan.log) plan.log = streams_scratch(b->n * sizeof *plan.log);
  for (uint32_t i = c->first; i < c->first + c->n; i++) {
    const group *g = &columns.groups[columns.group_at[i]];
    put at = {i, g->device, g->segment};
    plan.log[i].region = g->region;
    plan.log[i].moment = c->moment + run_of(b, c, i) - c->run;
    fold_put(b, i, &at);
    fold_shared(b, i);
  }
}

/* 0; else rows that the chunk needs are not loaded. */
STREAMS_APART static int fold_columns(const streams_batch *b, const chunk *c) {
  const group *groups = columns.groups + c->group;
  for (uint32_t g = 0; g < c->n_groups; g++)
    if (!groups[g].region->known) return 1;
  if (may_be_late(c)) {
    fold_columns_in_order(b, c);
    return 0;
  }
  forget_touches();
  for (uint32_t g = 0, at = c->first; g < c->n_groups; g++) {
    if (!(g % GROUPS_AHEAD)) groups_ahead(groups + g, c->n_groups - g);
    if (!groups[g].device->known || !groups[g].segment->known) return 1;
    for (uint32_t end = groups[g].end, to; at < end; at = to) {
      uint32_t run = run_of(b, c, columns.order[at]), next = run_start(b, run + 1);
      to = end;
      if (columns.order[end - 1] >= next) for (to = at + 1; columns.order[to] < next;) to++;
      readings some = {b->typed[1], b->typed[2], columns.order + at, 0, to - at};
      fold_group(&groups[g], &plan.moments[c->moment + run - c->run], &some);
    }
  }
  highest_mark = streams_max_i64(highest_mark, c->to);
  fold_regions(b, c);
  return 0;
}

STREAMS_EXPORT("streams_fold") streams_desc *streams_fold(const uint8_t *p, uint32_t len) {
  (void)len;
  if (!streams_is_prepared(p)) return streams_answer(0, 0, -3);
  streams_reject_list rejects = {0, 0, 0, 0};
  forget_touches();
  for (uint32_t k = 0; k < plan.n_chunks; k++) {
    const chunk *c = &plan.chunks[k];
    if (c->kind == COLUMNS ? fold_columns(&streams_round, c) : fold_chunk(&streams_round, c, &rejects)) return streams_answer(0, 0, -4);
  }
  return streams_answer_rejects(&rejects);
}
