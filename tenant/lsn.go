package tenant

import (
	"database/sql/driver"
	"fmt"
)

// LSN is a position in a Postgres write-ahead log, in bytes. Its text form is Postgres' own pg_lsn ("16/B374D848").
type LSN uint64

// ParseLSN reads the text form of pg_lsn.
func ParseLSN(s string) (LSN, error) {
	var hi, lo uint32
	var rest string
	n, _ := fmt.Sscanf(s, "%X/%X%s", &hi, &lo, &rest)
	if n != 2 {
		return 0, &Error{Kind: KindInvalid, Code: "bad-lsn", Message: fmt.Sprintf("%q is not a WAL position", s), Hint: "write it as Postgres does, for example 16/B374D848"}
	}
	return LSN(uint64(hi)<<32 | uint64(lo)), nil
}

// String returns the text form of pg_lsn.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText implements encoding.TextMarshaler.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *LSN) UnmarshalText(b []byte) error {
	v, err := ParseLSN(string(b))
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// Scan implements sql.Scanner for pg_lsn columns read as text. NULL becomes 0, which no WAL record has.
func (l *LSN) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*l = 0
		return nil
	case string:
		return l.UnmarshalText([]byte(v))
	case []byte:
		return l.UnmarshalText(v)
	}
	return fmt.Errorf("scan %T as a WAL position", src)
}

// Value implements driver.Valuer: the text form, to be cast with ::pg_lsn.
func (l LSN) Value() (driver.Value, error) { return l.String(), nil }
