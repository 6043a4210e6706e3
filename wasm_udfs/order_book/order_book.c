/* order_book: order books by price and time, with an account ledger. ABI: "machine", resident, in ABI.md.
 *
 * Books, open orders and accounts stay in linear memory from batch to batch; rows are their durable form, and `streams_restore` makes
 * the one from the other. Closed orders and notes are rows only, asked for when a batch names them. Everything that decides a result is
 * in the log or in rows, and nothing depends on where a batch is cut. Prices, quantities and money are integers, never floats.
 *
 * Command, little endian: u8 1, u8 kind, u16 0, u32 n, id[16], fingerprint[16]; then
 *   ORDERS, n times: u8 op (0 place, 1 cancel, 2 replace), u8 side (0 buy, 1 sell), u8 type (0 limit, 1 market, 2 ioc, 3 fok), u8 id length,
 *     u8 symbol length, u8 account length, u8 price digits, u8 quantity digits, i64 price, i64 quantity (-1: none), id, symbol, account;
 *   SYMBOL: u8 mode (0 continuous, 1 call), u8 self-trade policy (0 newest, 1 oldest, 2 both, 3 allow), u8 1 if accounts are required,
 *     u8 tick digits, u8 lot digits, u8 symbol, u8 base, u8 quote length, i64 tick, i64 lot, symbol, base, quote;
 *   ACCOUNT: u8 id length, u8 assets, u16 0, id; per asset u8 length, name, u64 low, u64 high (of 10^-18);
 *   EXECUTE, n times: u8 maker length, u8 taker length, u8 price digits, u8 quantity digits, u32 0, i64 price, i64 quantity, maker, taker.
 *   A decimal is whole * 10^-digits and ends in no zero after the point.
 * Result: u8 code, u8 1 if told again, u16 0, u32 n, u64 offset, i64 time; n times 40 bytes: u8 outcome, u8 status, u8 price digits,
 *   u8 quantity digits, u32 trades, u64 offset of the first execution, i64 price, i64 quantity, i64 filled. EXECUTE: `trades` is the
 *   index of the one that does not hold. ACCOUNT, when it was set: its row as that left it follows.
 * Rows: 01 'm': time, commands, chain, next offset, arrivals (u64 each). 01 'n' id: note. 01 's' symbol. 01 'a' account. 01 'o' id: an
 *   open order; 01 'c' id: a closed one. A note is 80 bytes: 1, code, u16 1 if one outcome, u32 n of several, fingerprint, time, offset,
 *   the one outcome; then an account's row as it was set, or n bytes and outcomes: of each operation 0 (placed: its order's row has the
 *   first answer), an outcome that is a refusal and nothing else, or 255: its outcome is among those that follow. 01 't' symbol 00 offset part (big endian): trades. 01 'd' symbol 00 offset: levels changed. */
#include "streams_machine.h"

enum { ORDERS = 1, RESOLVE = 2, BARRIER = 3, SYMBOL = 4, ACCOUNT = 5, EXECUTE = 6 };
enum { APPLIED = 0, FAILED = 1, CANCELLED = 2, MISMATCH = 3, SPENT = 4, MALFORMED = 5, PASSED = 6 };
enum { PLACE = 0, CANCEL = 1, REPLACE = 2 };
enum { BUY = 0, SELL = 1, LIMIT = 0, MARKET = 1, IOC = 2, FOK = 3 };
enum { NEWEST = 0, OLDEST = 1, BOTH = 2, ALLOW = 3 };
enum { EMPTY = 0, OPEN = 1, PARTIAL = 2, FILLED = 3, DEAD = 4 };
enum {
  GOOD = 0, NO_SYMBOL = 1, BAD_TICK = 2, BAD_LOT = 3, TOO_LARGE = 4, NO_ACCOUNT = 5, ACCOUNT_NEEDED = 6, NO_FUNDS = 7, OTHER_CONTENT = 8,
  NO_ORDER = 9, NOT_OPEN = 10, FILLED_ALREADY = 11, CALL_TYPE = 12, FULL = 13, IN_USE = 14, CROSSED = 15, HELD = 16, NOT_HOLDING = 17
};
enum { HEAD = 40, OP = 24, NOTE = 80, META = 40, RESULT = 24, OUTCOME = 40, ORDER_HEAD = 84, HEIGHT = 12 };
enum { PART_TRADES = 4096, TAKE_BYTES = 4 << 20, NAME_MAX = 64, ASSETS_MAX = 32, POSITIONS_MAX = 1024, DIGITS = 18 };
enum { WHOLE = 255 }; /* of a note: the operation's outcome is in it */
#define WHOLE_MAX 1000000000000000000ll
#define TOTAL_MAX (1ll << 62)
#define NOTIONAL_MAX ((money)1 << 100)

typedef __int128 money;
typedef unsigned __int128 wide;
typedef struct level level;
typedef struct order order;
typedef struct account account;
typedef struct asset_ { uint32_t hash; uint8_t len, name[NAME_MAX]; } asset;

typedef struct { level *heads[HEIGHT]; int64_t total; uint32_t height; } side;
typedef struct { uint8_t *p; uint32_t n, cap; } buffer;
typedef struct { level *at; uint32_t side; int64_t key; } change; /* at: 0 once the level is gone */
typedef struct { order *bid, *ask; int64_t bid_left, ask_left; } pairing;
typedef struct { order *maker, *taker; int64_t price, quantity; } pair;

typedef struct {
  uint32_t hash, orders;
  uint8_t name_len, mode, policy, needs_account, price_digits, lot_digits, dirty, listed;
  uint8_t base_len, quote_len, base[NAME_MAX], quote[NAME_MAX], name[NAME_MAX];
  int64_t tick, lot;
  uint64_t offset, quote_unit, base_unit, walked; /* the number of the walk that `walk` is of */
  struct asset_ *base_asset, *quote_asset;
  uint32_t trades, part;
  side sides[2];
  buffer changes, made; /* of the record under way: levels changed, trades */
  pairing walk;
} book;

struct level { int64_t key, total; order *head, *tail; uint64_t mark; uint32_t height, change; level *next[]; }; /* key: ask price, or -bid price */

struct order {
  order *next, *prev;
  level *at;
  book *book;
  account *account;
  int64_t price, quantity, left, first_filled;
  uint64_t arrival, offset, print;
  int64_t placed_ms, closed_ms;
  uint32_t hash;
  uint8_t state, side, type, id_len, price_digits, quantity_digits, first_status, stored, listed, asked, altered; /* stored: 1 open row, 2 closed */
  uint8_t id[];
};


typedef struct position { struct position *next; money total, held; asset *asset; } position;
struct account { uint32_t hash, open, assets; uint8_t id_len, dirty; position *first; uint8_t id[NAME_MAX]; };
typedef struct { uint8_t *key, *row; uint32_t key_len, row_len; } made_row;
typedef struct { uint8_t id[16]; const uint8_t *row; uint32_t size, asked; uint8_t used; } note; /* asked: which of the batch's keys */

static uint64_t log_ms, commands, chain, next_offset, arrivals, record_no, walk_no;
static int64_t record_offset;
static buffer out, dirty_orders, dirty_accounts, dirty_books, listed_books, rows_made, restored_orders;
static order **batch_orders; /* of each operation of the batch, in order */
static note *notes;
static uint32_t notes_cap, take_at[4];
static uint32_t open_orders;
static int64_t *batch_counts;
static uint8_t begun;
static const uint64_t powers[DIGITS + 1] = {
  1ull, 10ull, 100ull, 1000ull, 10000ull, 100000ull, 1000000ull, 10000000ull, 100000000ull, 1000000000ull, 10000000000ull, 100000000000ull,
  1000000000000ull, 10000000000000ull, 100000000000000ull, 1000000000000000ull, 10000000000000000ull, 100000000000000000ull,
  1000000000000000000ull};

static uint8_t *room(buffer *b, uint32_t n) {
  if (n > b->cap - b->n) {
    if (b->n > 0x60000000u - n) __builtin_trap();
    uint32_t k, cap = streams_class((b->n + n) * 2 < 256 ? 256 : (b->n + n) * 2, &k);
    uint8_t *p = streams_malloc(cap);
    __builtin_memcpy(p, b->p, b->n);
    if (b->cap) streams_free(b->p, b->cap);
    b->p = p;
    b->cap = cap;
  }
  uint8_t *at = b->p + b->n;
  b->n += n;
  return at;
}

static void push(buffer *b, const void *p) { *(const void **)room(b, sizeof p) = p; }
static uint32_t count_of(const buffer *b) { return b->n / sizeof(void *); }
#define ITEM(b, type, i) (((type **)(b).p)[i])

static void put_be64(uint8_t *p, uint64_t v) { streams_put64(p, __builtin_bswap64(v)); }
static uint64_t mix(uint64_t h, uint64_t word) {
  h = (h ^ word) * 0x9E3779B97F4A7C15ull;
  return h ^ h >> 29;
}
static uint64_t mix_bytes(uint64_t h, const uint8_t *p, uint32_t n) {
  h = mix(h, n);
  for (; n >= 8; n -= 8, p += 8) h = mix(h, streams_get64(p));
  uint64_t last = 0;
  for (uint32_t i = 0; i < n; i++) last |= (uint64_t)p[i] << 8 * i;
  return mix(h, last);
}

