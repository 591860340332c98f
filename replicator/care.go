package replicator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// careEvery is how often the source is looked at: a few rows of small views, on a session of its own.
	careEvery = time.Second
	// carePatience bounds each look; a source that takes longer for it is in trouble.
	carePatience = 5 * time.Second
	// queryTimeout bounds the operator's query at the source. One that takes longer says: wait.
	queryTimeout = 2 * time.Second
	// careReconnect is the pause after a look that failed.
	careReconnect = 5 * time.Second
	// calmShare and calmLooks are the hysteresis: readers go on when what held them is below this share of its limit in so
	// many looks in a row.
	calmShare = 0.8
	calmLooks = 3
	// dangerShare of max_slot_wal_keep_size: another consumer whose slot has less room than this is about to be lost.
	dangerShare = 0.125
)

// cared runs fn while the source is looked after. What the care finds to be the end of the replication ends fn.
func (e *Engine) cared(ctx context.Context, fn func(context.Context) error) error {
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		err := e.care(wctx)
		if err != nil {
			cancel(err)
		}
		done <- err
	}()
	err := fn(wctx)
	cancel(nil)
	if found := <-done; found != nil && ctx.Err() == nil {
		return found
	}
	return err
}

// care looks after the source until the context ends. A look that fails is shown and tried again: what it would have
// found must not end the work. It returns only with what does.
func (e *Engine) care(ctx context.Context) error {
	w := watcher{e: e}
	defer func() { closeSoon(w.conn) }()
	defer e.throttle.hold("", time.Time{})
	for {
		every := careEvery
		if phase := e.State().Phase; phase != tenant.Created {
			err := w.look(ctx)
			if ctx.Err() != nil {
				return nil // ended on purpose
			}
			e.throttle.looked()
			if err != nil {
				if te, ok := errors.AsType[*tenant.Error](err); ok && strings.HasPrefix(te.Code, "slot-") {
					return te
				}
				w.failed(err)
				every = careReconnect
			}
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-e.throttle.kick:
		case <-t.C:
		}
		t.Stop()
	}
}

// watcher looks at the source on a session of its own.
type watcher struct {
	e        *Engine
	conn     *pgx.Conn
	forecast forecast
	lags     lags
	calm     int
	walHigh  bool
	care     tenant.Care
}

func (w *watcher) failed(err error) {
	closeSoon(w.conn)
	w.conn = nil
	w.care.CheckError = err.Error()
	w.e.throttle.see(w.care)
	w.e.log.Warn("look after the source", "error", err)
}

// look takes one look: at our own slot, and, while something is read in bulk, at who else depends on the source.
func (w *watcher) look(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, carePatience)
	defer cancel()
	if w.conn == nil {
		if w.conn, err = w.e.src.conn(ctx, "care"); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	w.care = tenant.Care{At: now, SlotLimit: -1, SlotSafe: -1, SlotLostSeconds: -1}
	state := w.e.State()
	if err := w.slot(ctx, state.Phase, now); err != nil {
		return err
	}
	reason := ""
	set := w.e.throttle.settings()
	verifying := w.e.throttle.busy()
	if !set.Off && (state.Phase == tenant.Copying || verifying) {
		others, err := w.others(ctx, now)
		if err != nil {
			return err
		}
		if verifying && state.Phase != tenant.Copying {
			others.ownSlot = w.e.slotWAL()
		}
		query, problem := "", others.blind
		if set.Query != "" {
			var failure error
			if query, failure = ask(ctx, w.conn, set.Query); failure != nil {
				if w.conn.IsClosed() {
					return failure
				}
				problem = failure.Error()
			}
		}
		w.care.CheckError = problem
		reason = judgeSource(set, others, query, w.e.throttle.care().Throttled != "")
	}
	w.e.throttle.see(w.care)
	w.decide(ctx, reason, now)
	return nil
}

// decide holds at once and lets go slowly.
func (w *watcher) decide(ctx context.Context, reason string, now time.Time) {
	held := w.e.throttle.care().Throttled
	if reason == "" && held != "" {
		if w.calm++; w.calm < calmLooks && !w.e.throttle.settings().Off && (w.e.State().Phase == tenant.Copying || w.e.throttle.busy()) {
			return
		}
	}
	w.calm = 0
	if !w.e.throttle.hold(reason, now) {
		return
	}
	if reason != "" {
		w.e.log.Info("reading from the source waits", "reason", reason)
		w.e.cfg.Journal.Note(ctx, "throttled", map[string]any{"reason": reason})
		return
	}
	w.e.log.Info("reading from the source goes on")
	w.e.cfg.Journal.Note(ctx, "throttled", map[string]any{"reason": "", "was": held})
}

