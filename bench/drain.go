package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// drainWithin bounds a drain: something hangs.
	drainWithin = 10 * time.Minute
	// startPoll is how often the source is asked whether a contender's walsender is there, and lastPoll how often the
	// targets whether they show the last transaction: fine against the seconds that a drain takes.
	startPoll = 2 * time.Millisecond
	lastPoll  = 5 * time.Millisecond
	// settleWithin bounds the wait for a slot that begins behind the last backlog, settleEvery is how often the source is told to
	// log its running transactions meanwhile. Peers confirm what they have every 10 s (wal_receiver_status_interval) or sooner.
	settleWithin = 40 * time.Second
	settleEvery  = 250 * time.Millisecond
	// writers is how many sessions write a backlog.
	writers = 4
)

// follower is a contender that follows the source by a slot.
type follower interface {
	label() string
	// join copies what is there and follows from there on; it returns when it has caught up.
	join(ctx context.Context) error
	// stop returns when its slot is not in use any more; what the source writes from then on is its backlog.
	stop(ctx context.Context) error
	// start lets it go on; it may return before it does.
	start(ctx context.Context) error
	// leave ends it and gives its slot back.
	leave(ctx context.Context) error
	// slot is its name at the source.
	slot(ctx context.Context) (string, error)
	// transcript is where its commands are noted, as they run.
	transcript() *Run
	// targets are the databases that hold its rows together; none: it only reads.
	targets() []tenant.DSN
	// own is the CPU time, in seconds, of its processes that are neither source nor target, so far.
	own() (float64, error)
}

// drainBed is a source database and what is written to it.
type drainBed struct {
	rig      *Rig
	database string
	realm    string               // the column that names a row's realm
	number   bool                 // the realms are numbers
	apart    []*pgcluster.Cluster // targets that are not the rig's
	src      *pgx.Conn
	last     int64 // id of the last rows that were written
	log      *Run  // where what is written is noted; nil: nowhere
}

func openBed(ctx context.Context, rig *Rig, database, realm string, fill func(context.Context, *drainBed) error) (b *drainBed, err error) {
	b = &drainBed{rig: rig, database: database, realm: realm}
	if err := CreateDatabase(ctx, rig.Source, database); err != nil {
		return nil, err
	}
	if b.src, err = dial(ctx, b.dsn()); err != nil {
		return nil, err
	}
	return b, fill(ctx, b)
}

func (b *drainBed) dsn() tenant.DSN { return b.rig.Source.DSN(b.database) }

func (b *drainBed) exec(ctx context.Context, sql string, args ...any) error {
	b.note("$SOURCE: " + withArguments(sql, args))
	if _, err := b.src.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("at the source: %s: %w", first(sql), err)
	}
	return nil
}

func (b *drainBed) note(line string) {
	if b.log != nil {
		b.log.Note(line)
	}
}

// notePgbench notes a run of pgbench with its script.
func (b *drainBed) notePgbench(script string, durable bool, args []string) {
	line := shell("pgbench", args)
	if !durable {
		line = "PGOPTIONS='-c synchronous_commit=off' " + line
	}
	if script == "" {
		b.note(line + " '$SOURCE'")
		return
	}
	b.note(line + " -f FILE '$SOURCE' # FILE:\n" + strings.TrimSpace(script))
}

// pgbench writes a number of transactions by several sessions; without a script TPC-B.
func (b *drainBed) pgbench(ctx context.Context, script string, txns int64, more ...string) error {
	args := []string{"-n", "-M", "prepared", "-c", strconv.Itoa(writers), "-j", "2", "-t", strconv.FormatInt((txns+writers-1)/writers, 10)}
	args = append(args, more...)
	b.notePgbench(script, false, args)
	cmd, done, err := pgbenchCommand(ctx, b.rig.Source, b.database, script, false, args...)
	if err != nil {
		return err
	}
	defer done()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench: %w: %s", err, out)
	}
	return nil
}