/* ---- tables by name: open addressing, linear probing ---- */

typedef struct { uint32_t hash; void *p; } slot;
typedef struct { slot *slots; uint32_t cap, used; } table;
static table orders, books, accounts, assets;

static void put_slot(table *t, uint32_t hash, void *p) {
  uint32_t at = hash & (t->cap - 1);
  while (t->slots[at].p) at = (at + 1) & (t->cap - 1);
  t->slots[at].hash = hash;
  t->slots[at].p = p;
}

static void add(table *t, uint32_t hash, void *p) {
  if (2 * (t->used + 1) > t->cap) {
    table old = *t;
    t->cap = old.cap ? old.cap * 2 : 1024;
    t->slots = streams_malloc(t->cap * sizeof(slot));
    __builtin_memset(t->slots, 0, t->cap * sizeof(slot));
    for (uint32_t i = 0; i < old.cap; i++) if (old.slots[i].p) put_slot(t, old.slots[i].hash, old.slots[i].p);
    if (old.cap) streams_free(old.slots, old.cap * sizeof(slot));
  }
  put_slot(t, hash, p);
  t->used++;
}

static void drop(table *t, uint32_t hash, const void *p) {
  uint32_t mask = t->cap - 1, at = hash & mask;
  while (t->slots[at].p != p) at = (at + 1) & mask;
  for (uint32_t next = (at + 1) & mask; t->slots[next].p; next = (next + 1) & mask) {
    if (((next - t->slots[next].hash) & mask) < ((next - at) & mask)) continue; /* it would lie before its place */
    t->slots[at] = t->slots[next];
    at = next;
  }
  t->slots[at].p = 0;
  t->used--;
}

#define FINDER(name, type, of, len_field, id_field) \
  static type *name(const uint8_t *id, uint32_t len, uint32_t hash) { \
    if (!of.cap) return 0; \
    for (uint32_t at = hash & (of.cap - 1); of.slots[at].p; at = (at + 1) & (of.cap - 1)) { \
      type *found = of.slots[at].p; \
      if (of.slots[at].hash == hash && found->len_field == len && streams_equal(found->id_field, id, len)) return found; \
    } \
    return 0; \
  }
FINDER(find_order, order, orders, id_len, id)
FINDER(find_book, book, books, name_len, name)
FINDER(find_account, account, accounts, id_len, id)
FINDER(find_asset, asset, assets, len, name)

static order *new_order(const uint8_t *id, uint32_t len, uint32_t hash) {
  uint32_t size = sizeof(order) + len;
  order *o = streams_malloc(size);
  streams_zero(o, sizeof(order));
  o->id_len = (uint8_t)len;
  o->hash = hash;
  streams_copy(o->id, id, len);
  add(&orders, hash, o);
  return o;
}

static void free_order(order *o) {
  drop(&orders, o->hash, o);
  streams_free(o, sizeof(order) + o->id_len);
}

static void list_order(order *o) {
  if (o->listed) return;
  o->listed = 1;
  push(&dirty_orders, o);
}
static void touch_order(order *o) {
  o->altered = 1;
  list_order(o);
}
static void touch_account(account *a) {
  if (!a || a->dirty) return;
  a->dirty = 1;
  push(&dirty_accounts, a);
}
static void list_book(book *b) {
  if (b->listed) return;
  b->listed = 1;
  push(&listed_books, b);
}

/* ---- money ---- */

static wide product(uint64_t a, uint64_t b) { /* without __multi3, which is nowhere here */
  uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
  uint64_t low = al * bl, m1 = ah * bl, m2 = al * bh, mid = (low >> 32) + (uint32_t)m1 + (uint32_t)m2;
  return (wide)(ah * bh + (m1 >> 32) + (m2 >> 32) + (mid >> 32)) << 64 | (mid << 32 | (uint32_t)low);
}

/* a * b * unit; NOTIONAL_MAX + 1 when it is more than that. */
static money times(int64_t a, int64_t b, uint64_t unit) {
  wide ab = product((uint64_t)a, (uint64_t)b);
  uint64_t high = (uint64_t)(ab >> 64);
  wide low = product((uint64_t)ab, unit);
  wide top = high ? product(high, unit) : 0;
  if (top >> 40) return NOTIONAL_MAX + 1;
  wide sum = (top << 64) + low;
  return sum > (wide)NOTIONAL_MAX ? NOTIONAL_MAX + 1 : (money)sum;
}

static money cost_of(const book *b, int64_t price, int64_t quantity) { return times(price, quantity, b->quote_unit); }
static money base_of(const book *b, int64_t quantity) { return times(quantity, 1, b->base_unit); }

static asset *asset_of(const uint8_t *name, uint32_t len) {
  uint32_t hash = streams_hash(name, len);
  asset *a = find_asset(name, len, hash);
  if (a) return a;
  a = streams_malloc(sizeof(asset));
  a->hash = hash;
  a->len = (uint8_t)len;
  streams_copy(a->name, name, len);
  add(&assets, hash, a);
  return a;
}

static position *find_position(const account *a, const asset *of) {
  for (position *p = a->first; p; p = p->next) if (p->asset == of) return p;
  return 0;
}

/* Makes it if it is not there: only where the account's row is written after, so that a restored account is the same. */
static position *position_of(account *a, asset *of) {
  position *p = find_position(a, of), **end = &a->first;
  if (p) return p;
  while (*end) end = &(*end)->next;
  p = *end = streams_malloc(sizeof(position));
  p->next = 0;
  p->asset = of;
  p->total = p->held = 0;
  a->assets++;
  return p;
}

static money hold_of(const order *o, int64_t price, int64_t left) {
  return o->side == SELL ? base_of(o->book, left) : cost_of(o->book, price, left);
}
static asset *paid_with(const order *o) { return o->side == SELL ? o->book->base_asset : o->book->quote_asset; }
static position *paying(const order *o) { return position_of(o->account, paid_with(o)); }
static money free_money(const order *o) {
  position *p = find_position(o->account, paid_with(o));
  return p ? p->total - p->held : 0;
}

/* ---- levels: a skip list a side, best first ---- */

static int64_t key_of(uint32_t s, int64_t price) { return s == SELL ? price : -price; }

static level **seek(side *s, int64_t key, level ***before) {
  level **at = s->heads;
  for (uint32_t h = s->height; h--;) {
    while (at[h] && at[h]->key < key) at = at[h]->next;
    if (before) before[h] = at;
  }
  return at;
}

static level *level_for(side *s, int64_t key) {
  level *l = s->heads[0], **before[HEIGHT];
  if (l && l->key == key) return l;
  if (l && l->key < key) {
    l = seek(s, key, before)[0];
    if (l && l->key == key) return l;
  } else for (uint32_t h = 0; h < HEIGHT; h++) before[h] = s->heads;
  uint64_t dice = mix(0x5eed, (uint64_t)key);
  dice = mix(dice, dice >> 7) | 1ull << 2 * (HEIGHT - 1);
  uint32_t height = 1 + (uint32_t)__builtin_ctzll(dice) / 2;
  for (; s->height < height; s->height++) before[s->height] = s->heads;
  l = streams_malloc(sizeof(level) + height * sizeof(level *));
  l->key = key;
  l->total = 0;
  l->head = l->tail = 0;
  l->mark = 0;
  l->height = height;
  for (uint32_t h = 0; h < height; h++) {
    l->next[h] = before[h][h];
    before[h][h] = l;
  }
  return l;
}

static void drop_level(book *b, side *s, level *l) {
  level **before[HEIGHT];
  if (l->mark == record_no) ((change *)(b->changes.p + l->change))->at = 0;
  if (s->heads[0] == l) for (uint32_t h = 0; h < l->height; h++) s->heads[h] = l->next[h];
  else {
    seek(s, l->key, before);
    for (uint32_t h = 0; h < l->height; h++) before[h][h] = l->next[h];
  }
  streams_free(l, sizeof(level) + l->height * sizeof(level *));
}

static void changed(book *b, uint32_t s, level *l) {
  if (l->mark == record_no) return;
  l->mark = record_no;
  l->change = b->changes.n;
  change *c = (change *)room(&b->changes, sizeof(change));
  c->side = s;
  c->at = l;
  c->key = l->key;
  list_book(b);
}

static void link(order *o) {
  book *b = o->book;
  side *s = &b->sides[o->side];
  level *l = level_for(s, key_of(o->side, o->price));
  changed(b, o->side, l);
  o->at = l;
  o->prev = l->tail;
  o->next = 0;
  if (l->tail) l->tail->next = o;
  else l->head = o;
  l->tail = o;
  l->total += o->left;
  s->total += o->left;
}

static void unlink(order *o) {
  level *l = o->at;
  side *s = &o->book->sides[o->side];
  changed(o->book, o->side, l);
  if (o->prev) o->prev->next = o->next;
  else l->head = o->next;
  if (o->next) o->next->prev = o->prev;
  else l->tail = o->prev;
  l->total -= o->left;
  s->total -= o->left;
  o->at = 0;
  if (!l->head) drop_level(o->book, s, l);
}

/* ---- orders ---- */

