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
#include "streams_rows.h"

enum { SEGMENT_S = 10, SEGMENT_MS = SEGMENT_S * 1000, SEPARATOR = 0x1f, KEY_MAX = 1024, SERIES_MAX = 16, NEAR = 2, METRIC_LISTS = 256 };
enum { DENSE_FROM = 16, DENSE_SPAN = 8 };
#define TIME_MAX_MS 253402300799999ll /* the year 9999; as far before 1970 */
#define WEIGHT_MAX (1u << 24)         /* where a bucket stops counting: sketches were floats once */
#define BUCKET_MAX (2047 * 50 + 49)   /* of all doubles, in magnitude */

/* ---- native rows ---- */

/* The buckets of a pane are kept in one of three ways: one, in the pane itself; a few, sorted, by index; many that lie close
 * together, as the weights of `cap` indices from `base` on, 0 where there is none. Rows do not show which. */
typedef struct {
  uint64_t count;
  double sum, min, max, m2;
  uint32_t n, cap; /* buckets; room in `block`, 0: it is `one` */
  union {
    struct { int32_t index; uint32_t weight; } one;
    struct { uint32_t *block; uint32_t dense; } many;
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

STREAMS_INLINE uint32_t block_bytes(uint32_t cap, uint32_t dense) { return cap * (dense ? 4 : 8); }

static void free_block(pane *p) {
  if (p->cap) streams_free(p->many.block, block_bytes(p->cap, p->many.dense));
}

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
    uint32_t cap = s->cap < 2 ? 2 : s->cap < 4 ? 4 : SEGMENT_S;
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

/* The buckets as sorted arrays; both have room for p->n. */
static void list_buckets(const pane *p, int32_t *index, uint32_t *weight) {
  if (!p->cap) {
    if (p->n) { index[0] = p->one.index; weight[0] = p->one.weight; }
  } else if (!p->many.dense) {
    __builtin_memcpy(index, p->many.block, p->n * 4);
    __builtin_memcpy(weight, p->many.block + p->cap, p->n * 4);
  } else {
    for (uint32_t i = 0, at = 0; i < p->cap; i++) {
      if (!p->many.block[i]) continue;
      index[at] = p->base + (int32_t)i;
      weight[at++] = p->many.block[i];
    }
  }
}

/* Makes room for `bucket` beside what is there, in the way that suits; nothing is added to p->n. */
static void make_room(pane *p, int32_t bucket) {
  uint32_t k, cap, n = p->n, room = n ? n * 8 : 8;
  uint32_t *block, *list = streams_malloc(room); /* before the old one is given back */
  int32_t *index = (int32_t *)list, from = bucket, to = bucket;
  list_buckets(p, index, list + n);
  if (n) {
    from = index[0] < from ? index[0] : from;
    to = index[n - 1] > to ? index[n - 1] : to;
  }
  uint32_t span = (uint32_t)(to - from) + 1, dense = n >= DENSE_FROM && span <= DENSE_SPAN * n;
  if (dense) {
    cap = streams_class((span + span / 2) * 4, &k) / 4;
    block = streams_malloc(cap * 4);
    __builtin_memset(block, 0, cap * 4);
    p->base = from - (int32_t)((cap - span) / 2);
    for (uint32_t i = 0; i < n; i++) block[index[i] - p->base] = list[n + i];
  } else {
    cap = streams_class((n < 2 ? 4 : n * 2) * 8, &k) / 8;
    block = streams_malloc(cap * 8);
    __builtin_memcpy(block, index, n * 4);
    __builtin_memcpy(block + cap, list + n, n * 4);
  }
  streams_free(list, room);
  free_block(p);
  p->many.block = block;
  p->many.dense = dense;
  p->cap = cap;
}

/* The weight of a bucket that is not there yet: 0. */
static uint32_t *add_bucket(segment *s, pane *p, int32_t bucket) {
  int inside = p->cap && p->many.dense && (uint32_t)(bucket - p->base) < p->cap;
  if (!inside && (p->cap ? p->many.dense || p->n == p->cap : p->n)) make_room(p, bucket);
  s->n_buckets++;
  uint32_t n = p->n++;
  if (!p->cap) {
    p->one.index = bucket;
    p->one.weight = 0;
    return &p->one.weight;
  }
  if (p->many.dense) return p->many.block + (bucket - p->base);
  int32_t *index = (int32_t *)p->many.block;
  uint32_t *weight = p->many.block + p->cap, at = n;
  for (; at && index[at - 1] > bucket; at--) {
    index[at] = index[at - 1];
    weight[at] = weight[at - 1];
  }
  index[at] = bucket;
  weight[at] = 0;
  return weight + at;
}

STREAMS_INLINE uint32_t *bucket_weight(segment *s, pane *p, int32_t bucket) {
  if (!p->cap) return p->n && p->one.index == bucket ? &p->one.weight : add_bucket(s, p, bucket);
  if (p->many.dense) {
    uint32_t at = (uint32_t)(bucket - p->base);
    return at < p->cap && p->many.block[at] ? p->many.block + at : add_bucket(s, p, bucket);
  }
  const int32_t *index = (const int32_t *)p->many.block, *base = index;
  for (uint32_t n = p->n; n > 1;) { /* without branches on the data */
    uint32_t half = n / 2;
    base += base[half - 1] < bucket ? half : 0;
    n -= half;
  }
  return *base == bucket ? p->many.block + p->cap + (base - index) : add_bucket(s, p, bucket);
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
  uint32_t i = 0;
  if (!p->many.dense) {
    int32_t before = before_first((int32_t)block[0]);
    for (; i < p->n; i++) to = write_bucket(to, &before, (int32_t)block[i], block[p->cap + i]);
    return to;
  }
  while (!block[i]) i++;
  int32_t before = before_first(p->base + (int32_t)i);
  for (; i < p->cap; i++) if (block[i]) to = write_bucket(to, &before, p->base + (int32_t)i, block[i]);
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

static int streams_native_read(const streams_row *r, uint8_t **native, const uint8_t *from, uint32_t len) {
  int is_device = streams_row_key((streams_row *)r)[r->key_len - 1] == SEPARATOR;
  uint32_t id = streams_schema_id(from, len);
  if (is_device ? id != DEVICE_ID : id != PANES_ID && id != SEGMENT_ID) return 1;
  streams_reader in = {from + 5, from + len, 0};
  if (!is_device) return read_segment(in, id == PANES_ID, (segment **)native);
  device_state *d = new_device_state();
  d->watermark = streams_read_long(&in);
  d->late = streams_read_long(&in);
  d->appended = streams_read_long(&in);
  *native = (uint8_t *)d;
  return in.error || in.p != in.end;
}

/* ---- devices and metrics; they stay as long as the instance lives, segments' rows may be evicted ---- */

typedef struct { int64_t start; streams_row *row; } near_segment; /* row 0: none */

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

static device *hashed_device(const uint8_t *key, uint32_t len) {
  if (slots_used * 2 >= slots_cap) grow_slots();
  uint32_t hash = streams_hash(key, len);
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
  if (!d || d->key_len != len || !streams_equal(d + 1, key, len)) d = latest->successor = hashed_device(key, len);
  return latest = d;
}

STREAMS_INLINE int is_metric(const metric *m, const uint8_t *value, uint32_t len) {
  return m && m->wire_len <= len && streams_equal(m + 1, value, m->wire_len);
}

static void forget_near(near_segment *near) {
  for (uint32_t i = 0; i < NEAR; i++) {
    if (near[i].row) streams_let_go(near[i].row);
    near[i] = (near_segment){INT64_MIN, 0};
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
  near[0] = (near_segment){start, row};
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
 * region's rows, the outputs, the rejects. A chunk that holds anything but puts is folded in the log's order altogether. */

enum { CHUNK = 1 << 14 };
typedef struct { int64_t append_ms, expires_ms; uint64_t clock; } moment;

/* One event. Puts: the region's row and the moment; else region 0 and why it is refused, or for a purge its row. */
typedef struct { streams_row *region; union { uint32_t moment; const char *bad; streams_row *purged; }; } logged;

/* A put that is folded: which event of the chunk, and its rows. */
typedef struct { uint32_t index; streams_row *device, *segment; } put;

typedef struct { uint32_t n, in_order; } chunk;
typedef struct { device *device; series *series; metric *metric; uint32_t group; } found_put;

static streams_row late_row = {.known = 1}; /* in a log entry: the reading was late */
/* by_id: the device of each key id of the batch, as far as it is known; NULL when the batch has none. */
static struct { logged *log; put *puts; moment *moments; chunk *chunks; device **by_id; uint32_t n_moments; } plan;
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
static void plan_puts(const streams_batch *b, chunk *c, uint32_t first, uint32_t n) {
  put *puts = plan.puts + first;
  uint32_t at = 0;
  for (uint32_t g = 0; g < n_groups; g++) {
    uint32_t size = group_sizes[g];
    group_sizes[g] = at;
    at += size;
  }
  c->n = c->in_order ? n : at;
  for (uint32_t i = 0; i < n; i++)
    if (plan.log[first + i].region) puts[c->in_order ? i : group_sizes[found[i].group]++].index = i;
  for (uint32_t i = 0; i < c->n; i++) {
    uint32_t index = c->in_order ? i : puts[i].index;
    const logged *e = &plan.log[first + index];
    if (!e->region) continue;
    const found_put *f = &found[index];
    series *s = f->series->metric == f->metric ? f->series : find_series(f->device, f->metric); /* it may have been made over */
    puts[i].device = f->device->row;
    puts[i].segment = near_row(s->near, f->device, f->device->id_len, f->metric, numbers_of(b, first + index).time,
                               plan.moments[e->moment].append_ms);
  }
}

static void prepare_chunk(const streams_batch *b, chunk *c, uint32_t first, uint32_t n) {
  n_groups = 0;
  chunk_id++;
  c->in_order = 0;
  for (uint32_t i = 0; i < n; i++) {
    streams_event e;
    streams_event_read(b, first + i, &e);
    logged *at = &plan.log[first + i];
    if (e.op == STREAMS_OP_PUT) {
      if (prepare_put(b, &e, at, &found[i])) at->moment = moment_of(&e);
      continue;
    }
    c->in_order = 1;
    at->region = at->purged = 0;
    if (e.op == STREAMS_OP_PURGE && has_control(e.key, e.key_len)) { /* else of the device's own key: no row of ours */
      at->purged = streams_find(e.key, e.key_len);
      streams_ask(at->purged);
      streams_hold(at->purged);
      streams_let_go(at->purged); /* on the list, if nothing changes it */
    }
  }
  plan_puts(b, c, first, n);
}

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  plan.log = streams_scratch(b.n * sizeof *plan.log);
  plan.puts = streams_scratch(b.n * sizeof *plan.puts);
  plan.moments = streams_scratch(b.n * sizeof *plan.moments);
  plan.chunks = streams_scratch((b.n / CHUNK + 1) * sizeof *plan.chunks);
  plan.by_id = streams_by_key_id(&b);
  plan.n_moments = 0;
  streams_ask_begin(3 * b.n);
  for (uint32_t at = 0; at < b.n; at += CHUNK) prepare_chunk(&b, &plan.chunks[at / CHUNK], at, b.n - at < CHUNK ? b.n - at : CHUNK);
  return streams_answer_missing(p, b.n);
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
static int fold_chunk(const streams_batch *b, const chunk *c, uint32_t first, uint32_t n, streams_reject_list *rejects) {
  put *puts = plan.puts + first;
  if (!c->in_order) {
    for (uint32_t i = 0; i < c->n; i++) {
      if (!puts[i].device->known || !puts[i].segment->known) return 1;
      fold_put(b, first + puts[i].index, &puts[i]);
    }
  }
  for (uint32_t i = 0; i < n; i++) {
    uint32_t at = first + i;
    const logged *e = &plan.log[at];
    if (e->region) {
      if (!e->region->known) return 1;
      if (c->in_order) {
        if (!puts[i].device->known || !puts[i].segment->known) return 1;
        fold_put(b, at, &puts[i]);
      }
      fold_shared(b, at);
      continue;
    }
    if (b->op[at] == STREAMS_OP_PURGE && e->purged && !e->purged->known) return 1;
    if (fold_other(b, at)) streams_add_reject(rejects, at);
    forget_touches();
  }
  return 0;
}

STREAMS_EXPORT("streams_fold") streams_desc *streams_fold(const uint8_t *p, uint32_t len) {
  streams_batch b;
  if (streams_batch_open(p, len, &b)) return streams_answer(0, 0, -1);
  if (streams_round_ptr != (uint32_t)(uintptr_t)p || streams_round_n != b.n) return streams_answer(0, 0, -3);
  streams_reject_list rejects = {0, 0, 0, 0};
  forget_touches();
  for (uint32_t at = 0; at < b.n; at += CHUNK)
    if (fold_chunk(&b, &plan.chunks[at / CHUNK], at, b.n - at < CHUNK ? b.n - at : CHUNK, &rejects)) return streams_answer(0, 0, -4);
  return streams_answer_rejects(&rejects);
}
