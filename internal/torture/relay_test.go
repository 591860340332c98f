package torture

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// One session's COMMIT is late, lost, or not answered; another's passes.
func TestRelay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	direct := pgcluster.NewDatabase(t, cluster)
	r, through, err := NewRelay(direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	look := dial(t, direct)
	if _, err := look.Exec(ctx, `CREATE TABLE done (n int)`); err != nil {
		t.Fatal(err)
	}
	there := func(n int) bool {
		var is bool
		if err := look.QueryRow(ctx, `SELECT EXISTS (SELECT FROM done WHERE n = $1)`, n).Scan(&is); err != nil {
			t.Fatal(err)
		}
		return is
	}
	session := func(app string) *pgx.Conn {
		return dial(t, tenant.DSN(through.Reveal()+"&application_name="+app))
	}
	commit := func(c *pgx.Conn, n int) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO done VALUES ($1)`, n)
			return err
		})
	}
	late := &Mishap{App: "one", Text: "commit", Do: Late}
	r.Set(late)
	if err := commit(session("other"), 1); err != nil || !there(1) {
		t.Fatalf("another session: %v", err)
	}
	done, one := make(chan error, 1), session("one-of-them")
	go func() { done <- commit(one, 2) }()
	<-late.Hit()
	if there(2) {
		t.Error("a message that is late has arrived")
	}
	// Also when its sender is gone.
	_ = one.PgConn().Conn().Close()
	if err := <-done; err == nil {
		t.Error("a commit succeeded whose message is late")
	}
	<-one.PgConn().CleanupDone() // the driver asks for the statement to be cancelled, which must not be the COMMIT
	late.Release()
	for limit := time.Now().Add(10 * time.Second); !there(2); pause(ctx, 5*time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("a late message never arrived")
		}
	}

	lost := &Mishap{App: "one", Text: "commit", Do: Lost}
	r.Set(lost)
	if err := commit(session("one"), 3); err == nil || there(3) {
		t.Errorf("a message that was lost: %v", err)
	}
	cut := &Mishap{App: "one", Text: "commit", Do: Unanswered}
	r.Set(cut)
	err = commit(session("one"), 4)
	<-cut.Hit()
	for limit := time.Now().Add(10 * time.Second); !there(4) && time.Now().Before(limit); {
		pause(context.WithoutCancel(ctx), 5*time.Millisecond)
	}
	if err == nil || !there(4) {
		t.Errorf("an answer that was lost: %v, done: %v", err, there(4))
	}
}
