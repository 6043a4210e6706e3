package main

import (
	"fmt"
	"sort"
	"strings"
)

// bookOp is an operation on one symbol's book and what it answered. Prices and quantities are integers; -1 is "not told".
type bookOp struct {
	Order    int        `json:"order"`
	Buy      bool       `json:"buy"`
	Type     string     `json:"type"` // limit, market, ioc, fok
	Price    int64      `json:"price"`
	Quantity int64      `json:"quantity"` // of a replace: the new total, what is filled included
	Depth    int        `json:"depth"`
	Filled   int64      `json:"filled"` // of the order, in all
	Trades   [][3]int64 `json:"trades"` // price, quantity, maker; null: not told
	Status   string     `json:"status"` // live, filled, dead, rejected; empty: not told
	Applied  bool       `json:"applied"`
	Bids     [][2]int64 `json:"bids"` // price, quantity, best first
	Asks     [][2]int64 `json:"asks"`
}

// resting is an order in the book.
type resting struct {
	order    int
	price    int64
	open     int64
	quantity int64
}

// book is immutable; each side is in priority order: best price, then first come.
type book struct {
	bids, asks []resting
	used       []uint64 // numbers of orders that were placed
}

func newBook(orders int) *book {
	return &book{used: make([]uint64, (orders+63)/64)}
}

func (b *book) isUsed(order int) bool {
	return b.used[order/64]&(1<<(order%64)) != 0
}

func (b *book) step(next *op) (interface{}, string) {
	asked := next.Book
	switch next.F {
	case "place":
		return b.place(next, asked)
	case "cancel":
		return b.cancel(next, asked)
	case "replace":
		return b.replace(next, asked)
	default:
		if next.Known && !(levelsEqual(b.bids, asked.Bids, asked.Depth) && levelsEqual(b.asks, asked.Asks, asked.Depth)) {
			return nil, "it read another book"
		}
		return b, ""
	}
}

// place: an identifier that was placed before is rejected and changes nothing.
func (b *book) place(next *op, asked *bookOp) (interface{}, string) {
	if b.isUsed(asked.Order) {
		if next.Known && asked.Status != "rejected" {
			return nil, "the order was placed before"
		}
		return b, ""
	}
	after := &book{bids: b.bids, asks: b.asks, used: append([]uint64{}, b.used...)}
	after.used[asked.Order/64] |= 1 << (asked.Order % 64)
	order := resting{asked.Order, asked.Price, asked.Quantity, asked.Quantity}
	trades := [][3]int64{}
	if asked.Type != "fok" || b.available(asked) >= asked.Quantity {
		trades = after.match(&order, asked.Buy, asked.Type == "market")
	}
	status := "dead"
	switch {
	case order.open == 0:
		status = "filled"
	case asked.Type == "limit":
		status = "live"
		after.rest(order, asked.Buy)
	}
	return after, contradiction(next, asked, status, order.quantity-order.open, trades)
}

// contradiction compares an answer with what must have been answered.
func contradiction(next *op, asked *bookOp, status string, filled int64, trades [][3]int64) string {
	if !next.Known {
		return ""
	}
	killed := status == "dead" && filled == 0 && asked.Status == "rejected"
	if asked.Status != "" && asked.Status != status && !killed {
		return "its status must be another"
	}
	if asked.Filled >= 0 && asked.Filled != filled {
		return "it filled another quantity"
	}
	if asked.Trades == nil {
		return ""
	}
	if len(asked.Trades) != len(trades) {
		return "its trades are others"
	}
	for i := range trades {
		if trades[i] != asked.Trades[i] {
			return "its trades are others"
		}
	}
	return ""
}

func crosses(buy bool, limit, price int64) bool {
	if buy {
		return price <= limit
	}
	return price >= limit
}

func (b *book) available(asked *bookOp) int64 {
	opposite := b.asks
	if !asked.Buy {
		opposite = b.bids
	}
	var sum int64
	for _, each := range opposite {
		if !crosses(asked.Buy, asked.Price, each.price) || sum >= asked.Quantity {
			break
		}
		sum += each.open
	}
	return sum
}

// match trades an incoming order against the opposite side, at the resting orders' prices.
func (b *book) match(order *resting, buy, market bool) [][3]int64 {
	opposite := &b.asks
	if !buy {
		opposite = &b.bids
	}
	trades := [][3]int64{}
	at := 0
	for at < len(*opposite) && order.open > 0 && (market || crosses(buy, order.price, (*opposite)[at].price)) {
		maker := (*opposite)[at]
		quantity := min(order.open, maker.open)
		order.open -= quantity
		trades = append(trades, [3]int64{maker.price, quantity, int64(maker.order)})
		if quantity < maker.open {
			left := append([]resting{}, (*opposite)[at:]...)
			left[0].open -= quantity
			*opposite = left
			return trades
		}
		at++
	}
	*opposite = (*opposite)[at:]
	return trades
}