static uint8_t status_of(const order *o) { return o->state == OPEN && o->left < o->quantity ? PARTIAL : o->state; }

static void close_order(order *o, uint8_t state) {
  if (o->account && o->left && !(o->type == MARKET && o->side == BUY)) {
    paying(o)->held -= hold_of(o, o->price, o->left);
    touch_account(o->account);
  }
  if (o->at) unlink(o);
  if (o->state == OPEN) {
    o->book->orders--;
    open_orders--;
    if (o->account) o->account->open--;
  }
  o->state = state;
  o->closed_ms = (int64_t)log_ms;
  touch_order(o);
}

static void flush_part(book *b);

static void settle(const book *b, const order *o, int64_t price, int64_t quantity) {
  account *a = o->account;
  if (!a) return;
  money cost = cost_of(b, price, quantity), base = base_of(b, quantity);
  position *quote = position_of(a, b->quote_asset), *stock = position_of(a, b->base_asset);
  if (o->side == BUY) {
    quote->total -= cost;
    quote->held -= o->type == MARKET ? cost : cost_of(b, o->price, quantity);
    stock->total += base;
  } else {
    stock->total -= base;
    stock->held -= base;
    quote->total += cost;
  }
  touch_account(a);
}

static void trade(book *b, order *maker, order *taker, int64_t price, int64_t quantity) {
  settle(b, maker, price, quantity);
  settle(b, taker, price, quantity);
  uint32_t m = maker->id_len, t = taker->id_len;
  if (b->trades == PART_TRADES) flush_part(b);
  uint8_t *p = room(&b->made, 20 + m + t);
  streams_put64(p, (uint64_t)price);
  streams_put64(p + 8, (uint64_t)quantity);
  p[16] = (uint8_t)m;
  p[17] = (uint8_t)t;
  p[18] = taker->side;
  p[19] = 0;
  streams_copy(p + 20, maker->id, m);
  streams_copy(p + 20 + m, taker->id, t);
  b->trades++;
  list_book(b);
  chain = mix(mix(mix(chain, (uint64_t)price), (uint64_t)quantity), maker->print ^ taker->print);
  order *both[2] = {maker, taker};
  for (uint32_t i = 0; i < 2; i++) {
    order *o = both[i];
    if (o->at) {
      changed(b, o->side, o->at);
      o->at->total -= quantity;
      b->sides[o->side].total -= quantity;
    }
    o->left -= quantity;
    touch_order(o);
    if (!o->left && o->at) close_order(o, FILLED);
  }
}

static int64_t limit_of(const order *t) { return t->type == MARKET ? INT64_MAX : t->side == BUY ? t->price : -t->price; }
static int is_own(const order *t, const order *m, const book *b) { return t->account && m->account == t->account && b->policy != ALLOW; }

/* How much of an order would be filled now, and for how much in all. */
static int64_t fillable(const order *t, book *b, money *cost) {
  int64_t limit = limit_of(t), left = t->left;
  int by_order = t->account && t->account->open && b->policy != ALLOW;
  *cost = 0;
  for (level *l = b->sides[!t->side].heads[0]; l && left && l->key <= limit; l = l->next[0]) {
    int64_t found = l->total, price = t->side == BUY ? l->key : -l->key;
    int stop = 0;
    if (by_order) {
      found = 0;
      for (order *m = l->head; m && found < left && !stop; m = m->next) {
        if (!is_own(t, m, b)) found += m->left;
        else stop = b->policy != OLDEST;
      }
    }
    if (found > left) found = left;
    left -= found;
    *cost += cost_of(b, price, found);
    if (stop) break;
  }
  return t->left - left;
}

/* Trades with what crosses; whether the rest of the order lives on. */
static int match(order *t, book *b) {
  int64_t limit = limit_of(t);
  side *s = &b->sides[!t->side];
  while (t->left) {
    level *l = s->heads[0];
    if (!l || l->key > limit) return 1;
    order *m = l->head;
    if (is_own(t, m, b)) {
      if (b->policy != NEWEST) close_order(m, DEAD);
      if (b->policy != OLDEST) return 0;
      continue;
    }
    trade(b, m, t, m->price, m->left < t->left ? m->left : t->left);
  }
  return 1;
}

/* A decimal in units of the symbol's own digits; GOOD, or what is wrong with it. */
static uint32_t scaled(int64_t whole, uint32_t digits, int64_t step, uint32_t own_digits, uint32_t wrong, int64_t *found) {
  if (digits > own_digits) return wrong;
  if (digits < own_digits) {
    uint64_t power = powers[own_digits - digits];
    if ((uint64_t)whole > WHOLE_MAX / power) return TOO_LARGE;
    whole *= (int64_t)power;
  }
  if (whole > WHOLE_MAX) return TOO_LARGE;
  if (step != 1 && whole % step) return wrong;
  *found = whole;
  return GOOD;
}

typedef struct {
  uint32_t op, side, type, id_len, symbol_len, account_len, price_digits, quantity_digits, size;
  int64_t price, quantity;
  const uint8_t *id, *symbol, *account, *raw;
} operation;

static int read_operation(const uint8_t **p, const uint8_t *end, operation *o) {
  const uint8_t *c = *p;
  if (end - c < OP) return 0;
  o->op = c[0]; o->side = c[1]; o->type = c[2]; o->id_len = c[3]; o->symbol_len = c[4]; o->account_len = c[5];
  o->price_digits = c[6]; o->quantity_digits = c[7];
  o->price = (int64_t)streams_get64(c + 8);
  o->quantity = (int64_t)streams_get64(c + 16);
  o->raw = c;
  o->id = c + OP;
  o->symbol = o->id + o->id_len;
  o->account = o->symbol + o->symbol_len;
  o->size = OP + o->id_len + o->symbol_len + o->account_len;
  if (o->op > REPLACE || o->side > SELL || o->type > FOK || !o->id_len || o->id_len > NAME_MAX || o->symbol_len > NAME_MAX ||
      o->account_len > NAME_MAX || o->price_digits > DIGITS || o->quantity_digits > DIGITS || o->size > (uint32_t)(end - c) ||
      o->price > WHOLE_MAX || o->quantity > WHOLE_MAX) return 0;
  if (o->op == PLACE && (!o->symbol_len || o->quantity <= 0 || (o->type == MARKET ? o->price != -1 : o->price <= 0))) return 0;
  if (o->op == REPLACE && (o->price == 0 || o->quantity == 0)) return 0;
  *p = c + o->size;
  return 1;
}

typedef struct { uint32_t outcome, status, price_digits, quantity_digits, trades; uint64_t offset; int64_t price, quantity, filled; } outcome;

static void tell(outcome *r, const order *o) {
  r->status = status_of(o);
  r->price_digits = o->price_digits;
  r->quantity_digits = o->quantity_digits;
  r->price = o->price;
  r->quantity = o->quantity;
  r->filled = o->quantity - o->left;
}

static uint32_t checked(const book *b, uint32_t type, int64_t price, int64_t quantity) {
  if (b->sides[0].total > TOTAL_MAX - quantity || b->sides[1].total > TOTAL_MAX - quantity) return TOO_LARGE;
  if (base_of(b, quantity) > NOTIONAL_MAX) return TOO_LARGE;
  return type != MARKET && cost_of(b, price, quantity) > NOTIONAL_MAX ? TOO_LARGE : GOOD;
}

static void arrive(order *o, book *b) {
  int lives = b->mode || match(o, b);
  if (!o->left) close_order(o, FILLED);
  else if (o->type == LIMIT && lives) link(o);
  else close_order(o, DEAD);
}

/* What placing an order answered first. */
static void tell_first(const operation *p, const order *o, outcome *r) {
  tell(r, o);
  r->status = o->first_status;
  r->filled = o->first_filled;
  r->price = p->price; /* as asked for; a later replace does not change the first answer */
  r->quantity = p->quantity;
  r->price_digits = p->price_digits;
  r->quantity_digits = p->quantity_digits;
  int64_t same;
  if (!scaled(p->quantity, p->quantity_digits, 1, o->quantity_digits, 1, &same)) r->quantity = same, r->quantity_digits = o->quantity_digits;
  if (p->price > 0 && !scaled(p->price, p->price_digits, 1, o->price_digits, 1, &same)) r->price = same, r->price_digits = o->price_digits;
  if (p->type == MARKET) r->price = 0, r->price_digits = o->price_digits;
  r->offset = o->offset;
}

