// Package tap writes what runtimetest finds, as the Test Anything Protocol has it: no more of
// github.com/mndrix/tap-go than runtimetest asks for, which Debian doesn't have.
package tap

import (
	"encoding/json"
	"fmt"
)

// T counts what was found.
type T struct {
	number int
	todo   bool
}

// New has found nothing yet.
func New() *T { return &T{} }

// Header comes first; without a count the plan comes last.
func (t *T) Header(count int) {
	fmt.Println("TAP version 13")
	if count > 0 {
		fmt.Printf("1..%d\n", count)
	}
}

// AutoPlan tells how many findings there were.
func (t *T) AutoPlan() { fmt.Printf("1..%d\n", t.number) }

// Ok tells one finding.
func (t *T) Ok(good bool, text string) {
	t.number++
	word, mark := "ok", "-"
	if !good {
		word = "not ok"
	}
	if t.todo {
		mark = "# TODO"
	}
	t.todo = false
	fmt.Printf("%s %d %s %s\n", word, t.number, mark, text)
}

// Pass and Fail tell what needs no condition.
func (t *T) Pass(text string) { t.Ok(true, text) }

// Fail is Pass's opposite.
func (t *T) Fail(text string) { t.Ok(false, text) }

// Skip tells of what could not be looked at.
func (t *T) Skip(count int, text string) {
	for ; count > 0; count-- {
		t.number++
		fmt.Printf("ok %d # SKIP %s\n", t.number, text)
	}
}

// Todo has the next finding be one that runtimetest itself doesn't know how to make yet.
func (t *T) Todo() *T {
	t.todo = true
	return t
}

// YAML tells more of the last finding.
func (t *T) YAML(value interface{}) error {
	raw, err := json.Marshal(value)
	if err == nil {
		fmt.Printf("  ---\n  %s\n  ...\n", raw)
	}
	return err
}
