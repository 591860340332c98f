package snapshot

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// message is one as a server sends it.
func message(kind byte, body string) string {
	n := len(body) + 4
	return string([]byte{kind, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + body
}

// errEnded stands for a server's word that the session is over.
var errEnded = errors.New("the session is over")

// TestWireRows has a COPY's messages come in pieces of every size, and streams that are not what they should be.
func TestWireRows(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*readLarge+11)
	begin := message('H', "\x00\x00\x01\x00\x00")
	aside := message('S', "TimeZone\x00UTC\x00") + message('N', "SNOTICE\x00Mhello\x00\x00") + message('A', "\x00\x00\x00\x01news\x00\x00")
	row, end := message('d', "one\n"), message('c', "")+message('C', "COPY 2\x00")+message('Z', "T")
	for _, tt := range []struct {
		name, stream, rows string
		want               error // nil: none
	}{
		{"rows", begin + row + message('d', long+"\n") + message('N', "SNOTICE\x00Mhello\x00\x00") + end, "one\n" + long + "\n", nil},
		{"no rows", begin + end, "", nil},
		{"empty message", begin + message('d', "") + row + end, "one\n", nil},
		{"cut after a row", begin + row, "one\n", io.ErrUnexpectedEOF},
		{"cut in a row", begin + row + row[:7], "one\n", io.ErrUnexpectedEOF},
		{"cut before ReadyForQuery", begin + row + message('c', "") + message('C', "COPY 1\x00"), "one\n", io.ErrUnexpectedEOF},
		{"another message", begin + row + message('D', "") + end, "one\n", errOutOfStep},
		{"bad length", begin + "d\x00\x00\x00\x03" + end, "", errOutOfStep},
		{"notices follow", begin + row + end + aside, "one\n", nil},
		{"the session's end follows", begin + row + end + aside + message('E', "SFATAL\x00VFATAL\x00C57P01\x00Mbye\x00\x00"), "one\n", errEnded},
		{"something follows", begin + row + end + row, "one\n", errOutOfStep},
	} {
		for _, piece := range []int{1, 7, 8192, 1 << 20} {
			if piece == 1 && len(tt.stream) > 1000 {
				continue
			}
			server, client := net.Pipe()
			go func() {
				defer func() { _ = server.Close() }()
				for b := []byte(tt.stream); len(b) > 0; {
					n := min(piece, len(b))
					if _, err := server.Write(b[:n]); err != nil {
						return
					}
					b = b[n:]
				}
			}()
			w := &wire{conn: client, buf: make([]byte, readSmall)}
			var got bytes.Buffer
			err := w.rows(&got)
			_ = client.Close()
			if strings.HasSuffix(tt.name, "follows") && piece < len(tt.stream) {
				continue // what comes after the end is not looked for
			}
			if pe := new(pgconn.PgError); tt.want == errEnded && errors.As(err, &pe) && pe.Code == "57P01" { //nolint:errorlint // of the table
				err = errEnded
			}
			if tt.want == nil && err == nil && w.r != w.w {
				t.Errorf("%s, pieces of %d: %d bytes are left", tt.name, piece, w.w-w.r)
			}
			if !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
				t.Errorf("%s, pieces of %d: error %v, want %v", tt.name, piece, err, tt.want)
			}
			if !strings.HasPrefix(tt.rows, got.String()) || (tt.want == nil && got.String() != tt.rows) {
				t.Errorf("%s, pieces of %d: %d bytes of rows, want %d", tt.name, piece, got.Len(), len(tt.rows))
			}
			if tt.want == nil && w.tag.RowsAffected() != 2 {
				t.Errorf("%s: %d rows", tt.name, w.tag.RowsAffected())
			}
		}
	}
}
