package output

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes writes a size with three digits in decimal units, as disks and networks are sold: "214 MB".
func Bytes(n float64) string {
	if n < 0 || math.IsNaN(n) {
		return "?"
	}
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for n >= 999.5 && i < len(units)-1 {
		n /= 1000
		i++
	}
	switch {
	case i == 0 || n >= 99.95:
		return fmt.Sprintf("%.0f %s", n, units[i])
	case n >= 9.995:
		return fmt.Sprintf("%.1f %s", n, units[i])
	}
	return fmt.Sprintf("%.2f %s", n, units[i])
}

// ParseBytes reads a size as Bytes writes it: "500MB", "1.5 GB", or a plain number of bytes.
func ParseBytes(text string) (int64, error) {
	number := strings.TrimRight(text, "BkKMGTP ")
	factor := 1.0
	switch unit := strings.ToLower(strings.TrimSpace(text[len(number):])); unit {
	case "", "b":
	case "kb", "mb", "gb", "tb":
		factor = math.Pow(1000, float64(1+strings.IndexByte("kmgt", unit[0])))
	default:
		return 0, fmt.Errorf("%q is no size: write it as 500MB or 2GB", text)
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(n) || n < 1 || n*factor > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is no size: write it as 500MB or 2GB", text)
	}
	return int64(n * factor), nil
}

// Count writes a whole number with its thousands apart: "1 234 567".
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return sign + s
}

// Millis writes a duration given in milliseconds: "0.4 ms", "38 ms", "2.13 s".
func Millis(ms float64) string {
	switch {
	case ms < 10 && ms != math.Trunc(ms):
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	case ms < 60_000:
		return fmt.Sprintf("%.2f s", ms/1000)
	}
	return Duration(time.Duration(ms * float64(time.Millisecond)))
}

// Duration writes a long duration with its two largest units: "2m10s", "3h05m", "2d4h".
func Duration(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour && d%time.Minute == 0:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// ETA writes an estimate given in seconds; a negative one is unknown.
func ETA(seconds float64) string {
	if seconds < 0 || seconds > 1e8 {
		return "unknown"
	}
	return Duration(time.Duration(seconds * float64(time.Second)))
}

// Ago writes how long ago t was.
func Ago(t *time.Time, now time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	d := now.Sub(*t)
	if d < time.Second {
		return "now"
	}
	return Duration(d) + " ago"
}

// When writes a point in time in UTC, to the second.
func When(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
