package output

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"
)

func TestUnits(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"0 B": Bytes(0), "999 B": Bytes(999), "1.00 kB": Bytes(1000), "214 MB": Bytes(214e6), "1.00 GB": Bytes(999.9e6), "?": Bytes(-1),
		"1 234 567": Count(1234567), "-1 000": Count(-1000), "12": Count(12),
		"0.4 ms": Millis(0.4), "8 ms": Millis(8), "42 ms": Millis(41.7), "2.13 s": Millis(2130),
		"2m10s": ETA(130), "unknown": ETA(-1), "3h05m": Duration(3*time.Hour + 5*time.Minute), "2d4h": Duration(52 * time.Hour),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := Printer{Out: &b}
	p.Table([]string{"name", ">rows"}, [][]string{{"a", "1"}, {"bcd", "1 000"}})
	if want := "NAME   ROWS\na         1\nbcd   1 000\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	p.JSON = true
	b.Reset()
	p.Table([]string{"name"}, nil)
	if b.Len() != 0 {
		t.Errorf("a table was printed with -o json: %q", b.String())
	}
}

// Whatever a client calls itself, the terminal gets no control character of its making.
func TestCleanLeavesNoControl(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.StringOf(rapid.OneOf(rapid.Rune(), rapid.SampledFrom([]rune{'\x1b', '[', 'm', '3', '1', ']', '\x07', '\r', '\u202e', '\u009b'}))).Draw(rt, "s")
		got := Clean(s)
		rest := got
		for {
			i := strings.IndexByte(rest, '\x1b')
			if i < 0 {
				break
			}
			if !isSGR(rest[i:]) {
				rt.Fatalf("%q became %q", s, got)
			}
			rest = rest[i+1:]
		}
		for _, r := range got {
			if r != '\x1b' && r != '\n' && r != '\t' && (unicode.IsControl(r) || r == '\u202e') {
				rt.Fatalf("%q became %q", s, got)
			}
		}
	})
}

func TestParseBytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"500MB": 500e6, "1.5 GB": 15e8, "24kB": 24000, "1073741824": 1 << 30, "2TB": 2e12, "7 B": 7} {
		if n, err := ParseBytes(text); err != nil || n != want {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "MB", "-1GB", "1XB", "0", "1e30TB", "NaN", "1 G B B"} {
		if n, err := ParseBytes(text); err == nil {
			t.Errorf("%q is taken as %d", text, n)
		}
	}
}
