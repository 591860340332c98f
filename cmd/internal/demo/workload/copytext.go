package workload

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// copyFlush is how many bytes are gathered before they are sent: enough that a round trip does not matter.
const copyFlush = 1 << 20

// copier writes rows of one table in COPY's text format (Postgres manual, COPY, "Text Format"). Each flush is a COPY of
// its own; the caller's transaction holds them together.
type copier struct {
	ctx  context.Context
	conn *pgx.Conn
	into string // "table (columns)"
	buf  bytes.Buffer
	rows int64
}

func newCopier(ctx context.Context, conn *pgx.Conn, into string) *copier {
	return &copier{ctx: ctx, conn: conn, into: into}
}

// row adds one row.
func (c *copier) row(fields ...any) error {
	for i, field := range fields {
		if i > 0 {
			c.buf.WriteByte('\t')
		}
		if err := c.field(field); err != nil {
			return err
		}
	}
	c.buf.WriteByte('\n')
	c.rows++
	if c.buf.Len() < copyFlush {
		return nil
	}
	return c.flush()
}

func (c *copier) field(field any) error {
	switch v := field.(type) {
	case nil:
		c.buf.WriteString(`\N`)
	case string:
		c.text(v)
	case int:
		c.buf.WriteString(strconv.Itoa(v))
	case cents:
		c.buf.WriteString(v.String())
	case float64:
		c.buf.WriteString(strconv.FormatFloat(v, 'g', -1, 64))
	case []byte:
		c.buf.WriteString(`\\x`)
		c.buf.WriteString(hex.EncodeToString(v))
	case time.Time:
		c.buf.WriteString(v.UTC().Format("2006-01-02 15:04:05.999999+00"))
	default:
		return fmt.Errorf("copy into %s: no text form for %T", c.into, field)
	}
	return nil
}

// text escapes what COPY's text format gives a meaning.
func (c *copier) text(s string) {
	for i := range len(s) {
		switch b := s[i]; b {
		case '\\':
			c.buf.WriteString(`\\`)
		case '\n':
			c.buf.WriteString(`\n`)
		case '\r':
			c.buf.WriteString(`\r`)
		case '\t':
			c.buf.WriteString(`\t`)
		default:
			c.buf.WriteByte(b)
		}
	}
}

// flush sends what was gathered.
func (c *copier) flush() error {
	if c.buf.Len() == 0 {
		return nil
	}
	if _, err := c.conn.PgConn().CopyFrom(c.ctx, &c.buf, "COPY "+c.into+" FROM STDIN"); err != nil {
		return fmt.Errorf("copy into %s: %w", c.into, err)
	}
	c.buf.Reset()
	return nil
}
