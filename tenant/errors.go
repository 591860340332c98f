package tenant

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an Error is. It alone decides the HTTP status and the exit code.
type Kind int

// The kinds, with the exit code of the command line and the HTTP status of the API.
const (
	KindInternal     Kind = iota // 1, 500: it failed
	KindInvalid                  // 2, 422: the request or the command line is wrong
	KindRefused                  // 3, 409: a check refused (preflight, verification, guard)
	KindUnauthorised             // 4, 401/403: code or key
	KindNotFound                 // 5, 404
	KindConflict                 // 6, 409: wrong state
	KindTimeout                  // 7, 504: timed out with the former state restored
	KindUnavailable              // 1, 503: something that is needed cannot be reached
)

var kindNames = [...]string{"internal", "invalid", "refused", "unauthorised", "not_found", "conflict", "timeout", "unavailable"}

// String names the kind as problem documents do.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "internal"
	}
	return kindNames[k]
}

// KindOf finds the kind of a name; unknown names are KindInternal.
func KindOf(name string) Kind {
	for i, n := range kindNames {
		if n == name {
			return Kind(i)
		}
	}
	return KindInternal
}

// ExitCode is the exit code that the command line's contract gives to the kind.
func (k Kind) ExitCode() int {
	switch k {
	case KindInvalid:
		return 2
	case KindRefused:
		return 3
	case KindUnauthorised:
		return 4
	case KindNotFound:
		return 5
	case KindConflict:
		return 6
	case KindTimeout:
		return 7
	}
	return 1
}

// HTTPStatus is the status that the API answers with.
func (k Kind) HTTPStatus() int {
	switch k {
	case KindInvalid:
		return 422
	case KindRefused, KindConflict:
		return 409
	case KindUnauthorised:
		return 403
	case KindNotFound:
		return 404
	case KindTimeout:
		return 504
	case KindUnavailable:
		return 503
	}
	return 500
}

// Error is a failure as a person should read it: what failed and why (Message), and what to do (Hint).
// Code is stable and machine-readable, in kebab-case. Neither text ever contains a secret.
type Error struct {
	Kind     Kind
	Code     string
	Message  string
	Hint     string
	Findings []Finding // what a check found, for KindRefused
	Err      error     // the cause, if any
}

// Error implements error: the message and, when there is one, its cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is matches any Error of the same Code, so that sentinels can be compared with errors.Is.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code
}

// Errorf makes an Error from a format; a trailing %w becomes part of the message.
func Errorf(kind Kind, code, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Code: code, Message: err.Error(), Hint: hint, Err: nil}
}

// AsError finds the Error in a chain, or wraps any other error as KindInternal.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindInternal, Code: "internal", Message: err.Error()}
}

// Severity of a finding.
type Severity string

// Severities: a blocking finding refuses; a warning needs attention; a notice informs.
const (
	Blocking Severity = "blocking"
	Warning  Severity = "warning"
	Notice   Severity = "notice"
)

// Finding is one thing that a check found. ID ("CODE:OBJECT") is what --accept takes.
type Finding struct {
	Severity   Severity `json:"severity"`
	Code       string   `json:"code"`                 // stable, kebab-case: "constraint-without-realm"
	Object     string   `json:"object,omitempty"`     // "public.accounts", "public.accounts_pkey", "shard eu-1"
	Message    string   `json:"message"`              // what is wrong
	Remedy     string   `json:"remedy,omitempty"`     // what to do
	Acceptable bool     `json:"acceptable,omitempty"` // may be accepted by name
	Fixable    bool     `json:"fixable,omitempty"`    // --fix-identity mends it
	Accepted   bool     `json:"accepted,omitempty"`   // was accepted by name
}

// ID is the finding's name for --accept: "code:object".
func (f Finding) ID() string { return f.Code + ":" + f.Object }

// Blocks reports whether any finding refuses: blocking and not accepted.
func Blocks(findings []Finding) bool {
	for _, f := range findings {
		if f.Severity == Blocking && !f.Accepted {
			return true
		}
	}
	return false
}
