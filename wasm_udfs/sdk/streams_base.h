/* streams_base.h: what every module needs without a libc: little endian access, copies, an allocator, hashing, Avro reading.
 *
 * Freestanding C11 for wasm32: nothing is imported. Linear memory starts zeroed and only grows; it is freed with the instance. */
#ifndef STREAMS_BASE_H
#define STREAMS_BASE_H

#include <stddef.h>
#include <stdint.h>

#define STREAMS_EXPORT(name) __attribute__((export_name(name), used))
#define STREAMS_INLINE static inline __attribute__((always_inline, unused))
#define STREAMS_COLD __attribute__((noinline, cold))
#define STREAMS_APART __attribute__((noinline)) /* hot loops in functions of their own: in a large one the engine keeps nothing in registers */
#define STREAMS_UNUSED __attribute__((unused))

/* ---- unaligned little endian access (wasm is little endian) ---- */

STREAMS_INLINE uint16_t streams_get16(const void *p) { uint16_t v; __builtin_memcpy(&v, p, 2); return v; }
STREAMS_INLINE uint32_t streams_get32(const void *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return v; }
STREAMS_INLINE uint64_t streams_get64(const void *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return v; }
STREAMS_INLINE double streams_get_f64(const void *p) { double v; __builtin_memcpy(&v, p, 8); return v; }
STREAMS_INLINE void streams_put16(void *p, uint16_t v) { __builtin_memcpy(p, &v, 2); }
STREAMS_INLINE void streams_put32(void *p, uint32_t v) { __builtin_memcpy(p, &v, 4); }
STREAMS_INLINE void streams_put64(void *p, uint64_t v) { __builtin_memcpy(p, &v, 8); }
STREAMS_INLINE void streams_put_f64(void *p, double v) { __builtin_memcpy(p, &v, 8); }
STREAMS_INLINE uint64_t streams_max(uint64_t a, uint64_t b) { return a > b ? a : b; }
STREAMS_INLINE int64_t streams_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Copies n bytes. Short copies are done inline: `memory.copy` costs a call into the runtime. */
STREAMS_INLINE void streams_copy(void *to, const void *from, uint32_t n) {
  uint8_t *d = to;
  const uint8_t *s = from;
  if (n > 256) { __builtin_memcpy(d, s, n); return; }
  while (n >= 8) { streams_put64(d, streams_get64(s)); d += 8; s += 8; n -= 8; }
  if (n & 4) { streams_put32(d, streams_get32(s)); d += 4; s += 4; }
  if (n & 2) { streams_put16(d, streams_get16(s)); d += 2; s += 2; }
  if (n & 1) *d = *s;
}

/* Zeroes n bytes, a multiple of 8, for structs: like `memory.copy`, `memory.fill` is a call into the runtime. */
STREAMS_INLINE void streams_zero(void *p, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 8) *(volatile uint64_t *)((uint8_t *)p + i) = 0;
}

/* Without a loop up to 32 bytes: the engine looks at its deadline in every round of one. */
STREAMS_INLINE int streams_equal(const void *a, const void *b, uint32_t n) {
  const uint8_t *x = a, *y = b;
#define STREAMS_DIFFER(bits, at) (streams_get##bits(x + (at)) ^ streams_get##bits(y + (at)))
  if (n >= 16) {
    for (; n > 32; n -= 16, x += 16, y += 16)
      if (STREAMS_DIFFER(64, 0) | STREAMS_DIFFER(64, 8)) return 0;
    return !(STREAMS_DIFFER(64, 0) | STREAMS_DIFFER(64, 8) | STREAMS_DIFFER(64, n - 16) | STREAMS_DIFFER(64, n - 8));
  }
  if (n >= 8) return !(STREAMS_DIFFER(64, 0) | STREAMS_DIFFER(64, n - 8));
  if (n >= 4) return !(STREAMS_DIFFER(32, 0) | STREAMS_DIFFER(32, n - 4));
  if (n >= 2) return !(STREAMS_DIFFER(16, 0) | STREAMS_DIFFER(16, n - 2));
#undef STREAMS_DIFFER
  return !n || *x == *y;
}

