// Checks histories for linearizability with porcupine, as a WASI program: a question on standard input, the verdict on
// standard output, both JSON. streams/verify/checker.py asks; README.md there describes the models.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

// question is what is asked: every partition must be linearizable by itself.
type question struct {
	TimeoutMs   int64        `json:"timeout_ms"`
	MemoryBytes int64        `json:"memory_bytes"`
	HTML        bool         `json:"html"`
	Texts       []string     `json:"texts"` // of values; 0 is "absent"
	Partitions  []*partition `json:"partitions"`
}

// partition is operations on keys that only these operations touch.
type partition struct {
	Model          string   `json:"model"` // register, kv or book
	Keys           []string `json:"keys"`
	Orders         []string `json:"orders"` // names of orders, by number
	PriceDigits    int      `json:"price_digits"`
	QuantityDigits int      `json:"quantity_digits"`
	Ops            []*op    `json:"ops"`
	texts          []string
}

// op is one operation; which fields count depends on F. Known: it was answered; otherwise it may happen at any time
// after Call, or never.
type op struct {
	F       string  `json:"f"`
	Client  int     `json:"client"`
	Call    int64   `json:"call"`
	Return  int64   `json:"return"`
	Known   bool    `json:"known"`
	Text    string  `json:"text"`
	Value   int     `json:"value"`
	Old     int     `json:"old"`
	KV      *kvOp   `json:"kv"`
	Book    *bookOp `json:"book"`
	at      int     // its place in the partition
	part    *partition
	unknown *op // the same with an unknown outcome, made when first needed
}

// answer is the verdict: "ok", "illegal" or "unknown". The rest explains the second and third.
type answer struct {
	Verdict   string    `json:"verdict"`
	Partition int       `json:"partition"`
	Reason    string    `json:"reason,omitempty"`
	Culprit   int       `json:"culprit"` // the operation with whose answer the history stops being linearizable
	History   []int     `json:"history"` // the operations of the counterexample
	Placed    []int     `json:"placed"`  // a longest linearization of a part of them
	States    []string  `json:"states"`  // after the last of those
	State     string    `json:"state"`
	Blocked   []blocked `json:"blocked"` // answered operations that cannot follow there
	HTML      string    `json:"html,omitempty"`
}

type blocked struct {
	Op  int    `json:"op"`
	Why string `json:"why"`
}

func main() {
	var asked question
	if err := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20)).Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, "malformed question:", err)
		os.Exit(3)
	}
	debug.SetMemoryLimit(asked.MemoryBytes / 4 * 3)
	for _, part := range asked.Partitions {
		part.texts = asked.Texts
		for i, each := range part.Ops {
			each.at, each.part = i, part
		}
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	if err := json.NewEncoder(out).Encode(judge(&asked, time.Now())); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	if out.Flush() != nil {
		os.Exit(3)
	}
}
