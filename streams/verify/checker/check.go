package main

import (
	"math"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	reduceTimeout   = 10 * time.Second
	reduceChecksMax = 96
	statesShown     = 8
	htmlOpsMax      = 5000
)

var steps uint

// model is every partition's: an operation knows its partition, and the first makes the state.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() interface{} { return nil },
		Step: func(state, input, output interface{}) (bool, interface{}) {
			// A WASI program has one thread and no preemption: without this porcupine's timer would never fire.
			if steps++; steps%256 == 0 {
				runtime.Gosched()
			}
			next, why := step(state, input.(*op))
			return why == "", next
		},
		Equal:             equal,
		Hash:              hash,
		DescribeOperation: func(input, output interface{}) string { return input.(*op).Text },
		DescribeState:     func(state interface{}) string { return "" },
	}
}

// step applies an operation; the second value says why it cannot be next, or is empty.
func step(state interface{}, next *op) (interface{}, string) {
	if state == nil {
		state = initial(next.part)
	}
	switch at := state.(type) {
	case register:
		return at.step(next)
	case kvState:
		return at.step(next)
	default:
		return state.(*book).step(next)
	}
}

func initial(part *partition) interface{} {
	switch part.Model {
	case "register":
		return register(0)
	case "kv":
		return kvState{make(world, len(part.Keys))}
	default:
		return newBook(len(part.Orders))
	}
}

func equal(a, b interface{}) bool {
	switch at := a.(type) {
	case nil:
		return b == nil
	case register:
		other, ok := b.(register)
		return ok && at == other
	case kvState:
		other, ok := b.(kvState)
		return ok && at.equal(other)
	default:
		other, ok := b.(*book)
		return ok && a.(*book).equal(other)
	}
}

func hash(state interface{}) uint64 {
	switch at := state.(type) {
	case nil:
		return 0
	case register:
		return mix(0, uint64(at))
	case kvState:
		return at.hash()
	default:
		return state.(*book).hash()
	}
}

func mix(h, v uint64) uint64 {
	h ^= v + 0x9e3779b97f4a7c15 + (h << 6) + (h >> 2)
	h *= 0xff51afd7ed558ccd
	return h ^ h>>32
}

func describe(part *partition, state interface{}) string {
	if state == nil {
		state = initial(part)
	}
	switch at := state.(type) {
	case register:
		return part.texts[at]
	case kvState:
		return at.describe(part)
	default:
		return state.(*book).describe(part)
	}
}

func operations(ops []*op) []porcupine.Operation {
	history := make([]porcupine.Operation, len(ops))
	for i, each := range ops {
		history[i] = porcupine.Operation{ClientId: each.Client, Input: each, Call: each.Call, Return: each.Return}
		if !each.Known {
			history[i].Return = math.MaxInt64
		}
	}
	return history
}

func check(ops []*op, timeout time.Duration) porcupine.CheckResult {
	if timeout <= 0 {
		return porcupine.Unknown
	}
	return porcupine.CheckOperationsTimeout(model(), operations(ops), timeout)
}

// judge checks one partition after the other, so that their memory is not needed at the same time.
func judge(asked *question, began time.Time) *answer {
	deadline := began.Add(time.Duration(asked.TimeoutMs) * time.Millisecond)
	for i, part := range asked.Partitions {
		switch check(part.Ops, time.Until(deadline)) {
		case porcupine.Unknown:
			return &answer{Verdict: "unknown", Partition: i, Reason: "the time ran out"}
		case porcupine.Illegal:
			found := explain(part, asked.HTML, time.Now().Add(reduceTimeout))
			found.Partition = i
			return found
		}
	}
	found := &answer{Verdict: "ok"}
	if asked.HTML {
		found.HTML = page(asked.Partitions, time.Until(deadline)+time.Second)
	}
	return found
}

// explain makes an illegal history smaller, soundly: each smaller one demands less than the one before.
func explain(part *partition, html bool, deadline time.Time) *answer {
	ops, culprit := prefix(part.Ops, deadline)
	ops = dropReads(ops, culprit, deadline)
	found := &answer{Verdict: "illegal", Culprit: culprit.at}
	for _, each := range ops {
		found.History = append(found.History, each.at)
	}
	_, info := porcupine.CheckOperationsVerbose(model(), operations(ops), time.Until(deadline)+time.Second)
	var longest []int
	for _, each := range info.PartialLinearizations()[0] {
		if len(each) > len(longest) || len(each) == len(longest) && less(each, longest) {
			longest = each
		}
	}
	placed := make(map[*op]bool)
	var state interface{}
	for i, id := range longest {
		state, _ = step(state, ops[id])
		placed[ops[id]] = true
		found.Placed = append(found.Placed, ops[id].at)
		if len(longest)-i <= statesShown {
			found.States = append(found.States, describe(part, state))
		}
	}
	found.State = describe(part, state)
	for _, each := range ops {
		if _, why := step(state, each); each.Known && !placed[each] && why != "" {
			found.Blocked = append(found.Blocked, blocked{each.at, why})
		}
	}
	if html {
		found.HTML = visualize(ops, info)
	}
	return found
}