STREAMS_INLINE uint32_t streams_hash(const uint8_t *p, uint32_t n) {
  uint64_t h = n * 0x9E3779B97F4A7C15ull;
  while (n >= 8) { h = (h ^ streams_get64(p)) * 0xBF58476D1CE4E5B9ull; h ^= h >> 29; p += 8; n -= 8; }
  uint64_t last = 0;
  if (n & 4) { last = streams_get32(p); p += 4; }
  if (n & 2) { last = last << 16 | streams_get16(p); p += 2; }
  if (n & 1) last = last << 8 | *p;
  h = (h ^ last) * 0x94D049BB133111EBull;
  h ^= h >> 32;
  return (uint32_t)h;
}

/* ---- allocator: size classes over a bump pointer; traps when the memory limit is reached ---- */

extern uint8_t __heap_base;
#define STREAMS_CLASSES 128
static uint32_t streams_heap_top;
static uint32_t streams_heap_end;
static uint32_t streams_free_lists[STREAMS_CLASSES];

/* Rounds n up to its size class (16, 32, 48, 64, then four per power of two); the class goes to *k. */
STREAMS_INLINE uint32_t streams_class(uint32_t n, uint32_t *k) {
  if (n <= 64) {
    uint32_t steps = n ? (n + 15) / 16 : 1;
    *k = steps - 1;
    return steps * 16;
  }
  uint32_t bits = 31 - (uint32_t)__builtin_clz(n - 1); /* 2^bits <= n-1 < 2^(bits+1), bits >= 6 */
  uint32_t step = 1u << (bits - 2);
  uint32_t steps = (n - 1 - (1u << bits)) / step; /* 0..3 */
  *k = 4 + (bits - 6) * 4 + steps;
  return (1u << bits) + (steps + 1) * step;
}

STREAMS_UNUSED static void *streams_bump(uint32_t size) {
  if (!streams_heap_top) {
    streams_heap_top = ((uint32_t)(uintptr_t)&__heap_base + 15) & ~15u;
    streams_heap_end = (uint32_t)__builtin_wasm_memory_size(0) * 65536u;
  }
  if (size > streams_heap_end - streams_heap_top) {
    uint32_t pages = (size - (streams_heap_end - streams_heap_top) + 65535) / 65536;
    uint32_t wanted = pages < 16 ? 16 : pages;
    if (__builtin_wasm_memory_grow(0, wanted) == (size_t)-1) {
      if (wanted == pages || __builtin_wasm_memory_grow(0, pages) == (size_t)-1) __builtin_trap();
      wanted = pages;
    }
    streams_heap_end += wanted * 65536u;
  }
  uint32_t p = streams_heap_top;
  streams_heap_top += size;
  return (void *)(uintptr_t)p;
}

/* At least n bytes, 16-aligned, contents undefined. Never NULL: traps when memory is exhausted. */
STREAMS_UNUSED static void *streams_malloc(uint32_t n) {
  uint32_t k;
  if (n > 0x70000000u) __builtin_trap();
  uint32_t size = streams_class(n, &k);
  uint32_t p = streams_free_lists[k];
  if (p) {
    streams_free_lists[k] = streams_get32((void *)(uintptr_t)p);
    return (void *)(uintptr_t)p;
  }
  return streams_bump(size);
}

/* Gives back what streams_malloc(n) returned; n must be the same n. */
STREAMS_UNUSED static void streams_free(void *p, uint32_t n) {
  uint32_t k;
  streams_class(n, &k);
  streams_put32(p, streams_free_lists[k]);
  streams_free_lists[k] = (uint32_t)(uintptr_t)p;
}

/* ---- scratch: buffers of one round (inputs the host writes, outputs it reads), freed when the next round starts ---- */

