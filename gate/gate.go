package gate

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// Side is which side may write, as a gate row says it.
type Side string

// Sides. A shard's gate is Closed until it first follows a decision.
const (
	SideSource Side = "source"
	SideTarget Side = "target"
	SideClosed Side = "closed"
)

// State is a gate row.
type State struct {
	Epoch   int64  `json:"epoch"`
	Side    Side   `json:"side"`
	Attempt string `json:"attempt,omitempty"` // who changed the side last
	NewURL  string `json:"new_url,omitempty"` // where the data went; the fence's hint
}

// Querier is satisfied by *pgx.Conn, pgx.Tx and *pgxpool.Pool.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const selectGate = `SELECT epoch, side, attempt, new_url FROM rehome.gate`

// ReadGate reads a gate row for people and for findings. It must not be used to learn the outcome of an attempt that may
// still be running: Resolve does that. ErrNoGate if nothing is installed.
func ReadGate(ctx context.Context, q Querier) (State, error) {
	var s State
	err := q.QueryRow(ctx, selectGate).Scan(&s.Epoch, &s.Side, &s.Attempt, &s.NewURL)
	if errors.Is(err, pgx.ErrNoRows) || hasCode(err, "42P01", "3F000") {
		return State{}, ErrNoGate
	}
	if err != nil {
		return State{}, fmt.Errorf("read the gate: %w", err)
	}
	return s, nil
}

// PassHash is what a gate row stores of a pass.
func PassHash(pass tenant.Secret) []byte {
	sum := sha256.Sum256([]byte(pass.Reveal()))
	return sum[:]
}

// SetPass lets a session through the fences of its database. The pass travels as a parameter, so that
// pg_stat_activity does not show it.
func SetPass(ctx context.Context, q Querier, pass tenant.Secret) error {
	if _, err := q.Exec(ctx, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal()); err != nil {
		return fmt.Errorf("set the session's pass: %w", err)
	}
	return nil
}

// Heartbeat writes a published row, so that an idle source's stream moves on and its slot does not hold WAL back.
func Heartbeat(ctx context.Context, q Querier, replication string) error {
	_, err := q.Exec(ctx, `INSERT INTO rehome.heartbeat AS h (replication, beat, at) VALUES ($1, 1, clock_timestamp())
		ON CONFLICT (replication) DO UPDATE SET beat = h.beat + 1, at = clock_timestamp()`, replication)
	if err != nil {
		return fmt.Errorf("write the heartbeat: %w", err)
	}
	return nil
}

// Kinds of markers.
const (
	MarkCutover  = "cutover"
	MarkRollback = "rollback"
)

// WriteMarker commits the marker of an attempt: the last row to replicate. The stream reports its position; a WAL
// position asked for here would not be the commit's. A second call for the same attempt and kind does nothing.
func WriteMarker(ctx context.Context, conn *pgx.Conn, attempt, kind string) error {
	// One round trip: writers wait.
	a, k := tenant.QuoteLiteral(attempt), tenant.QuoteLiteral(kind)
	results, err := script(ctx, conn, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n"+durableSQL+";\nINSERT INTO rehome.marker (id, attempt, kind, at) VALUES ("+
		a+" || ':' || "+k+", "+a+", "+k+", clock_timestamp()) ON CONFLICT (id) DO NOTHING;\nCOMMIT")
	if err == nil && results[len(results)-1].CommandTag.String() != "COMMIT" {
		err = ErrNotCommitted
	}
	if err != nil && !conn.IsClosed() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		_, _ = conn.Exec(undo, "ROLLBACK", pgx.QueryExecModeSimpleProtocol) // err is what counts
	}
	if err != nil {
		return fmt.Errorf("write the marker: %w", err)
	}
	return nil
}

// Raise moves a gate on from (e, source) to (to, source) without changing the side. It is needed when a shard's gate is
// ahead of a source's that was installed anew: the shard would not follow. ErrGateMoved if the gate was not (e, source).
func Raise(ctx context.Context, conn *pgx.Conn, e, to int64) (State, error) {
	if to <= e {
		return State{}, fmt.Errorf("raise the gate from epoch %d to %d: it only moves up", e, to)
	}
	s := State{Epoch: to, Side: SideSource}
	err := inTx(ctx, conn, func(tx pgx.Tx) error {
		if err := commitDurably(ctx, tx); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `UPDATE rehome.gate SET epoch = $2, changed_at = clock_timestamp() WHERE epoch = $1 AND side = 'source'`, e, to)
		if err == nil && tag.RowsAffected() == 0 {
			return ErrGateMoved
		}
		return err
	})
	if err != nil {
		return State{}, fmt.Errorf("raise the gate: %w", err)
	}
	return s, nil
}

// connectTimeout bounds opening a session: a source that does not answer within it counts as unreachable.
const connectTimeout = 10 * time.Second

// AppName begins the application_name of every session that this package opens.
const AppName = "rehome gate"

// connect opens a session. Its error never carries the connection string.
func connect(ctx context.Context, dsn tenant.DSN, role string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, tenant.Errorf(tenant.KindInvalid, "bad-dsn", "write it as postgres://user:password@host/database", "the connection string of %s cannot be read", dsn)
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.RuntimeParams["application_name"] = AppName + " " + role
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, &tenant.Error{Kind: tenant.KindUnavailable, Code: "unreachable", Message: "connect to " + dsn.String(), Hint: "see that the server runs and that the password is right", Err: err}
	}
	return conn, nil
}
