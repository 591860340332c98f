package gate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Timeouts of an attempt, each with its reason.
const (
	// prelockTimeout bounds the prelock. It blocks no writer, so it may be long: an autovacuum gives way only after the
	// server's deadlock_timeout (1 s by default), one table after the other.
	prelockTimeout = 15 * time.Second
	// firstLockTry and maxLockTry bound one LOCK statement: while it waits, writers queue behind it. Half a second is
	// where clients begin to notice.
	firstLockTry = 100 * time.Millisecond
	maxLockTry   = 400 * time.Millisecond
	// lockPause is the least time between two tries, for the writers that queued. A try never takes more than half of
	// the time: the pause is also at least as long as the try was.
	lockPause = 50 * time.Millisecond
	// watchEvery is how often the second session looks at who blocks a LOCK statement.
	watchEvery = 30 * time.Millisecond
	// openTransactionBeforeFence ends the fence session's transaction if its coordinator vanishes before the fence. It
	// holds no lock then that a writer waits for.
	openTransactionBeforeFence = 60 * time.Second
)

// Config is what an attempt at the source needs.
type Config struct {
	Source  tenant.DSN
	Attempt string // id, also the marker's
	Epoch   int64  // e: the gate's epoch before
	NewURL  string // the fence's hint
}

// Attempt is one try to move write authority from the source to the target: one transaction on one session (the fence),
// and a second session for the marker and for looking at who blocks. Its methods are called in order, by one goroutine:
// Open, Prelock, Fence, then Marker and CreateTriggers (these two may run side by side), then Commit or Rollback, at last
// Close. Between Prelock and Commit the session is never pinged: a vanished coordinator's fence falls by itself.
type Attempt struct {
	cfg    Config
	fence  *pgx.Conn
	tx     pgx.Tx // the fence's transaction, for what must commit with the decision
	second *pgx.Conn
	pid    uint32

	tables     []Table
	deadline   time.Time
	tries      int
	triggers   bool           // the fence's triggers are made
	ddl        bool           // our role may make event triggers
	looked     bool           // LastLook found nothing
	replicated bool           // every visible standby had the COMMIT
	heat       map[uint32]int // how often writers were seen holding a table
	pairs      []pair         // the order in which writers were seen taking tables

	mu       sync.Mutex
	culprits []Culprit
}

// Open opens and warms the two sessions.
func Open(ctx context.Context, cfg Config) (*Attempt, error) {
	a := &Attempt{cfg: cfg}
	var err error
	if a.fence, err = connect(ctx, cfg.Source, "fence"); err != nil {
		return nil, err
	}
	if a.second, err = connect(ctx, cfg.Source, "second"); err != nil {
		a.Close(ctx)
		return nil, err
	}
	a.pid = a.fence.PgConn().PID()
	// The first use of the marker's statement and of the blockers' query would read the catalogue inside the pause.
	if _, err := a.blockers(ctx); err != nil {
		a.Close(ctx)
		return nil, err
	}
	if a.ddl, err = PermitsDDLFence(ctx, a.second); err != nil {
		a.Close(ctx)
		return nil, err
	}
	if _, err := a.second.Exec(ctx, `SELECT count(*) FROM rehome.marker WHERE attempt = $1`, cfg.Attempt); err != nil {
		a.Close(ctx)
		return nil, fmt.Errorf("look at the markers: %w", err)
	}
	return a, nil
}

// Tx is the fence's transaction after Prelock: for what must commit with the decision. It is ended by Commit or Rollback
// of the Attempt and never by its own. Touch follows whatever is done in it.
func (a *Attempt) Tx() pgx.Tx { return a.tx }

// Second is the other session, outside the transaction.
func (a *Attempt) Second() *pgx.Conn { return a.second }

// Tables lists what is fenced.
func (a *Attempt) Tables() []Table { return a.tables }

// Tries says how many LOCK statements the fence took.
func (a *Attempt) Tries() int { return a.tries }

// Prelock begins the transaction and takes SHARE UPDATE EXCLUSIVE on every table: it blocks no writer, makes autovacuum
// give way and keeps it out. It also keeps a rival attempt out.
func (a *Attempt) Prelock(ctx context.Context) error {
	tx, err := a.fence.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return fmt.Errorf("begin the fence's transaction: %w", err)
	}
	a.tx = tx
	if err := commitDurably(ctx, a.fence); err != nil {
		return err
	}
	if err := setLocal(ctx, a.fence, "idle_in_transaction_session_timeout", openTransactionBeforeFence); err != nil {
		return err
	}
	limit := time.Now().Add(prelockTimeout)
	a.deadline = limit
	for {
		tables, err := Tables(ctx, a.fence)
		if err != nil {
			return err
		}
		a.tables = owned(tables)
		retry, err := a.lockOnce(ctx, "SHARE UPDATE EXCLUSIVE", time.Until(limit), "")
		if err == nil && len(a.tables) > 0 {
			// What follows belongs to the transaction itself: by the gate's xmin its own statements are recognised.
			if _, err := script(ctx, a.fence, "RELEASE SAVEPOINT rehome_lock"); err != nil {
				return fmt.Errorf("release the savepoint: %w", err)
			}
		}
		if err == nil {
			return a.feelFor(ctx, heatLooks)
		}
		if !retry || time.Until(limit) <= 0 {
			return fmt.Errorf("prelock the tables: %w", err)
		}
	}
}

