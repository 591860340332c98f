package halfopen_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// TestCopyWhoseFirstRowComesLate has nothing to send for many times the patience, as a shard that owns few of a table's
// rows.
func TestCopyWhoseFirstRowComesLate(t *testing.T) {
	t.Parallel()
	c := connect(t, pgcluster.NewDatabase(t, cluster), "")
	if _, err := c.Exec(t.Context(), "CREATE TABLE fed (id int)"); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		<-time.After(2500 * time.Millisecond)
		_, _ = io.WriteString(pw, "2\n")
		_ = pw.Close()
	}()
	tag, err := c.PgConn().CopyFrom(t.Context(), pr, "COPY fed FROM STDIN")
	if err != nil || tag.RowsAffected() != 1 {
		t.Errorf("%v, %v", tag, err)
	}
}

// TestNotificationsThatComeSeldom waits for the next one for many times the patience.
func TestNotificationsThatComeSeldom(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	c, other := connect(t, dsn, ""), connect(t, dsn, "")
	if _, err := c.Exec(t.Context(), "LISTEN news"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), "NOTIFY news"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitForNotification(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	if _, err := c.WaitForNotification(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting ended with %v", err)
	}
}
