package goproxy

import (
	"fmt"
	"net/http"
	"runtime/debug"
)

// Panic is what Recover makes of a panic: the cause of an *Error with status 500.
type Panic struct {
	Value any
	Stack []byte // of the goroutine that panicked
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// Recover makes a panic of the function that defers it that function's error. It is for
// what reads the bytes of strangers, so that none of them ends a process.
func Recover(err *error) {
	if v := recover(); v != nil {
		p := &Panic{v, debug.Stack()}
		*err = &Error{Status: http.StatusInternalServerError, Message: "a bug in athensctl: " + p.Error(), Err: p}
	}
}