static uint32_t place(const operation *p, order *o, outcome *r) {
  uint64_t print = mix_bytes(mix_bytes(0, p->raw + 1, OP - 1), p->symbol, p->symbol_len + p->account_len);
  if (o->state && !(o->state != OPEN && o->closed_ms + SPENT_MS <= (int64_t)log_ms)) {
    if (o->print != print) return OTHER_CONTENT;
    tell_first(p, o, r);
    return GOOD;
  }
  static book *last;
  book *b = last && last->name_len == p->symbol_len && streams_equal(last->name, p->symbol, p->symbol_len)
                ? last : find_book(p->symbol, p->symbol_len, streams_hash(p->symbol, p->symbol_len));
  if (!b) return NO_SYMBOL;
  last = b;
  int64_t price = 0, quantity = 0;
  uint32_t wrong = scaled(p->quantity, p->quantity_digits, b->lot, b->lot_digits, BAD_LOT, &quantity);
  if (!wrong && p->type != MARKET) wrong = scaled(p->price, p->price_digits, b->tick, b->price_digits, BAD_TICK, &price);
  if (!wrong) wrong = checked(b, p->type, price, quantity);
  if (wrong) return wrong;
  if (b->mode && p->type != LIMIT) return CALL_TYPE;
  account *a = 0;
  if (p->account_len) {
    a = find_account(p->account, p->account_len, streams_hash(p->account, p->account_len));
    if (!a) return NO_ACCOUNT;
  } else if (b->needs_account) return ACCOUNT_NEEDED;
  if (open_orders >= OPEN_MAX && p->type == LIMIT) return FULL;
  o->state = EMPTY; /* until it is certain */
  o->book = b;
  o->account = a;
  o->price = price;
  o->quantity = o->left = quantity;
  o->side = (uint8_t)p->side;
  o->type = (uint8_t)p->type;
  o->price_digits = b->price_digits;
  o->quantity_digits = b->lot_digits;
  money cost = 0;
  int64_t can = p->type == FOK || (a && p->type == MARKET && p->side == BUY) ? fillable(o, b, &cost) : quantity;
  if (a) {
    money hold = p->type == MARKET && p->side == BUY ? cost : hold_of(o, price, quantity);
    if (hold > NOTIONAL_MAX) return TOO_LARGE; /* a market order's cost is counted no further than that */
    if (hold > free_money(o)) return NO_FUNDS;
    paying(o)->held += hold;
    a->open++;
    touch_account(a);
  }
  o->arrival = ++arrivals;
  o->offset = (uint64_t)record_offset;
  o->print = print;
  o->placed_ms = (int64_t)log_ms;
  o->closed_ms = 0;
  o->state = OPEN;
  b->orders++;
  open_orders++;
  touch_order(o);
  if (p->type == FOK && can < quantity) close_order(o, DEAD);
  else arrive(o, b);
  tell(r, o);
  o->first_status = (uint8_t)r->status;
  o->first_filled = r->filled;
  return GOOD;
}

static int known(const order *o) { return o->state && (o->state == OPEN || o->closed_ms + SPENT_MS > (int64_t)log_ms); }

static uint32_t cancel(order *o, outcome *r) {
  if (!known(o)) return NO_ORDER;
  if (o->state == OPEN) close_order(o, DEAD);
  else {
    tell(r, o);
    return NOT_OPEN;
  }
  tell(r, o);
  return GOOD;
}

static uint32_t replace(const operation *p, order *o, outcome *r) {
  if (!known(o)) return NO_ORDER;
  tell(r, o);
  if (o->state != OPEN) return NOT_OPEN;
  book *b = o->book;
  int64_t price = o->price, quantity = o->quantity, filled = o->quantity - o->left;
  uint32_t wrong = GOOD;
  if (p->quantity > 0) wrong = scaled(p->quantity, p->quantity_digits, b->lot, b->lot_digits, BAD_LOT, &quantity);
  if (!wrong && p->price > 0) wrong = scaled(p->price, p->price_digits, b->tick, b->price_digits, BAD_TICK, &price);
  if (!wrong) wrong = checked(b, LIMIT, price, quantity);
  if (wrong) return wrong;
  if (quantity <= filled) return FILLED_ALREADY;
  int64_t left = quantity - filled;
  if (o->account) {
    money more = hold_of(o, price, left) - hold_of(o, o->price, o->left);
    if (more > free_money(o)) return NO_FUNDS;
    paying(o)->held += more;
    touch_account(o->account);
  }
  touch_order(o);
  if (price == o->price && quantity <= o->quantity) {
    changed(b, o->side, o->at);
    o->at->total -= o->left - left;
    b->sides[o->side].total -= o->left - left;
    o->quantity = quantity;
    o->left = left;
  } else {
    unlink(o);
    o->price = price;
    o->quantity = quantity;
    o->left = left;
    o->arrival = ++arrivals;
    arrive(o, b);
  }
  tell(r, o);
  return GOOD;
}

/* ---- call books: bids and asks are paired best first; the earlier of the two is the maker, at its price ---- */

static order *after(order *o) {
  if (o->next) return o->next;
  return o->at->next[0] ? o->at->next[0]->head : 0;
}
static order *first(side *s) { return s->heads[0] ? s->heads[0]->head : 0; }

static void begin_pairs(book *b) {
  pairing *w = &b->walk;
  w->bid = first(&b->sides[BUY]);
  w->ask = first(&b->sides[SELL]);
  w->bid_left = w->bid ? w->bid->left : 0;
  w->ask_left = w->ask ? w->ask->left : 0;
}

static void advance(order **o, int64_t *left) {
  *o = after(*o);
  *left = *o ? (*o)->left : 0;
}

static int next_pair(book *b, pair *found) {
  pairing *w = &b->walk;
  for (;;) {
    if (!w->bid || !w->ask || w->ask->price > w->bid->price) return 0;
    int bid_first = w->bid->arrival < w->ask->arrival;
    if (!is_own(w->bid, w->ask, b)) {
      found->maker = bid_first ? w->bid : w->ask;
      found->taker = bid_first ? w->ask : w->bid;
      found->price = found->maker->price;
      int64_t q = found->quantity = w->bid_left < w->ask_left ? w->bid_left : w->ask_left;
      if (!(w->bid_left -= q)) advance(&w->bid, &w->bid_left);
      if (!(w->ask_left -= q)) advance(&w->ask, &w->ask_left);
      return 1;
    }
    if (bid_first) advance(&w->ask, &w->ask_left); /* the later of an account's own two is passed over */
    else advance(&w->bid, &w->bid_left);
  }
}

typedef struct { uint32_t maker_len, taker_len; int64_t price, quantity; const uint8_t *raw, *maker, *taker; } deal;

static int read_deal(const uint8_t **p, const uint8_t *end, deal *d) {
  const uint8_t *c = *p;
  if (end - c < 24) return 0;
  d->raw = c;
  d->maker_len = c[0];
  d->taker_len = c[1];
  d->price = (int64_t)streams_get64(c + 8);
  d->quantity = (int64_t)streams_get64(c + 16);
  d->maker = c + 24;
  d->taker = d->maker + d->maker_len;
  if (!d->maker_len || !d->taker_len || c[2] > DIGITS || c[3] > DIGITS || d->price <= 0 || d->price > WHOLE_MAX || d->quantity <= 0 ||
      d->quantity > WHOLE_MAX || 24 + d->maker_len + d->taker_len > (uint32_t)(end - c)) return 0;
  *p = d->taker + d->taker_len;
  return 1;
}

static int same_decimal(int64_t whole, uint32_t digits, int64_t own, uint32_t own_digits) {
  int64_t found;
  return !scaled(whole, digits, 1, own_digits, 1, &found) && found == own;
}

static uint32_t execute(const uint8_t *c, const uint8_t *end, uint32_t n, outcome *r) {
  pair *pairs = streams_malloc(n * sizeof(pair) + 1);
  uint32_t code = GOOD, i = 0;
  walk_no++;
  for (deal d; i < n && !code; i++) {
    read_deal(&c, end, &d);
    order *m = find_order(d.maker, d.maker_len, streams_hash(d.maker, d.maker_len));
    book *b = m && m->state == OPEN ? m->book : 0;
    if (b && b->mode && b->walked != walk_no) {
      b->walked = walk_no;
      begin_pairs(b);
    }
    pair *p = &pairs[i];
    if (!b || !b->mode || !next_pair(b, p) || p->maker != m || p->taker->id_len != d.taker_len ||
        !streams_equal(p->taker->id, d.taker, d.taker_len) || !same_decimal(d.price, d.raw[2], p->price, b->price_digits) ||
        !same_decimal(d.quantity, d.raw[3], p->quantity, b->lot_digits)) {
      code = NOT_HOLDING;
      r->trades = i;
    }
  }
  for (i = 0; i < n && !code; i++) trade(pairs[i].maker->book, pairs[i].maker, pairs[i].taker, pairs[i].price, pairs[i].quantity);
  if (!code) r->trades = n;
  streams_free(pairs, n * sizeof(pair) + 1);
  return code;
}

/* ---- symbols and accounts ---- */

static void set_units(book *b) {
  b->quote_unit = powers[DIGITS - b->price_digits - b->lot_digits];
  b->base_unit = powers[DIGITS - b->lot_digits];
  b->base_asset = asset_of(b->base, b->base_len);
  b->quote_asset = asset_of(b->quote, b->quote_len);
}

static int good_symbol(const uint8_t *c, const uint8_t *end) {
  if (end - c < 24 || c[0] > 1 || c[1] > ALLOW || c[2] > 1 || (uint32_t)c[3] + c[4] > DIGITS) return 0;
  for (uint32_t i = 5; i < 8; i++) if (!c[i] || c[i] > NAME_MAX) return 0;
  int64_t tick = (int64_t)streams_get64(c + 8), lot = (int64_t)streams_get64(c + 16);
  return tick > 0 && lot > 0 && tick <= WHOLE_MAX && lot <= WHOLE_MAX && end - c == 24 + c[5] + c[6] + c[7];
}