// rest puts an order behind all of its price.
func (b *book) rest(order resting, buy bool) {
	side := &b.asks
	if buy {
		side = &b.bids
	}
	at := sort.Search(len(*side), func(i int) bool {
		if buy {
			return (*side)[i].price < order.price
		}
		return (*side)[i].price > order.price
	})
	made := make([]resting, 0, len(*side)+1)
	made = append(append(append(made, (*side)[:at]...), order), (*side)[at:]...)
	*side = made
}

func (b *book) find(order int) (found resting, buy bool, ok bool) {
	for _, each := range b.bids {
		if each.order == order {
			return each, true, true
		}
	}
	for _, each := range b.asks {
		if each.order == order {
			return each, false, true
		}
	}
	return resting{}, false, false
}

func (b *book) without(order int) *book {
	after := &book{used: b.used}
	for _, each := range b.bids {
		if each.order != order {
			after.bids = append(after.bids, each)
		}
	}
	for _, each := range b.asks {
		if each.order != order {
			after.asks = append(after.asks, each)
		}
	}
	return after
}

func (b *book) cancel(next *op, asked *bookOp) (interface{}, string) {
	found, _, ok := b.find(asked.Order)
	if next.Known && ok != asked.Applied {
		return nil, "the order is open and was not cancelled, or is not open and was"
	}
	if !ok {
		return b, ""
	}
	if next.Known && asked.Filled >= 0 && asked.Filled != found.quantity-found.open {
		return nil, "another quantity is filled"
	}
	return b.without(asked.Order), ""
}

// replace: a smaller or equal quantity at the same price keeps the order's place; anything else is a new arrival.
func (b *book) replace(next *op, asked *bookOp) (interface{}, string) {
	found, buy, ok := b.find(asked.Order)
	filled := found.quantity - found.open
	price, quantity := asked.Price, asked.Quantity
	if price < 0 {
		price = found.price
	}
	if quantity < 0 {
		quantity = found.quantity
	}
	ok = ok && quantity > filled
	if next.Known && ok != asked.Applied {
		return nil, "the order can be replaced and was not, or cannot and was"
	}
	if !ok {
		return b, ""
	}
	order := resting{asked.Order, price, quantity - filled, quantity}
	if price == found.price && quantity <= found.quantity {
		after := &book{bids: append([]resting{}, b.bids...), asks: append([]resting{}, b.asks...), used: b.used}
		for _, side := range [][]resting{after.bids, after.asks} {
			for i := range side {
				if side[i].order == asked.Order {
					side[i] = order
				}
			}
		}
		return after, contradiction(next, asked, "live", filled, [][3]int64{})
	}
	after := b.without(asked.Order)
	trades := after.match(&order, buy, false)
	status := "filled"
	if order.open > 0 {
		status = "live"
		after.rest(order, buy)
	}
	return after, contradiction(next, asked, status, order.quantity-order.open, trades)
}

// levels adds up a side by price; depth 0 is all of it.
func levels(side []resting, depth int) [][2]int64 {
	var found [][2]int64
	for _, each := range side {
		if n := len(found); n > 0 && found[n-1][0] == each.price {
			found[n-1][1] += each.open
		} else if depth > 0 && n == depth {
			break
		} else {
			found = append(found, [2]int64{each.price, each.open})
		}
	}
	return found
}

func levelsEqual(side []resting, told [][2]int64, depth int) bool {
	found := levels(side, depth)
	if len(found) != len(told) {
		return false
	}
	for i := range found {
		if found[i] != told[i] {
			return false
		}
	}
	return true
}

func (b *book) equal(other *book) bool {
	if len(b.bids) != len(other.bids) || len(b.asks) != len(other.asks) {
		return false
	}
	for i := range b.bids {
		if b.bids[i] != other.bids[i] {
			return false
		}
	}
	for i := range b.asks {
		if b.asks[i] != other.asks[i] {
			return false
		}
	}
	for i := range b.used {
		if b.used[i] != other.used[i] {
			return false
		}
	}
	return true
}

func (b *book) hash() uint64 {
	var h uint64
	for _, side := range [][]resting{b.bids, b.asks} {
		h = mix(h, uint64(len(side)))
		for _, each := range side {
			h = mix(mix(mix(h, uint64(each.order)), uint64(each.price)), uint64(each.open))
		}
	}
	return h
}

func decimal(value int64, digits int) string {
	text := fmt.Sprintf("%0*d", digits+1, value)
	if digits == 0 {
		return text
	}
	return text[:len(text)-digits] + "." + text[len(text)-digits:]
}

func (b *book) describe(part *partition) string {
	var sides []string
	for i, side := range [][]resting{b.bids, b.asks} {
		var shown []string
		for _, each := range levels(side, 5) {
			shown = append(shown, decimal(each[1], part.QuantityDigits)+" at "+decimal(each[0], part.PriceDigits))
		}
		sides = append(sides, []string{"bids ", "asks "}[i]+strings.Join(shown, ", "))
		if len(shown) == 0 {
			sides[i] += "none"
		}
	}
	return strings.Join(sides, "; ")
}