// pgbenchCommand is a run of pgbench, and what removes its script. Where only the WAL counts that they leave, its transactions
// need not wait for the disk.
func pgbenchCommand(ctx context.Context, at *pgcluster.Cluster, database, script string, durable bool, args ...string) (*exec.Cmd, func(), error) {
	cfg, err := pgx.ParseConfig(at.DSN(database).Reveal())
	if err != nil {
		return nil, nil, errors.New("read the address of a cluster of the benchmark's own")
	}
	done := func() {}
	if script != "" {
		f, err := os.CreateTemp("", "rehome-bench-*.sql")
		if err != nil {
			return nil, nil, fmt.Errorf("write a script for pgbench: %w", err)
		}
		done = func() { _ = os.Remove(f.Name()) }
		_, err = f.WriteString(script)
		if err := errors.Join(err, f.Close()); err != nil {
			done()
			return nil, nil, fmt.Errorf("write a script for pgbench: %w", err)
		}
		args = append(args, "-f", f.Name())
	}
	args = append(args, "-h", cfg.Host, "-p", strconv.Itoa(int(cfg.Port)), "-U", cfg.User, database)
	cmd := exec.CommandContext(ctx, filepath.Join(at.BinDir(), "pgbench"), args...) //nolint:gosec // programs of the benchmark
	cmd.Env = append(os.Environ(), "PGPASSWORD="+cfg.Password, "PGSSLMODE=disable")
	if !durable {
		cmd.Env = append(cmd.Env, "PGOPTIONS=-c synchronous_commit=off")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, done, nil
}

// sentinel writes the last transaction of a backlog.
func (b *drainBed) sentinel(ctx context.Context) error {
	b.last++
	realm := "'r' || g"
	if b.number {
		realm = "g"
	}
	return b.exec(ctx, `INSERT INTO arrived SELECT `+realm+`, $1 FROM generate_series(1, $2::int) g`, b.last, lastRows)
}

// settle has the source log its running transactions, until a contender's slot begins behind all that was written so far.
func (b *drainBed) settle(ctx context.Context, f follower) error {
	slot, err := f.slot(ctx)
	if err != nil {
		return err
	}
	var at string
	if err := b.src.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&at); err != nil {
		return fmt.Errorf("read the source's position: %w", err)
	}
	return poll(ctx, settleWithin, settleEvery, "the slot of "+f.label()+" begins behind the last backlog", func() (behind bool, err error) {
		if err := Exec(ctx, b.rig.Source.DSN("postgres"), "CHECKPOINT"); err != nil {
			return false, err
		}
		if p, ok := f.(interface{ pass(context.Context) error }); ok {
			if err := p.pass(ctx); err != nil {
				return false, err
			}
		}
		err = b.src.QueryRow(ctx, `SELECT restart_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, slot, at).Scan(&behind)
		return behind, err
	})
}

// drain lets one contender drain what was written while it was stopped. The clock runs from the moment that its walsender
// is there, which leaves out how long it takes a contender to notice that it may go on, until its targets show the last
// transaction. CPU is counted from the request on.
func (b *drainBed) drain(ctx context.Context, f follower) (s Sample, err error) {
	slot, err := f.slot(ctx)
	if err != nil {
		return s, err
	}
	finish, err := b.finish(ctx, f)
	if err != nil {
		return s, err
	}
	defer finish.close(ctx)
	watch, err := dial(ctx, b.dsn())
	if err != nil {
		return s, err
	}
	defer watch.Close(ctx)
	before, err := b.cpu(f)
	if err != nil {
		return s, err
	}
	ctx, cancel := context.WithCancel(ctx) // what is given up ends, also where it is a program that waits for more
	defer cancel()
	asked := time.Now()
	failed := make(chan error, 1)
	go func() { failed <- f.start(ctx) }()
	began := asked
	err = poll(ctx, time.Minute, startPoll, f.label()+" starts", func() (active bool, err error) {
		if r, ok := f.(interface{ atOnce() bool }); ok && r.atOnce() {
			return true, nil
		}
		err = watch.QueryRow(ctx, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&active)
		began = time.Now()
		return active, err
	})
	if err != nil {
		cancel()
		return s, errors.Join(err, <-failed)
	}
	if err := poll(ctx, drainWithin, lastPoll, f.label()+" shows the last transaction", finish.there); err != nil {
		cancel()
		return s, errors.Join(err, <-failed)
	}
	end := time.Now()
	after, err := b.cpu(f)
	if err != nil {
		return s, err
	}
	s = Sample{Contender: f.label(), Seconds: end.Sub(began).Seconds(), CPU: after.minus(before), At: began, Values: map[string]float64{startSeconds: began.Sub(asked).Seconds()}}
	return s, <-failed
}

func (b *drainBed) cpu(f follower) (CPU, error) {
	c, err := b.rig.CPU()
	if err != nil {
		return c, err
	}
	for _, a := range b.apart {
		used, err := TreeCPU(a.Pid())
		if err != nil {
			return c, err
		}
		c.Targets += used
	}
	c.Tool, err = f.own()
	return c, err
}

// line is the finish line of a drain: all rows of the last transaction, at the targets together.
type line struct {
	conns []*pgx.Conn
	there func() (bool, error)
}

func (b *drainBed) finish(ctx context.Context, f follower) (*line, error) {
	l := &line{}
	if s, ok := f.(interface{ ended() (bool, error) }); ok {
		l.there = s.ended
		return l, nil
	}
	for _, dsn := range f.targets() {
		c, err := dial(ctx, dsn)
		if err != nil {
			l.close(ctx)
			return nil, err
		}
		l.conns = append(l.conns, c)
	}
	l.there = func() (bool, error) {
		total := 0
		for _, c := range l.conns {
			n := 0
			if err := c.QueryRow(ctx, `SELECT count(*)::int FROM arrived WHERE id = $1`, b.last).Scan(&n); err != nil {
				return false, err
			}
			total += n
		}
		if total > lastRows {
			return false, fmt.Errorf("%d rows of a transaction of %d", total, lastRows)
		}
		return total == lastRows, nil
	}
	return l, nil
}

func (l *line) close(ctx context.Context) {
	for _, c := range l.conns {
		_ = c.Close(ctx)
	}
}

// caughtUp waits, outside any clock, until a contender shows what was written last.
func (b *drainBed) caughtUp(ctx context.Context, f follower) error {
	if err := b.sentinel(ctx); err != nil {
		return err
	}
	l, err := b.finish(ctx, f)
	if err != nil {
		return err
	}
	defer l.close(ctx)
	return poll(ctx, drainWithin, pollEvery, f.label()+" catches up", l.there)
}

// digest is the number of rows of a table and a sum over their hashes, which does not depend on their order and can be
// added up over shards.
func digest(ctx context.Context, c *pgx.Conn, table string) (rows int64, sum string, err error) {
	err = c.QueryRow(ctx, `SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM `+tenant.QuoteIdent(table)+` t`).Scan(&rows, &sum)
	if err != nil {
		return 0, "", fmt.Errorf("hash %s: %w", table, err)
	}
	return rows, sum, nil
}

// same compares what a contender's targets hold, together, with the source.
func (b *drainBed) same(ctx context.Context, f follower, tables []string) error {
	var targets []*pgx.Conn
	for _, dsn := range f.targets() {
		c, err := dial(ctx, dsn)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		targets = append(targets, c)
	}
	for _, table := range tables {
		wantRows, want, err := digest(ctx, b.src, table)
		if err != nil {
			return err
		}
		var sums []string
		var rows int64
		for _, c := range targets {
			n, sum, err := digest(ctx, c, table)
			if err != nil {
				return err
			}
			rows += n
			sums = append(sums, sum)
		}
		var equal bool
		if err := b.src.QueryRow(ctx, `SELECT sum(s::numeric) = $1::numeric FROM unnest($2::text[]) s`, want, sums).Scan(&equal); err != nil {
			return fmt.Errorf("compare %s: %w", table, err)
		}
		if rows != wantRows || !equal {
			return fmt.Errorf("%s: %s has %d rows, the source %d; the hashes are equal: %v", f.label(), table, rows, wantRows, equal)
		}
	}
	return nil
}