typedef struct { uint32_t ptr, len; int32_t status; } streams_desc;
#define STREAMS_SCRATCH 64
static struct { void *p; uint32_t n; } streams_scratch_list[STREAMS_SCRATCH];
static uint32_t streams_scratch_n;
static int streams_round_over;

STREAMS_UNUSED static void *streams_scratch(uint32_t n) {
  if (streams_scratch_n == STREAMS_SCRATCH) __builtin_trap();
  void *p = streams_malloc(n);
  streams_scratch_list[streams_scratch_n].p = p;
  streams_scratch_list[streams_scratch_n++].n = n;
  return p;
}

STREAMS_UNUSED static void streams_scratch_reset(void) {
  for (uint32_t i = 0; i < streams_scratch_n; i++) streams_free(streams_scratch_list[i].p, streams_scratch_list[i].n);
  streams_scratch_n = 0;
  streams_round_over = 0;
}

/* ABI: room for an input of len bytes (16 readable bytes follow it). */
STREAMS_EXPORT("streams_alloc") STREAMS_UNUSED uint32_t streams_alloc(uint32_t len) {
  if (streams_round_over) streams_scratch_reset();
  if (len > 0x70000000u - 16) __builtin_trap();
  return (uint32_t)(uintptr_t)streams_scratch(len + 16);
}

/* ---- Avro binary reading: bounds checked, an error sticks ---- */

typedef struct { const uint8_t *p, *end; int error; } streams_reader;

STREAMS_INLINE int64_t streams_read_long(streams_reader *r) {
  uint64_t v = 0;
  for (uint32_t shift = 0; shift < 70; shift += 7) {
    if (r->p >= r->end) break;
    uint8_t b = *r->p++;
    v |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
  }
  r->error = 1;
  return 0;
}

STREAMS_INLINE double streams_read_double(streams_reader *r) {
  if (r->end - r->p < 8) { r->error = 1; return 0; }
  double v = streams_get_f64(r->p);
  r->p += 8;
  return v;
}

STREAMS_INLINE int streams_read_boolean(streams_reader *r) {
  if (r->p >= r->end) { r->error = 1; return 0; }
  return *r->p++ == 1;
}

/* The bytes of a string or bytes value; not terminated. */
STREAMS_INLINE const uint8_t *streams_read_bytes(streams_reader *r, uint32_t *len) {
  int64_t n = streams_read_long(r);
  if (n < 0 || n > r->end - r->p) { r->error = 1; n = 0; }
  const uint8_t *s = r->p;
  r->p += n;
  *len = (uint32_t)n;
  return s;
}

/* ---- Avro binary writing ---- */

STREAMS_INLINE uint8_t *streams_write_long(uint8_t *p, int64_t value) {
  uint64_t v = (uint64_t)value << 1 ^ (uint64_t)(value >> 63);
  for (; v > 0x7f; v >>= 7) *p++ = (uint8_t)(v | 0x80);
  *p++ = (uint8_t)v;
  return p;
}

STREAMS_INLINE uint32_t streams_long_size(int64_t value) {
  uint64_t v = (uint64_t)value << 1 ^ (uint64_t)(value >> 63);
  uint32_t n = 1;
  for (; v > 0x7f; v >>= 7) n++;
  return n;
}

STREAMS_INLINE uint8_t *streams_write_double(uint8_t *p, double v) { streams_put_f64(p, v); return p + 8; }

/* The prefix of the wire format: a zero byte and the schema's id, big endian. */
STREAMS_INLINE uint8_t *streams_write_prefix(uint8_t *p, uint32_t schema_id) {
  p[0] = 0;
  streams_put32(p + 1, __builtin_bswap32(schema_id));
  return p + 5;
}

/* The schema id of a value in wire format; 0 when it has no such prefix. */
STREAMS_INLINE uint32_t streams_schema_id(const uint8_t *value, uint32_t len) {
  return len < 5 || value[0] ? 0 : __builtin_bswap32(streams_get32(value + 1));
}

#endif