static book *book_of(const uint8_t *c) { /* a symbol as a command has it; made if it is not there */
  const uint8_t *name = c + 24;
  uint32_t hash = streams_hash(name, c[5]);
  book *b = find_book(name, c[5], hash);
  if (!b) {
    b = streams_malloc(sizeof(book));
    __builtin_memset(b, 0, sizeof(book));
    b->hash = hash;
    b->name_len = c[5];
    streams_copy(b->name, name, c[5]);
    add(&books, hash, b);
  }
  return b;
}

static void define(book *b, const uint8_t *c) {
  b->mode = c[0]; b->policy = c[1]; b->needs_account = c[2]; b->price_digits = c[3]; b->lot_digits = c[4];
  b->tick = (int64_t)streams_get64(c + 8);
  b->lot = (int64_t)streams_get64(c + 16);
  b->base_len = c[6];
  b->quote_len = c[7];
  streams_copy(b->base, c + 24 + c[5], c[6]);
  streams_copy(b->quote, c + 24 + c[5] + c[6], c[7]);
  set_units(b);
}

static uint32_t set_symbol(const uint8_t *c, outcome *r) {
  const uint8_t *base = c + 24 + c[5], *quote = base + c[6];
  book *b = find_book(c + 24, c[5], streams_hash(c + 24, c[5]));
  if (!b && books.used >= SYMBOLS_MAX) return FULL;
  if (b && b->orders) {
    int same = b->price_digits == c[3] && b->lot_digits == c[4] && b->tick == (int64_t)streams_get64(c + 8) &&
               b->lot == (int64_t)streams_get64(c + 16) && b->base_len == c[6] && b->quote_len == c[7] &&
               streams_equal(b->base, base, c[6]) && streams_equal(b->quote, quote, c[7]) && b->needs_account == c[2];
    if (!same) return IN_USE;
    order *bid = first(&b->sides[BUY]), *ask = first(&b->sides[SELL]);
    if (b->mode && !c[0] && bid && ask && bid->price >= ask->price) return CROSSED;
  }
  b = book_of(c);
  define(b, c);
  b->offset = r->offset;
  if (!b->dirty) {
    b->dirty = 1;
    push(&dirty_books, b);
  }
  return GOOD;
}

static int good_account(const uint8_t *c, const uint8_t *end) {
  if (end - c < 4 || !c[0] || c[0] > NAME_MAX || c[1] > ASSETS_MAX || end - c < 4 + c[0]) return 0;
  uint32_t n = c[1];
  c += 4 + c[0];
  for (; n; n--) {
    if (c == end || !c[0] || c[0] > NAME_MAX || end - c < 17 + c[0]) return 0;
    if (streams_get64(c + 9 + c[0]) >> 46) return 0; /* 2^110: a thousand million million units */
    c += 17 + c[0];
  }
  return c == end;
}

static money money_at(const uint8_t *p) { return (money)((wide)streams_get64(p + 8) << 64 | streams_get64(p)); }

static account *account_for(const uint8_t *id, uint32_t len) {
  uint32_t hash = streams_hash(id, len);
  account *a = find_account(id, len, hash);
  if (a) return a;
  a = streams_malloc(sizeof(account));
  __builtin_memset(a, 0, sizeof(account));
  a->hash = hash;
  a->id_len = (uint8_t)len;
  streams_copy(a->id, id, len);
  add(&accounts, hash, a);
  return a;
}

static uint32_t set_account(const uint8_t *c, outcome *r) {
  const uint8_t *at = c + 4 + c[0];
  account *a = find_account(c + 4, c[0], streams_hash(c + 4, c[0]));
  if (!a && accounts.used >= ACCOUNTS_MAX) return FULL;
  uint32_t known_assets = a ? a->assets : 0;
  for (uint32_t i = 0; i < c[1]; i++, at += 17 + at[0]) {
    position *p = a ? find_position(a, asset_of(at + 1, at[0])) : 0;
    r->trades = i;
    if (p && money_at(at + 1 + at[0]) < p->held) return HELD;
    if (!p && ++known_assets > POSITIONS_MAX) return FULL;
  }
  r->trades = 0;
  a = account_for(c + 4, c[0]);
  at = c + 4 + c[0];
  for (uint32_t i = 0; i < c[1]; i++, at += 17 + at[0]) position_of(a, asset_of(at + 1, at[0]))->total = money_at(at + 1 + at[0]);
  touch_account(a);
  return GOOD;
}

/* ---- rows ---- */

static uint32_t account_size(const account *a) {
  uint32_t size = 8;
  for (position *p = a->first; p; p = p->next) size += 33 + p->asset->len;
  return size;
}

static void write_account(const account *a, uint8_t *r) {
  streams_put64(r, a->assets);
  r += 8;
  for (position *p = a->first; p; p = p->next) {
    const asset *of = p->asset;
    r[0] = of->len;
    streams_copy(r + 1, of->name, of->len);
    streams_put64(r + 1 + of->len, (uint64_t)p->total);
    streams_put64(r + 9 + of->len, (uint64_t)((wide)p->total >> 64));
    streams_put64(r + 17 + of->len, (uint64_t)p->held);
    streams_put64(r + 25 + of->len, (uint64_t)((wide)p->held >> 64));
    r += 33 + of->len;
  }
}

static made_row *new_row(uint32_t key_len, uint32_t row_len) {
  uint8_t *both = streams_malloc(sizeof(made_row) + key_len + row_len);
  made_row *m = (made_row *)both;
  m->key = both + sizeof(made_row);
  m->row = m->key + key_len;
  m->key_len = key_len;
  m->row_len = row_len;
  push(&rows_made, m);
  return m;
}

static uint8_t *feed_key(uint8_t *k, uint8_t kind, const book *b) {
  k[0] = 1;
  k[1] = kind;
  streams_copy(k + 2, b->name, b->name_len);
  k[2 + b->name_len] = 0;
  put_be64(k + 3 + b->name_len, (uint64_t)record_offset);
  return k + 11 + b->name_len;
}

static void feed_head(uint8_t *row, const book *b, uint32_t n) {
  row[0] = 1;
  row[1] = b->price_digits;
  row[2] = b->lot_digits;
  row[3] = 0;
  streams_put32(row + 4, n);
  streams_put64(row + 8, log_ms);
}

static void flush_part(book *b) {
  if (!b->trades) return;
  made_row *m = new_row(15 + b->name_len, 16 + b->made.n);
  streams_put32(feed_key(m->key, 't', b), __builtin_bswap32(b->part));
  feed_head(m->row, b, b->trades);
  __builtin_memcpy(m->row + 16, b->made.p, b->made.n);
  b->made.n = b->trades = 0;
  b->part++;
}

static void end_record(void) {
  for (uint32_t i = 0; i < count_of(&listed_books); i++) {
    book *b = ITEM(listed_books, book, i);
    flush_part(b);
    uint32_t n = b->changes.n / sizeof(change);
    made_row *m = new_row(11 + b->name_len, 16 + 17 * n);
    feed_key(m->key, 'd', b);
    feed_head(m->row, b, n);
    uint8_t *p = m->row + 16;
    for (change *c = (change *)b->changes.p; n; n--, c++, p += 17) {
      p[0] = (uint8_t)c->side;
      streams_put64(p + 1, (uint64_t)(c->side == SELL ? c->key : -c->key));
      streams_put64(p + 9, c->at ? (uint64_t)c->at->total : 0);
    }
    b->changes.n = b->part = 0;
    b->listed = 0;
  }
  listed_books.n = 0;
}

/* How many operations a command has; -1 when it is malformed. */
static int64_t well_formed(const uint8_t *c, uint32_t len) {
  if (len < HEAD || c[0] != 1 || !c[1] || c[1] > EXECUTE || streams_get16(c + 2)) return -1;
  uint32_t n = streams_get32(c + 4);
  const uint8_t *p = c + HEAD, *end = c + len;
  if (c[1] == RESOLVE || c[1] == BARRIER) return n || p != end ? -1 : 0;
  if (c[1] == SYMBOL) return n == 1 && good_symbol(p, end) ? 0 : -1;
  if (c[1] == ACCOUNT) return n == 1 && good_account(p, end) ? 0 : -1;
  operation o;
  deal d;
  if (!n || n > len / OP) return -1;
  for (uint32_t i = 0; i < n; i++) if (!(c[1] == ORDERS ? read_operation(&p, end, &o) : read_deal(&p, end, &d))) return -1;
  return p != end ? -1 : c[1] == ORDERS ? n : 0;
}

static note *note_of(const uint8_t *id) {
  uint32_t at = streams_hash(id, 16) & (notes_cap - 1);
  while (notes[at].used) {
    if (streams_equal(notes[at].id, id, 16)) return &notes[at];
    at = (at + 1) & (notes_cap - 1);
  }
  notes[at].used = 1;
  streams_copy(notes[at].id, id, 16);
  return &notes[at];
}

/* How long the note of a command may be: a RESOLVE needs no more than its head, whatever it resolves. */
static uint32_t note_most(uint8_t kind, int64_t operations) {
  if (kind == ACCOUNT) return NOTE + 8 + POSITIONS_MAX * (33 + NAME_MAX);
  return kind == ORDERS && operations > 1 ? NOTE + (1 + OUTCOME) * (uint32_t)operations : NOTE;
}

