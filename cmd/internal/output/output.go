// Package output prints answers: tables and sentences for people, JSON for programs. Answers go to Out; notes, which a
// pipe should not see, go to Err. Control characters in what others wrote (a client's user agent, a table's name) never
// reach a terminal.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Printer prints one command's answers.
type Printer struct {
	Out   io.Writer
	Err   io.Writer
	JSON  bool // one document, or with a stream one object a line
	Quiet bool // no notes
	Color bool
}

// Document prints v as the one JSON document of a command.
func (p *Printer) Document(v any) error {
	enc := json.NewEncoder(p.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// Line prints v as one line of JSON, for commands that go on.
func (p *Printer) Line(v any) error {
	enc := json.NewEncoder(p.Out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// Textf prints a line for people to Out. It does nothing with -o json.
func (p *Printer) Textf(format string, args ...any) {
	if !p.JSON {
		_, _ = fmt.Fprintln(p.Out, Clean(fmt.Sprintf(format, args...)))
	}
}

// Notef prints a line to Err unless quiet.
func (p *Printer) Notef(format string, args ...any) {
	if !p.Quiet {
		_, _ = fmt.Fprintln(p.Err, Clean(fmt.Sprintf(format, args...)))
	}
}

// Answer prints v with -o json, and else what text prints.
func (p *Printer) Answer(v any, text func()) error {
	if p.JSON {
		return p.Document(v)
	}
	text()
	return nil
}

// Style is a way to emphasise, by its SGR parameter (ECMA-48 §8.3.117).
type Style string

// The styles in use.
const (
	Bold   Style = "1"
	Faint  Style = "2"
	Red    Style = "31"
	Green  Style = "32"
	Yellow Style = "33"
	Cyan   Style = "36"

	reset Style = "0"
)

func (s Style) sequence() string { return "\x1b[" + string(s) + "m" }

// Paint emphasises s where colours are wanted.
func (p *Printer) Paint(style Style, s string) string {
	if !p.Color || s == "" {
		return s
	}
	return style.sequence() + s + reset.sequence()
}

// Clean makes control characters visible, save newline, tab and our own SGR sequences, so that a name in a table can
// neither move the cursor nor set the terminal's title.
func Clean(s string) string {
	if !strings.ContainsFunc(s, unsafe) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\x1b' && isSGR(s[i:]):
			b.WriteRune(r)
		case unsafe(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// unsafe: control characters, and the format characters that turn the direction of text.
func unsafe(r rune) bool {
	return (unicode.IsControl(r) && r != '\n' && r != '\t') || unicode.Is(unicode.Bidi_Control, r)
}

// isSGR accepts the sequences that Paint makes, and no other: text could be hidden with one.
func isSGR(s string) bool {
	for _, style := range []Style{Bold, Faint, Red, Green, Yellow, Cyan, reset} {
		if strings.HasPrefix(s, style.sequence()) {
			return true
		}
	}
	return false
}