// Fence sets the gate to (e+1, target) and locks every table against writers, until deadline at most. Until Commit both
// can still be taken back. Readers are not stopped; writers wait. ErrGateMoved if the gate is not (e, source);
// ErrNotFenced past the deadline, and Culprits then names who was in the way.
func (a *Attempt) Fence(ctx context.Context, deadline time.Time) error {
	a.deadline = deadline
	results, err := script(ctx, a.fence, a.arm()+setSQL("statement_timeout", time.Until(deadline))+
		fmt.Sprintf(`UPDATE rehome.gate SET epoch = epoch + 1, side = 'target', attempt = %s, new_url = %s, changed_at = clock_timestamp()
		WHERE epoch = %d AND side = 'source'`, tenant.QuoteLiteral(a.cfg.Attempt), tenant.QuoteLiteral(a.cfg.NewURL), a.cfg.Epoch))
	if hasCode(err, "57014") {
		return ErrNotFenced
	}
	if err != nil {
		return fmt.Errorf("set the gate: %w", err)
	}
	if results[len(results)-1].CommandTag.RowsAffected() == 0 {
		return ErrGateMoved
	}
	return a.lockTables(ctx, deadline)
}

// lockTables locks every table against writers, until deadline at most, and never starves them.
func (a *Attempt) lockTables(ctx context.Context, deadline time.Time) error {
	for try := firstLockTry; ; try = min(2*try, maxLockTry) {
		rest := time.Until(deadline)
		if rest <= 0 {
			return ErrNotFenced
		}
		a.order()
		a.tries++
		began := time.Now()
		retry, err := a.lockOnce(ctx, "SHARE ROW EXCLUSIVE", min(try, rest), a.arm())
		if err == nil {
			return nil
		}
		if !retry {
			return fmt.Errorf("lock the tables: %w", err)
		}
		took := max(lockPause, time.Since(began))
		pause := time.Now().Add(min(took+jitter(took/2), max(time.Until(deadline), 0)))
		if err := a.feelFor(ctx, 2); err != nil {
			return err
		}
		if err := sleep(ctx, max(time.Until(pause), 0)); err != nil {
			return err
		}
		if errors.Is(err, errRelist) {
			tables, err := Tables(ctx, a.fence)
			if err != nil {
				return err
			}
			a.tables = owned(tables)
		}
	}
}

// errRelist says that the list of tables was not true any more once they were locked.
var errRelist = errors.New("the tables changed while they were being locked")

// lockOnce tries one LOCK statement under a savepoint, and lists the tables behind it, in one round trip. The list must be
// what was locked. After the lock, then is run. If it reports retry, nothing of the try is held any more.
//
// The savepoint and what undoes the try have the time limit of the pause, with at least maxLockTry: a busy server may need more than
// a try's for the savepoint alone, and without it there is nothing to go back to.
func (a *Attempt) lockOnce(ctx context.Context, mode string, timeout time.Duration, then string) (retry bool, err error) {
	if len(a.tables) == 0 {
		return false, nil
	}
	stop := a.watch(ctx)
	whole := setSQL("statement_timeout", max(time.Until(a.deadline), maxLockTry))
	results, err := script(ctx, a.fence, whole+"SAVEPOINT rehome_lock;\n"+setSQL("statement_timeout", timeout)+lockSQL(a.tables, mode)+";\n"+whole+then+listTables)
	stop()
	switch {
	case hasCode(err, "57014", "55P03", "40P01"): // timed out, deadlock
		err = fmt.Errorf("not within %s", timeout.Round(time.Millisecond))
		retry = true
	case hasCode(err, "42P01", "3F000"): // dropped or renamed since it was listed
		err, retry = errRelist, true
	case err != nil:
		return false, err
	default:
		now, err := tablesOf(results[len(results)-1])
		if err != nil {
			return false, err
		}
		if now = owned(now); sameTables(a.tables, now) {
			a.tables = now // with the triggers that are there
			return false, nil
		}
		retry = true
	}
	// Released, too: else the next try's savepoint would lie within it, and what follows belong to it.
	if _, undo := script(ctx, a.fence, "ROLLBACK TO SAVEPOINT rehome_lock;\nRELEASE SAVEPOINT rehome_lock"); undo != nil {
		return false, fmt.Errorf("roll back to the savepoint: %w", undo)
	}
	if err == nil {
		err = errRelist
	}
	return retry, err
}