/* What the batch before left: closed orders and such as were only asked about go, their rows have been taken. */
static void forget(void) {
  for (uint32_t i = 0; i < count_of(&dirty_orders); i++) {
    order *o = ITEM(dirty_orders, order, i);
    o->listed = o->asked = o->altered = 0;
    if (o->state != OPEN) free_order(o);
    else o->stored = 1;
  }
  for (uint32_t i = 0; i < count_of(&dirty_accounts); i++) ITEM(dirty_accounts, account, i)->dirty = 0;
  for (uint32_t i = 0; i < count_of(&dirty_books); i++) ITEM(dirty_books, book, i)->dirty = 0;
  for (uint32_t i = 0; i < count_of(&rows_made); i++) {
    made_row *m = ITEM(rows_made, made_row, i);
    streams_free(m, sizeof(made_row) + m->key_len + m->row_len);
  }
  dirty_orders.n = dirty_accounts.n = dirty_books.n = rows_made.n = 0;
  take_at[0] = take_at[1] = take_at[2] = take_at[3] = 0;
}

STREAMS_EXPORT("streams_resident_v1") int32_t streams_resident_v1(void) { return 1; }

STREAMS_EXPORT("streams_prepare") streams_desc *streams_prepare(const uint8_t *p, uint32_t len) {
  if (!machine_batch(p, len)) return answered(0, 0, -1);
  uint32_t n = batch_n;
  forget();
  uint32_t operations = 0, size;
  int64_t *counts = batch_counts = streams_scratch(n * sizeof *counts);
  for (uint32_t i = 0; i < n; i++) {
    const uint8_t *c = command(i, &size);
    counts[i] = well_formed(c, size);
    if (counts[i] > 0) operations += (uint32_t)counts[i];
  }
  batch_orders = streams_scratch(operations * sizeof *batch_orders);
  for (notes_cap = 16; notes_cap < 2 * n;) notes_cap *= 2;
  notes = streams_scratch(notes_cap * sizeof *notes);
  __builtin_memset(notes, 0, notes_cap * sizeof *notes);
  buffer *asked = &out; /* keys' ends and firsts come first, so the keys are gathered behind the most that there can be */
  asked->n = 0;
  uint32_t most = operations + n, keys = 0;
  room(asked, 4 + 8 * most);
  order **at = batch_orders;
  for (uint32_t i = 0; i < n; i++) {
    if (counts[i] < 0) continue;
    const uint8_t *c = command(i, &size), *body = c + HEAD, *end = c + size;
    if (c[1] != BARRIER && streams_get64(c + 8) | streams_get64(c + 16)) {
      note *found = note_of(c + 8);
      uint32_t size = note_most(c[1], counts[i]);
      if (found->used == 1) {
        found->used = 2;
        found->asked = keys;
        uint8_t *key = room(asked, 18);
        key[0] = 1;
        key[1] = 'n';
        streams_copy(key + 2, c + 8, 16);
        streams_put32(asked->p + 4 + 4 * keys, asked->n - 4 - 8 * most);
        streams_put32(asked->p + 4 + 4 * (most + keys++), size);
      } else {
        uint8_t *first = asked->p + 4 + 4 * (most + found->asked);
        if (size > streams_get32(first)) streams_put32(first, size);
      }
    }
    for (int64_t k = 0; k < counts[i]; k++) {
      operation o;
      read_operation(&body, end, &o);
      uint32_t hash = streams_hash(o.id, o.id_len);
      order *found = find_order(o.id, o.id_len, hash);
      if (!found) {
        found = new_order(o.id, o.id_len, hash);
        found->asked = 1;
        list_order(found);
        uint8_t *key = room(asked, 2 + o.id_len);
        key[0] = 1;
        key[1] = 'c';
        streams_copy(key + 2, o.id, o.id_len);
        streams_put32(asked->p + 4 + 4 * keys, asked->n - 4 - 8 * most);
        streams_put32(asked->p + 4 + 4 * (most + keys++), ORDER_HEAD + 3 * NAME_MAX);
      }
      *at++ = found;
    }
  }
  uint32_t gap = most - keys, blob = asked->n - 4 - 8 * most;
  streams_put32(asked->p, keys);
  if (gap) {
    __builtin_memmove(asked->p + 4 + 4 * keys, asked->p + 4 + 4 * most, 4 * keys);
    __builtin_memmove(asked->p + 4 + 8 * keys, asked->p + 4 + 8 * most, blob);
  }
  return answered(asked->p, 4 + 8 * keys + blob, 0);
}

/* An order's row: see write_order. */
static int read_order(order *o, const uint8_t *row, uint32_t len) {
  if (len < ORDER_HEAD || len < ORDER_HEAD + (uint32_t)row[80] + row[81] + row[82]) return 0;
  const uint8_t *symbol = row + ORDER_HEAD + row[80], *owner = symbol + row[81];
  o->state = row[1] == PARTIAL ? OPEN : row[1];
  o->side = row[2];
  o->type = row[3];
  o->price_digits = row[4];
  o->quantity_digits = row[5];
  o->first_status = row[6];
  o->price = (int64_t)streams_get64(row + 8);
  o->quantity = (int64_t)streams_get64(row + 16);
  o->left = (int64_t)streams_get64(row + 24);
  o->first_filled = (int64_t)streams_get64(row + 32);
  o->arrival = streams_get64(row + 40);
  o->offset = streams_get64(row + 48);
  o->placed_ms = (int64_t)streams_get64(row + 56);
  o->closed_ms = (int64_t)streams_get64(row + 64);
  o->print = streams_get64(row + 72);
  o->book = find_book(symbol, row[81], streams_hash(symbol, row[81]));
  o->account = row[82] ? find_account(owner, row[82], streams_hash(owner, row[82])) : 0;
  return o->book && (!row[82] || o->account);
}

static void read_meta(const uint8_t *m) {
  log_ms = streams_get64(m);
  commands = streams_get64(m + 8);
  chain = streams_get64(m + 16);
  next_offset = streams_get64(m + 24);
  arrivals = streams_get64(m + 32);
}

/* One row of the durable form. */
static int restore_row(const uint8_t *key, uint32_t key_len, const uint8_t *row, uint32_t len) {
  if (key_len < 2 || key[0] != 1) return 0;
  if (key[1] == 'm') {
    if (len < META) return 0;
    read_meta(row);
  } else if (key[1] == 's') {
    if (len < 32 || !good_symbol(row + 8, row + len)) return 0;
    book *b = book_of(row + 8);
    define(b, row + 8);
    b->offset = streams_get64(row);
  } else if (key[1] == 'a') {
    account *a = account_for(key + 2, key_len - 2);
    const uint8_t *at = row + 8;
    for (uint32_t i = 0; i < streams_get32(row); i++, at += 33 + at[0]) {
      if (at + 33 + at[0] > row + len) return 0;
      position *p = position_of(a, asset_of(at + 1, at[0]));
      p->total = money_at(at + 1 + at[0]);
      p->held = money_at(at + 17 + at[0]);
    }
  } else if (key[1] == 'o') {
    order *o = new_order(key + 2, key_len - 2, streams_hash(key + 2, key_len - 2));
    if (!read_order(o, row, len) || o->state != OPEN) return 0;
    o->stored = 1;
    o->book->orders++;
    open_orders++;
    if (o->account) o->account->open++;
    push(&restored_orders, o);
  } else return 0;
  return 1;
}

typedef struct { const uint8_t *key_end, *row_end, *present, *keys, *rows; uint32_t n; } row_list;

static int read_list(row_list *l, const uint8_t *p, uint32_t len) {
  l->n = len < 4 ? 0 : streams_get32(p);
  if (len < 4 || l->n > (len - 4) / 9) return 0;
  l->key_end = p + 4;
  l->row_end = l->key_end + 4 * l->n;
  l->present = l->row_end + 4 * l->n;
  l->keys = l->present + l->n;
  l->rows = l->keys + (l->n ? streams_get32(l->key_end + 4 * (l->n - 1)) : 0);
  return 1;
}

STREAMS_EXPORT("streams_restore") int32_t streams_restore(const uint8_t *p, uint32_t len) {
  row_list l;
  streams_round_over = 1;
  if (begun || !read_list(&l, p, len)) return -1;
  for (uint32_t i = 0, key = 0, row = 0; i < l.n; i++) {
    uint32_t ke = streams_get32(l.key_end + 4 * i), re = streams_get32(l.row_end + 4 * i);
    if (!restore_row(l.keys + key, ke - key, l.rows + row, re - row)) return -2;
    key = ke;
    row = re;
  }
  return 0;
}