func less(a, b []int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// prefix cuts the history after the first answer with which it is not linearizable, and returns that operation.
// What was open at the cut is kept with an unknown outcome.
func prefix(ops []*op, deadline time.Time) ([]*op, *op) {
	var answered []*op
	for _, each := range ops {
		if each.Known {
			answered = append(answered, each)
		}
	}
	sort.SliceStable(answered, func(i, j int) bool { return answered[i].Return < answered[j].Return })
	low, high := 0, len(answered) // with `high` answers it is illegal
	for low+1 < high && time.Now().Before(deadline) {
		middle := (low + high) / 2
		if check(cut(ops, answered[:middle]), time.Until(deadline)) == porcupine.Illegal {
			high = middle
		} else {
			low = middle
		}
	}
	return cut(ops, answered[:high]), answered[high-1]
}

func cut(ops []*op, answered []*op) []*op {
	end := answered[len(answered)-1].Return
	kept := make(map[*op]bool, len(answered))
	for _, each := range answered {
		kept[each] = true
	}
	var left []*op
	for _, each := range ops {
		switch {
		case kept[each]:
			left = append(left, each)
		case each.Call <= end && !each.pure():
			left = append(left, each.forgotten())
		}
	}
	return left
}

// forgotten is the operation without its answer.
func (each *op) forgotten() *op {
	if !each.Known {
		return each
	}
	if each.unknown == nil {
		copied := *each
		copied.Known = false
		copied.Text = strings.SplitN(each.Text, " → ", 2)[0] + " → ?"
		each.unknown = &copied
	}
	return each.unknown
}

// pure operations change nothing, so a history without them demands less.
func (each *op) pure() bool {
	switch each.F {
	case "read", "book":
		return true
	case "kv":
		return len(each.KV.Then) == 0
	}
	return false
}

func dropReads(ops []*op, culprit *op, deadline time.Time) []*op {
	checks := 0
	for size := (len(ops) + 1) / 2; size >= 1; size /= 2 {
		for start := len(ops); start > 0; {
			start = max(0, start-size)
			end := min(len(ops), start+size)
			left := append([]*op{}, ops[:start]...)
			for _, each := range ops[start:end] {
				if each == culprit || !each.pure() {
					left = append(left, each)
				}
			}
			left = append(left, ops[end:]...)
			if len(left) == len(ops) {
				continue
			}
			if checks++; checks > reduceChecksMax || !time.Now().Before(deadline) {
				return ops
			}
			if check(left, time.Until(deadline)) == porcupine.Illegal {
				ops = left
			}
		}
	}
	return ops
}

// page shows a linearizable history; empty when it is too long to be looked at.
func page(parts []*partition, timeout time.Duration) string {
	var all []*op
	for _, part := range parts {
		all = append(all, part.Ops...)
	}
	if len(all) > htmlOpsMax {
		return ""
	}
	shown := model()
	shown.Partition = func(history []porcupine.Operation) [][]porcupine.Operation {
		var split [][]porcupine.Operation
		at := 0
		for _, part := range parts {
			split = append(split, history[at:at+len(part.Ops)])
			at += len(part.Ops)
		}
		return split
	}
	_, info := porcupine.CheckOperationsVerbose(shown, operations(all), timeout)
	return visualize(all, info)
}

func visualize(ops []*op, info porcupine.LinearizationInfo) string {
	shown := model()
	// The state shown must know its partition; the checker's own states need not.
	shown.Step = func(state, input, output interface{}) (bool, interface{}) {
		before, _ := state.(*shownState)
		var inner interface{}
		if before != nil {
			inner = before.state
		}
		next, why := step(inner, input.(*op))
		return why == "", &shownState{input.(*op).part, next}
	}
	shown.DescribeState = func(state interface{}) string {
		at, _ := state.(*shownState)
		if at == nil {
			return ""
		}
		return describe(at.part, at.state)
	}
	var out strings.Builder
	if len(ops) == 0 || porcupine.Visualize(shown, info, &out) != nil {
		return ""
	}
	return out.String()
}

type shownState struct {
	part  *partition
	state interface{}
}