// arm is the statement that sets what is left of the pause as the time after which the server ends the transaction of a
// silent coordinator. The server counts from the last statement.
func (a *Attempt) arm() string {
	return setSQL("idle_in_transaction_session_timeout", time.Until(a.deadline))
}

// Touch arms the fence's own end anew, after a step on its session: the server counts from the last statement.
func (a *Attempt) Touch(ctx context.Context) error { return a.Script(ctx, "") }

func (a *Attempt) armed(ctx context.Context) error { return a.Touch(ctx) }

// Script runs statements on the fence's session, in one round trip, and arms the fence's own end anew.
func (a *Attempt) Script(ctx context.Context, sql string) error {
	_, err := script(ctx, a.fence, setSQL("statement_timeout", time.Until(a.deadline))+sql+a.arm())
	return err
}

// Marker commits the marker, by the second session.
func (a *Attempt) Marker(ctx context.Context) error {
	return WriteMarker(ctx, a.second, a.cfg.Attempt, MarkCutover)
}

// CreateTriggers makes the fence's triggers in the fence's transaction, and the event triggers where permitted. Nobody but
// this transaction sees them before the decision.
func (a *Attempt) CreateTriggers(ctx context.Context) error {
	sql := closeSQL(a.tables)
	if a.ddl {
		sql += closeDDLSQL()
	}
	if err := a.Script(ctx, sql); err != nil {
		return fmt.Errorf("create the fence's triggers: %w", err)
	}
	a.triggers = true
	return nil
}

// LastLook refuses with ErrTablesChanged if a table appeared behind the fence, or with ErrNotFenced past the deadline.
func (a *Attempt) LastLook(ctx context.Context) error {
	// By the second session: the first would have to read its catalogue anew, after all those triggers (0.2 s for 1,000
	// tables). That their fences stand CreateTriggers has seen to.
	now, err := Tables(ctx, a.second)
	if err != nil {
		return err
	}
	if !a.triggers {
		return errors.New("commit the fence: its triggers are not made")
	}
	if !sameTables(a.tables, owned(now)) {
		return ErrTablesChanged
	}
	if time.Until(a.deadline) <= 0 {
		return ErrNotFenced
	}
	a.looked = true
	return nil
}

// Commit is the decision: gate and triggers together, after a last look whose errors are LastLook's, unless there was one
// already. Any other error means that the outcome is unknown, and Resolve must find it out.
func (a *Attempt) Commit(ctx context.Context) error {
	if !a.looked {
		if err := a.LastLook(ctx); err != nil {
			return err
		}
	}
	if time.Until(a.deadline) <= 0 {
		return ErrNotFenced
	}
	// A statement timeout must not end the wait for a synchronous standby halfway.
	// The look at the standbys comes along, so that as a rule nobody has to ask for it while all wait.
	results, err := script(ctx, a.fence, "SET LOCAL statement_timeout = 0; COMMIT; "+standbysSQL("pg_current_wal_insert_lsn()"))
	if len(results) > 1 && results[1].Err == nil && results[1].CommandTag.String() == "COMMIT" {
		if err == nil && len(results[2].Rows) == 1 && string(results[2].Rows[0][1]) == "0" {
			a.replicated = true
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("commit the fence: %w", err)
	}
	return ErrNotCommitted // an aborted transaction answers ROLLBACK, without an error
}

// Replicated reports whether, when the COMMIT was answered, every visible standby had it. False: WaitStandbys tells.
func (a *Attempt) Replicated() bool { return a.replicated }

// Rollback takes everything back: writers that waited go on. It also works when ctx has ended. A broken session is
// rolled back by the server.
func (a *Attempt) Rollback(ctx context.Context) {
	if a.fence == nil || a.fence.IsClosed() || a.fence.PgConn().TxStatus() == 'I' {
		return
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	_, _ = a.fence.Exec(undo, "ROLLBACK", pgx.QueryExecModeSimpleProtocol) // Resolve learns the outcome, whatever it was
}

// Close ends the sessions, and with them a transaction that is still open.
func (a *Attempt) Close(ctx context.Context) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for _, c := range []*pgx.Conn{a.fence, a.second} {
		if c != nil {
			_ = c.Close(end) // nothing is left to save
		}
	}
}

// Abandon leaves the sessions as a dying process does: with cut, the sockets close without a word (kill -9); without, they
// stay open and silent (a lost network). For tests of what the server does then.
func (a *Attempt) Abandon(cut bool) {
	for _, c := range []*pgx.Conn{a.fence, a.second} {
		if c != nil && cut {
			_ = c.PgConn().Conn().Close() // it is what a death does
		}
	}
}
