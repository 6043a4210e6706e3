package main

import (
	"fmt"
	"strings"
)

// register holds a value's number; 0 is absent.
type register int

func (at register) step(next *op) (interface{}, string) {
	switch next.F {
	case "write":
		return register(next.Value), ""
	case "cas":
		if int(at) == next.Old {
			return register(next.Value), ""
		}
		if next.Known {
			return nil, "it succeeded although the value is another"
		}
		return at, ""
	default:
		if next.Known && int(at) != next.Value {
			return nil, "it read another value"
		}
		return at, ""
	}
}

// kvOp reads, or writes all of Then when every condition in If holds. Versions are compared and must grow; -1 is "not told".
type kvOp struct {
	If      [][2]int64 `json:"if"`      // key, version; version 0: must be absent
	Then    [][2]int64 `json:"then"`    // key, value; value 0: delete
	Read    [][3]int64 `json:"read"`    // key, value, version
	Told    [][2]int64 `json:"told"`    // key, its version afterwards
	Existed [][2]int64 `json:"existed"` // key, 1 or 0: whether it was there before
	Applied bool       `json:"applied"`
}

// item is one key. A version that no answer told is -1: it is above floor, and the first answer that tells it fixes it.
type item struct {
	value   int64
	version int64
	floor   int64
}

type world []item

// kvState is the worlds that are possible: more than one only while a conditional write of unknown outcome meets a
// version that nobody was told.
type kvState []world

func (all kvState) step(next *op) (interface{}, string) {
	var found kvState
	why := ""
	for _, each := range all {
		made, reason := each.step(next)
		if reason != "" {
			why = reason
		}
		for _, one := range made {
			if !found.has(one) {
				found = append(found, one)
			}
		}
	}
	if len(found) == 0 {
		return nil, why
	}
	return found, ""
}

func (all kvState) has(one world) bool {
	for _, each := range all {
		if each.equal(one) {
			return true
		}
	}
	return false
}

func (all kvState) equal(other kvState) bool {
	if len(all) != len(other) {
		return false
	}
	for _, each := range all {
		if !other.has(each) {
			return false
		}
	}
	return true
}

func (all kvState) hash() uint64 {
	var sum uint64
	for _, each := range all {
		var h uint64
		for _, it := range each {
			h = mix(mix(mix(h, uint64(it.value)), uint64(it.version)), uint64(it.floor))
		}
		sum ^= h
	}
	return sum
}

func (w world) equal(other world) bool {
	for i := range w {
		if w[i] != other[i] {
			return false
		}
	}
	return true
}

// pin fixes a version; false when it contradicts what is known.
func (it *item) pin(version int64) bool {
	switch {
	case it.value == 0:
		return version == 0
	case it.version >= 0:
		return it.version == version
	case version <= it.floor:
		return false
	}
	it.version, it.floor = version, version
	return true
}

// write puts a value (0 deletes) whose version nobody has told yet.
func (it *item) write(value int64) {
	it.floor = max(it.floor, it.version)
	it.value, it.version = value, -1
	if value == 0 {
		it.version = 0
	}
}

func (w world) step(next *op) ([]world, string) {
	asked := next.KV
	if len(asked.Then) == 0 {
		return w.read(next)
	}
	for _, each := range asked.Existed {
		if next.Known && (w[each[0]].value != 0) != (each[1] == 1) {
			return nil, "it says of a key that it existed, or did not, and the contrary holds"
		}
	}
	var made []world
	why := "it was applied although a condition does not hold"
	if holding, ok := w.assume(asked.If); ok && (asked.Applied || !next.Known) {
		if applied, ok := holding.apply(next); ok {
			made = append(made, applied)
		} else {
			why = "its version does not come after the key's last"
		}
	}
	if !next.Known || !asked.Applied {
		if w.mayFail(asked.If) {
			refused := append(world{}, w...)
			ok := true
			for _, each := range asked.Told {
				ok = ok && (!next.Known || refused[each[0]].pin(each[1]))
			}
			if ok {
				made = append(made, refused)
			} else {
				why = "it told another version"
			}
		} else if next.Known {
			why = "it was refused although its conditions hold"
		}
	}
	if len(made) == 0 {
		return nil, why
	}
	return made, ""
}

func (w world) read(next *op) ([]world, string) {
	if !next.Known {
		return []world{w}, ""
	}
	seen := append(world{}, w...)
	for _, each := range next.KV.Read {
		it := &seen[each[0]]
		if it.value != each[1] {
			return nil, "it read another value"
		}
		if each[2] >= 0 && !it.pin(each[2]) {
			return nil, "it read another version"
		}
	}
	return []world{seen}, ""
}

// assume is the world in which all conditions hold.
func (w world) assume(conditions [][2]int64) (world, bool) {
	holding := append(world{}, w...)
	for _, each := range conditions {
		it := &holding[each[0]]
		if (it.value == 0) != (each[1] == 0) || it.value != 0 && !it.pin(each[1]) {
			return nil, false
		}
	}
	return holding, true
}

// mayFail: whether a condition may not hold. (That a version is *not* some number is not remembered.)
func (w world) mayFail(conditions [][2]int64) bool {
	for _, each := range conditions {
		it := w[each[0]]
		if (it.value == 0) != (each[1] == 0) || it.value != 0 && it.version != each[1] {
			return true
		}
	}
	return false
}

func (w world) apply(next *op) (world, bool) {
	for _, each := range next.KV.Then {
		w[each[0]].write(each[1])
	}
	if !next.Known {
		return w, true
	}
	for _, each := range next.KV.Told {
		it := &w[each[0]]
		if it.value == 0 {
			if each[1] < it.floor {
				return nil, false
			}
			it.floor = each[1]
		} else if !it.pin(each[1]) {
			return nil, false
		}
	}
	return w, true
}

func (all kvState) describe(part *partition) string {
	var worlds []string
	for _, each := range all {
		var items []string
		for i, it := range each {
			text := part.Keys[i] + " = " + part.texts[it.value]
			if it.value != 0 && it.version >= 0 {
				text += fmt.Sprintf(" at version %d", it.version)
			}
			items = append(items, text)
		}
		worlds = append(worlds, strings.Join(items, ", "))
	}
	return strings.Join(worlds, " or ")
}