/* Links the restored orders, in the order of their arrival (radix sort, stable, a byte a pass). */
static void link_restored(void) {
  uint32_t n = count_of(&restored_orders);
  order **from = (order **)restored_orders.p, **to = streams_malloc(n * sizeof *to + 1);
  order **spare = to;
  for (uint32_t shift = 0; shift < 64; shift += 8) {
    uint32_t starts[257] = {0};
    for (uint32_t i = 0; i < n; i++) starts[1 + (from[i]->arrival >> shift & 255)]++;
    if (n && starts[1 + (from[0]->arrival >> shift & 255)] == n) continue;
    for (uint32_t i = 0; i < 256; i++) starts[i + 1] += starts[i];
    for (uint32_t i = 0; i < n; i++) to[starts[from[i]->arrival >> shift & 255]++] = from[i];
    order **swap = from;
    from = to;
    to = swap;
  }
  record_no = 1;
  for (uint32_t i = 0; i < n; i++) link(from[i]);
  for (uint32_t i = 0; i < count_of(&listed_books); i++) {
    book *b = ITEM(listed_books, book, i);
    b->changes.n = 0;
    b->listed = 0;
  }
  listed_books.n = restored_orders.n = 0;
  streams_free(spare, n * sizeof *spare + 1);
}

STREAMS_EXPORT("streams_restored") int32_t streams_restored(void) {
  if (begun) return -1;
  begun = 1;
  link_restored();
  return 0;
}

STREAMS_EXPORT("streams_load") int32_t streams_load(const uint8_t *p, uint32_t len) {
  row_list l;
  if (!read_list(&l, p, len)) return -1;
  for (uint32_t i = 0, key_at = 0, row_at = 0; i < l.n; i++) {
    uint32_t ke = streams_get32(l.key_end + 4 * i), re = streams_get32(l.row_end + 4 * i);
    const uint8_t *key = l.keys + key_at, *row = l.rows + row_at;
    uint32_t key_len = ke - key_at, size = re - row_at;
    key_at = ke;
    row_at = re;
    if (key_len < 3 || key[0] != 1) return -2;
    if (!l.present[i]) continue;
    if (key[1] == 'n') {
      if (key_len != 18 || size < NOTE) return -3;
      note *of = note_of(key + 2);
      of->row = row;
      of->size = size;
    } else {
      order *o = find_order(key + 2, key_len - 2, streams_hash(key + 2, key_len - 2));
      if (!o || !o->asked || !read_order(o, row, size)) return -3;
      o->stored = 2;
    }
  }
  return 0;
}

/* ---- applying ---- */

typedef struct { uint32_t code, again, n; uint64_t offset; int64_t ms; } result;

static void write_outcome(uint8_t *p, const outcome *o) {
  p[0] = (uint8_t)o->outcome;
  p[1] = (uint8_t)o->status;
  p[2] = (uint8_t)o->price_digits;
  p[3] = (uint8_t)o->quantity_digits;
  streams_put32(p + 4, o->trades);
  streams_put64(p + 8, o->offset);
  streams_put64(p + 16, (uint64_t)o->price);
  streams_put64(p + 24, (uint64_t)o->quantity);
  streams_put64(p + 32, (uint64_t)o->filled);
}

/* Whether an outcome says no more than that and why its operation was refused. */
static int is_bare(const uint8_t *outcome, uint64_t offset) {
  uint64_t rest = streams_get64(outcome) >> 8 | (streams_get64(outcome + 8) ^ offset);
  for (uint32_t i = 16; i < OUTCOME; i += 8) rest |= streams_get64(outcome + i);
  return outcome[0] && !rest;
}

static uint8_t tag_of(const uint8_t *command_at, const uint8_t *outcome, uint64_t offset) {
  if (is_bare(outcome, offset)) return outcome[0];
  return command_at[0] == PLACE && outcome[0] == GOOD && streams_get64(outcome + 8) == offset ? 0 : WHOLE;
}

/* Notes a result, `told` being what followed its head; of many operations only what their orders' rows cannot tell. */
static void keep(note *of, const uint8_t *c, uint32_t size, const result *r, const uint8_t *told, uint32_t told_len) {
  uint32_t n = r->n > 1 ? r->n : 0, more = n || told_len < OUTCOME ? 0 : told_len - OUTCOME, whole = 0;
  const uint8_t *p = c + HEAD;
  uint8_t *tags = streams_malloc(n + 1);
  for (uint32_t i = 0; i < n; i++) {
    operation o;
    read_operation(&p, c + size, &o);
    whole += (tags[i] = tag_of(o.raw, told + i * OUTCOME, r->offset)) == WHOLE;
  }
  made_row *m = new_row(18, NOTE + more + n + whole * OUTCOME);
  m->key[0] = 1;
  m->key[1] = 'n';
  streams_copy(m->key + 2, of->id, 16);
  uint8_t *row = m->row;
  __builtin_memset(row, 0, NOTE);
  row[0] = 1;
  row[1] = (uint8_t)r->code;
  streams_put16(row + 2, r->n == 1);
  streams_put32(row + 4, n);
  if (size) streams_copy(row + 8, c + 24, 16);
  streams_put64(row + 24, (uint64_t)r->ms);
  streams_put64(row + 32, r->offset);
  if (r->n == 1) {
    __builtin_memcpy(row + 40, told, OUTCOME);
    __builtin_memcpy(row + NOTE, told + OUTCOME, more);
  }
  if (n) __builtin_memcpy(row + NOTE, tags, n);
  uint8_t *to = row + NOTE + n;
  for (uint32_t i = 0; i < n; i++) {
    if (tags[i] != WHOLE) continue;
    __builtin_memcpy(to, told + i * OUTCOME, OUTCOME);
    to += OUTCOME;
  }
  streams_free(tags, n + 1);
  of->row = row;
  of->size = m->row_len;
}

/* The outcomes of a command of several operations, as they were first. `named`: the orders of its operations. */
static void tell_many(const note *of, const uint8_t *c, uint32_t size, order *const *named, result *r) {
  const uint8_t *tags = of->row + NOTE, *whole = tags + r->n, *p = c + HEAD;
  for (uint32_t i = 0; i < r->n; i++) {
    operation o;
    outcome each = {.offset = r->offset};
    read_operation(&p, c + size, &o);
    uint8_t *to = room(&out, OUTCOME);
    if (tags[i] == WHOLE) {
      __builtin_memcpy(to, whole, OUTCOME);
      whole += OUTCOME;
      continue;
    }
    if (tags[i]) each.outcome = tags[i];
    else tell_first(&o, named[i], &each); /* its row outlives the note: it is kept 30 days from when the order closed */
    write_outcome(to, &each);
  }
}

/* Whether the command was executed, or cancelled, before; then `r` is what it answered. RESOLVE hears of one outcome at most. */
static int told_again(const note *of, const uint8_t *c, uint32_t size, order *const *named, result *r) {
  const uint8_t *row = of->row;
  int resolves = c[1] == RESOLVE;
  if (!row || (int64_t)streams_get64(row + 24) + SPENT_MS <= (int64_t)log_ms) return 0;
  if (row[1] != CANCELLED && !resolves && !streams_equal(row + 8, c + 24, 16)) r->code = MISMATCH;
  else if (log_ms - streams_get64(row + 24) > KEEP_MS) r->code = SPENT;
  else {
    r->code = row[1];
    r->again = 1;
    r->ms = (int64_t)streams_get64(row + 24);
    r->offset = streams_get64(row + 32);
    r->n = streams_get16(row + 2);
    if (r->n) {
      streams_copy(room(&out, OUTCOME), row + 40, OUTCOME);
      if (!resolves) __builtin_memcpy(room(&out, of->size - NOTE), row + NOTE, of->size - NOTE);
    } else if (!resolves && row[1] != CANCELLED) {
      r->n = streams_get32(row + 4);
      tell_many(of, c, size, named, r);
    }
  }
  return 1;
}

static void apply(const uint8_t *c, uint32_t size, int64_t count, order ***at, result *r) {
  if (count < 0) { r->code = MALFORMED; return; }
  if (c[1] == BARRIER) { r->code = PASSED; return; }
  note *of = streams_get64(c + 8) | streams_get64(c + 16) ? note_of(c + 8) : 0;
  if (of && told_again(of, c, size, *at, r)) {
    *at += count;
    return;
  }
  if (c[1] == RESOLVE) {
    r->code = CANCELLED;
    if (of) keep(of, c, 0, r, 0, 0);
    return;
  }
  uint32_t from = out.n;
  const uint8_t *p = c + HEAD, *end = c + size;
  r->n = c[1] == ORDERS ? (uint32_t)count : 1;
  outcome each;
  for (uint32_t i = 0; i < r->n; i++) {
    each = (outcome){.offset = r->offset};
    if (c[1] == SYMBOL) each.outcome = set_symbol(p, &each);
    else if (c[1] == ACCOUNT) each.outcome = set_account(p, &each);
    else if (c[1] == EXECUTE) each.outcome = execute(p, end, streams_get32(c + 4), &each);
    else {
      operation o;
      read_operation(&p, end, &o);
      order *named = *(*at)++;
      each.outcome = o.op == PLACE ? place(&o, named, &each) : o.op == CANCEL ? cancel(named, &each) : replace(&o, named, &each);
    }
    chain = mix(mix(chain, each.outcome | each.status << 8), (uint64_t)each.filled ^ each.offset << 20);
    write_outcome(room(&out, OUTCOME), &each);
  }
  if (r->n == 1 && each.outcome) r->code = FAILED;
  if (c[1] == ACCOUNT && !each.outcome) {
    const account *set = find_account(p + 4, p[0], streams_hash(p + 4, p[0]));
    write_account(set, room(&out, account_size(set)));
  }
  if (of) keep(of, c, size, r, out.p + from, out.n - from);
}