// slot looks at the replication's own slot: that it is still ours and whole, and for how long.
func (w *watcher) slot(ctx context.Context, phase tenant.Phase, now time.Time) error {
	s, err := w.e.src.slotState(ctx, w.conn)
	if err != nil {
		return err
	}
	if phase == tenant.Preparing || phase == tenant.Created {
		return nil // it is being made
	}
	if err := w.e.checkSlot(s); err != nil {
		if oerr := w.e.checkOrigin(ctx); oerr != nil {
			return oerr // a server that was promoted or exchanged has no such slot either: that is said first
		}
		return err
	}
	if phase == tenant.Copying {
		// Nothing is acknowledged before the stream begins.
		w.e.mu.Lock()
		origin := w.e.origin
		w.e.mu.Unlock()
		if origin != nil && s.confirmed > origin.StartLSN {
			return stop("slot-ahead", "cancel the replication and start it again", "slot %s was acknowledged up to %s while the copy was under way, by others: it was made at %s", w.e.src.slot, s.confirmed, origin.StartLSN)
		}
	}
	w.e.stats.mu.Lock()
	w.e.stats.slotWAL, w.e.stats.head = s.wal(), max(s.current, w.e.stats.head)
	w.e.stats.mu.Unlock()
	w.forecast.add(walSample{at: now, current: s.current, restart: s.restart, safe: s.safe})
	w.care.SlotStatus, w.care.SlotLimit, w.care.SlotSafe, w.care.WALRate = s.status, s.limit, s.safe, w.forecast.rate()
	left, known := w.forecast.lostIn()
	if known {
		w.care.SlotLostSeconds = left.Seconds()
	}
	w.warn(ctx, phase, s, left, known)
	return nil
}

// warn says what threatens and what helps. Holding the copy back would not: the slot stands still until it is done.
func (w *watcher) warn(ctx context.Context, phase tenant.Phase, s slotState, left time.Duration, known bool) {
	helps := "find out why the shards are behind (rehome replication-progress)"
	if phase == tenant.Copying {
		helps = "let the copy end sooner (rehome throttle --copy-jobs, --max-rate, --off)"
	}
	if known && left <= lossLook {
		when := fmt.Sprintf("in about %d minutes", int(left.Minutes()))
		switch {
		case s.safe == 0:
			when = "at the source's next checkpoint"
		case left < 2*time.Minute:
			when = fmt.Sprintf("in about %d seconds", int(left.Seconds()))
		}
		w.care.Warning = fmt.Sprintf("slot %s loses its WAL %s and the replication then has to start again: raise max_slot_wal_keep_size at the source (a reload is enough), or %s", w.e.src.slot, when, helps)
	}
	if w.forecast.tell(left, known) {
		w.alarm(ctx, "slot-in-danger", map[string]any{"seconds": left.Seconds(), "slot_wal_bytes": s.wal(), "slot_limit_bytes": s.limit})
	}
	bound := w.e.throttle.settings().MaxSlotWAL
	over := bound > 0 && s.wal() > bound
	if over && w.care.Warning == "" {
		w.care.Warning = fmt.Sprintf("slot %s holds back %s of WAL at the source, above the %s that were allowed: %s; to free the disk now: rehome cancel-replication", w.e.src.slot, size(s.wal()), size(bound), helps)
	}
	if over && !w.walHigh {
		w.alarm(ctx, "slot-wal-high", map[string]any{"slot_wal_bytes": s.wal(), "max_slot_wal": bound})
	}
	w.walHigh = over || (w.walHigh && bound > 0 && float64(s.wal()) > calmShare*float64(bound))
}

func (w *watcher) alarm(ctx context.Context, code string, data map[string]any) {
	data["code"], data["detail"] = code, w.care.Warning
	w.e.log.Error("alarm", "code", code, "detail", w.care.Warning)
	w.e.cfg.Journal.Note(ctx, "alarm", data)
}

// slotWAL is what our own slot held back when it was last looked at.
func (e *Engine) slotWAL() int64 {
	e.stats.mu.Lock()
	defer e.stats.mu.Unlock()
	return e.stats.slotWAL
}

// ask runs the operator's query as a part of a SELECT, alone in a read-only transaction. It returns why to wait; a query
// that takes too long is a reason too: the source has no time for it.
func ask(ctx context.Context, c *pgx.Conn, query string) (reason string, err error) {
	tx, err := c.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return "", err
	}
	defer func() { _ = tx.Rollback(ctx) }() // nothing was written; a broken session shows at the next look
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d; SET LOCAL lock_timeout = %d", queryTimeout.Milliseconds(), queryTimeout.Milliseconds())); err != nil {
		return "", err
	}
	var value *string
	// On a line of its own: the query may end with a comment. As an argument of to_json every type has a text of its own.
	err = tx.QueryRow(ctx, "SELECT pg_catalog.to_json(rehome_query)::text FROM (\n"+strings.TrimRight(strings.TrimSpace(query), ";")+"\n) AS rehome_query LIMIT 1").Scan(&value)
	switch pe, ok := errors.AsType[*pgconn.PgError](err); {
	case errors.Is(err, pgx.ErrNoRows):
		return "", nil
	case ok && (pe.Code == "57014" || pe.Code == "55P03"):
		return fmt.Sprintf("the operator's query took longer than %s", queryTimeout), nil
	case ok:
		return "", fmt.Errorf("the operator's query: %s (%s)", pe.Message, pe.Code)
	case err != nil:
		return "", fmt.Errorf("the operator's query: %w", err)
	}
	return answerOf(value)
}