STREAMS_EXPORT("streams_apply") streams_desc *streams_apply(void) {
  begun = 1;
  out.n = 0;
  uint32_t head = 4 + 4 * batch_n;
  streams_put32(room(&out, head), batch_n);
  order **at = batch_orders;
  for (uint32_t i = 0; i < batch_n; i++) {
    if (offset_of(i) < next_offset) return answered(0, 0, -2); /* the host steps back: it must not */
    log_ms = (uint64_t)streams_max_i64((int64_t)log_ms, append_ms(i));
    record_no++;
    if (record_no < 2) record_no = 2;
    record_offset = (int64_t)offset_of(i);
    result r = {APPLIED, 0, 0, offset_of(i), (int64_t)log_ms};
    uint32_t size, from = out.n;
    room(&out, RESULT);
    const uint8_t *c = command(i, &size);
    apply(c, size, batch_counts[i], &at, &r);
    end_record();
    next_offset = offset_of(i) + 1;
    commands++;
    uint64_t told = r.again && r.n > 1 ? 0 : r.n; /* as versions did that noted no outcomes of several: equal chains beside them */
    chain = mix(mix(mix(chain, next_offset), told << 16 | r.again << 8 | r.code), r.offset ^ log_ms << 20);
    uint8_t *p = out.p + from;
    p[0] = (uint8_t)r.code;
    p[1] = (uint8_t)r.again;
    streams_put16(p + 2, 0);
    streams_put32(p + 4, r.n);
    streams_put64(p + 8, r.offset);
    streams_put64(p + 16, (uint64_t)r.ms);
    streams_put32(out.p + 4 + 4 * i, out.n - head);
  }
  return answered(out.p, out.n, 0);
}

/* ---- taking: what changed, some megabytes at a time ---- */

static buffer key_ends, row_ends, there, keys, rows;

static uint8_t *emit(uint32_t key_len, uint32_t row_len, int present, uint8_t **row) {
  uint8_t *key = room(&keys, key_len);
  *row = room(&rows, row_len);
  streams_put32(room(&key_ends, 4), keys.n);
  streams_put32(room(&row_ends, 4), rows.n);
  *room(&there, 1) = (uint8_t)present;
  return key;
}

static void order_row(const order *o, uint8_t kind, int present) {
  uint32_t s = o->book->name_len, a = o->account ? o->account->id_len : 0;
  uint8_t *r, *key = emit(2 + o->id_len, present ? ORDER_HEAD + o->id_len + s + a : 0, present, &r);
  key[0] = 1;
  key[1] = kind;
  streams_copy(key + 2, o->id, o->id_len);
  if (!present) return;
  uint8_t head[8] = {1, status_of(o), o->side, o->type, o->price_digits, o->quantity_digits, o->first_status, 0};
  streams_copy(r, head, 8);
  streams_put64(r + 8, (uint64_t)o->price);
  streams_put64(r + 16, (uint64_t)o->quantity);
  streams_put64(r + 24, (uint64_t)o->left);
  streams_put64(r + 32, (uint64_t)o->first_filled);
  streams_put64(r + 40, o->arrival);
  streams_put64(r + 48, o->offset);
  streams_put64(r + 56, (uint64_t)o->placed_ms);
  streams_put64(r + 64, (uint64_t)o->closed_ms);
  streams_put64(r + 72, o->print);
  r[80] = o->id_len;
  r[81] = (uint8_t)s;
  r[82] = (uint8_t)a;
  r[83] = 0;
  streams_copy(r + ORDER_HEAD, o->id, o->id_len);
  streams_copy(r + ORDER_HEAD + o->id_len, o->book->name, s);
  if (a) streams_copy(r + ORDER_HEAD + o->id_len + s, o->account->id, a);
}

static void take_order(const order *o) {
  if (!o->altered) return;
  if (o->state == OPEN) {
    if (o->stored == 2) order_row(o, 'c', 0);
    order_row(o, 'o', 1);
  } else {
    if (o->stored == 1) order_row(o, 'o', 0);
    order_row(o, 'c', 1);
  }
}

static void take_account(const account *a) {
  uint8_t *r, *key = emit(2 + a->id_len, account_size(a), 1, &r);
  key[0] = 1;
  key[1] = 'a';
  streams_copy(key + 2, a->id, a->id_len);
  write_account(a, r);
}

static void take_book(const book *b) {
  uint8_t *r, *key = emit(2 + b->name_len, 32 + b->name_len + b->base_len + b->quote_len, 1, &r);
  key[0] = 1;
  key[1] = 's';
  streams_copy(key + 2, b->name, b->name_len);
  streams_put64(r, b->offset);
  uint8_t head[8] = {b->mode, b->policy, b->needs_account, b->price_digits, b->lot_digits, b->name_len, b->base_len, b->quote_len};
  streams_copy(r + 8, head, 8);
  streams_put64(r + 16, (uint64_t)b->tick);
  streams_put64(r + 24, (uint64_t)b->lot);
  streams_copy(r + 32, b->name, b->name_len);
  streams_copy(r + 32 + b->name_len, b->base, b->base_len);
  streams_copy(r + 32 + b->name_len + b->base_len, b->quote, b->quote_len);
}

static int take_next(void) { /* 0 when nothing is left */
  if (take_at[0] < count_of(&dirty_orders)) take_order(ITEM(dirty_orders, order, take_at[0]++));
  else if (take_at[1] < count_of(&dirty_accounts)) take_account(ITEM(dirty_accounts, account, take_at[1]++));
  else if (take_at[2] < count_of(&dirty_books)) take_book(ITEM(dirty_books, book, take_at[2]++));
  else if (take_at[3] < count_of(&rows_made)) {
    made_row *m = ITEM(rows_made, made_row, take_at[3]++);
    uint8_t *r, *key = emit(m->key_len, m->row_len, 1, &r);
    streams_copy(key, m->key, m->key_len);
    streams_copy(r, m->row, m->row_len);
  } else if (take_at[3] == count_of(&rows_made) && batch_n) {
    take_at[3]++;
    uint8_t *r, *key = emit(2, META, 1, &r);
    key[0] = 1;
    key[1] = 'm';
    streams_put64(r, log_ms);
    streams_put64(r + 8, commands);
    streams_put64(r + 16, chain);
    streams_put64(r + 24, next_offset);
    streams_put64(r + 32, arrivals);
  } else return 0;
  return 1;
}

static void append(const buffer *b) { __builtin_memcpy(room(&out, b->n), b->p, b->n); }

STREAMS_EXPORT("streams_take") streams_desc *streams_take(void) {
  key_ends.n = row_ends.n = there.n = keys.n = rows.n = 0;
  int more = 1;
  while (more && keys.n + rows.n < TAKE_BYTES) more = take_next();
  out.n = 0;
  streams_put32(room(&out, 4), there.n);
  append(&key_ends);
  append(&row_ends);
  append(&there);
  append(&keys);
  append(&rows);
  if (!more) streams_round_over = 1;
  return answered(out.p, out.n, more);
}

/* ---- questions: u8 kind (1 depth, 2 match), u8 symbol length, u16 0, u32 most, symbol ---- */

STREAMS_EXPORT("streams_query") streams_desc *streams_query(const uint8_t *p, uint32_t len) {
  streams_round_over = 1;
  out.n = 0;
  if (len < 8 || len != 8u + p[1]) return answered(0, 0, -1);
  book *b = find_book(p + 8, p[1], streams_hash(p + 8, p[1]));
  uint32_t most = streams_get32(p + 4);
  uint8_t *head = room(&out, 32);
  __builtin_memset(head, 0, 32);
  head[0] = b != 0;
  streams_put64(head + 8, next_offset);
  streams_put64(head + 16, log_ms);
  if (!b) return answered(out.p, out.n, 0);
  head[1] = b->mode;
  head[2] = b->price_digits;
  head[3] = b->lot_digits;
  uint32_t counts[2] = {0, 0};
  if (p[0] == 1) {
    for (uint32_t s = 0; s < 2; s++) {
      for (level *l = b->sides[s].heads[0]; l && counts[s] < most; l = l->next[0], counts[s]++) {
        uint8_t *at = room(&out, 16);
        streams_put64(at, (uint64_t)(s == SELL ? l->key : -l->key));
        streams_put64(at + 8, (uint64_t)l->total);
      }
    }
  } else if (b->mode) {
    pair found;
    begin_pairs(b);
    b->walked = 0;
    while (counts[0] < most && next_pair(b, &found)) {
      uint32_t m = found.maker->id_len, t = found.taker->id_len;
      uint8_t *at = room(&out, 20 + m + t);
      streams_put64(at, (uint64_t)found.price);
      streams_put64(at + 8, (uint64_t)found.quantity);
      at[16] = (uint8_t)m;
      at[17] = (uint8_t)t;
      at[18] = found.taker->side;
      at[19] = 0;
      streams_copy(at + 20, found.maker->id, m);
      streams_copy(at + 20 + m, found.taker->id, t);
      counts[0]++;
    }
  }
  streams_put32(out.p + 24, counts[0]);
  streams_put32(out.p + 28, counts[1]);
  return answered(out.p, out.n, 0);
}
