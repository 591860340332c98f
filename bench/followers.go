package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// joinWithin bounds a first copy.
	joinWithin = 3 * time.Minute
	// leaveWithin bounds an orderly end; what is left then goes with the databases.
	leaveWithin = 20 * time.Second
	// publication is what native contenders and the reader of the slot subscribe to.
	publication = "bench"
)

// subscription is a native subscription at the first target.
type subscription struct {
	bed    *drainBed
	at     *pgcluster.Cluster
	name   string // of the contender
	db     string // its database at the target; also the name of its slot
	schema string // DDL of the tables
	binary bool
	// stream lets the source send large transactions while they are decoded, and takes part in the backlogs of such only. Without
	// it the server's default holds: off up to 17, parallel from 18 on.
	stream bool
}

const (
	// streamSince is the version that has the option, parallelSince the one whose subscriptions also apply such a transaction at once.
	streamSince   = 14
	parallelSince = 16
)

// options are those of CREATE SUBSCRIPTION, besides the slot.
func (s *subscription) options() (with []string) {
	if s.binary {
		with = append(with, "binary = true")
	}
	if s.stream && s.at.Version() >= parallelSince {
		with = append(with, "streaming = parallel")
	} else if s.stream {
		with = append(with, "streaming = on")
	}
	return with
}

// largeOnly reports whether only backlogs of one large transaction are for it: with small ones the option changes nothing.
func (s *subscription) largeOnly() bool { return s.stream }

func (s *subscription) missing(context.Context) string {
	if s.stream && s.at.Version() < streamSince {
		return fmt.Sprintf("subscriptions of Postgres %d cannot stream", s.at.Version())
	}
	return ""
}

func (s *subscription) label() string                        { return s.name }
func (s *subscription) slot(context.Context) (string, error) { return s.db, nil }
func (s *subscription) targets() []tenant.DSN                { return []tenant.DSN{s.at.DSN(s.db)} }
func (s *subscription) own() (float64, error)                { return 0, nil }
func (s *subscription) database() string                     { return s.db }
func (s *subscription) alter(ctx context.Context, v string) error {
	return Exec(ctx, s.at.DSN(s.db), "ALTER SUBSCRIPTION "+tenant.QuoteIdent(s.db)+" "+v)
}

func (s *subscription) commands() []string {
	with := ""
	if o := s.options(); len(o) > 0 {
		with = " WITH (" + strings.Join(o, ", ") + ")"
	}
	return []string{"$TARGET1: CREATE SUBSCRIPTION … PUBLICATION " + publication + with, "$TARGET1: ALTER SUBSCRIPTION … DISABLE; the backlog; ALTER SUBSCRIPTION … ENABLE"}
}

func (s *subscription) join(ctx context.Context) error {
	if err := CreateDatabase(ctx, s.at, s.db); err != nil {
		return err
	}
	with := strings.Join(append([]string{"slot_name = " + tenant.QuoteIdent(s.db)}, s.options()...), ", ")
	err := Exec(ctx, s.at.DSN(s.db), s.schema, "CREATE SUBSCRIPTION "+tenant.QuoteIdent(s.db)+" CONNECTION "+tenant.QuoteLiteral(s.bed.dsn().Reveal())+
		" PUBLICATION "+publication+" WITH ("+with+")")
	if err != nil {
		return err
	}
	err = poll(ctx, joinWithin, pollEvery, s.name+" has copied", func() (bool, error) {
		return Scalar[bool](ctx, s.at.DSN(s.db), `SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel`)
	})
	if err != nil {
		return err
	}
	return s.bed.caughtUp(ctx, s)
}

func (s *subscription) start(ctx context.Context) error { return s.alter(ctx, "ENABLE") }

func (s *subscription) stop(ctx context.Context) error {
	if err := s.alter(ctx, "DISABLE"); err != nil {
		return err
	}
	return s.bed.idle(ctx, s)
}

func (s *subscription) leave(ctx context.Context) error {
	return Exec(ctx, s.at.DSN(s.db), "ALTER SUBSCRIPTION "+tenant.QuoteIdent(s.db)+" DISABLE", "DROP SUBSCRIPTION "+tenant.QuoteIdent(s.db))
}

// idle waits until nobody uses a contender's slot.
func (b *drainBed) idle(ctx context.Context, f follower) error {
	slot, err := f.slot(ctx)
	if err != nil {
		return err
	}
	return poll(ctx, slotsWithin, pollEvery, "the walsender of "+f.label()+" ends", func() (idle bool, err error) {
		err = b.src.QueryRow(ctx, `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&idle)
		return idle, err
	})
}

// slotReader only reads: what decoding and sending costs without anyone who applies, the limit of everyone.
type slotReader struct {
	bed *drainBed

	mu   sync.Mutex
	cpu  float64
	done chan error
}

func (r *slotReader) label() string                        { return readerName }
func (r *slotReader) slot(context.Context) (string, error) { return r.name(), nil }
func (r *slotReader) name() string                         { return "reader_" + r.bed.database }
func (r *slotReader) targets() []tenant.DSN                { return nil }
func (r *slotReader) stop(ctx context.Context) error       { return r.bed.idle(ctx, r) }

func (r *slotReader) commands() []string {
	return []string{"pg_recvlogical --start --no-loop -S … -f /dev/null --endpos … --fsync-interval=0 -o proto_version=1 -o publication_names=" + publication}
}

func (r *slotReader) join(ctx context.Context) error {
	return r.bed.exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.name())
}

// pass lets the slot go to where the source is: it only follows while it drains.
func (r *slotReader) pass(ctx context.Context) error {
	return r.bed.exec(ctx, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, r.name())
}

func (r *slotReader) leave(ctx context.Context) error {
	return r.bed.exec(ctx, `SELECT pg_drop_replication_slot($1)`, r.name())
}

func (r *slotReader) own() (float64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cpu, nil
}

func (r *slotReader) start(ctx context.Context) error {
	var end string
	if err := r.bed.src.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return fmt.Errorf("read the source's position: %w", err)
	}
	cfg, err := pgx.ParseConfig(r.bed.dsn().Reveal())
	if err != nil {
		return fmt.Errorf("read the source's address: %w", err)
	}
	cmd := exec.CommandContext(ctx, r.bed.rig.Tool("pg_recvlogical"), "--start", "--no-loop", "-S", r.name(), "-f", "/dev/null", "--endpos", end, "--fsync-interval=0", //nolint:gosec // programs of the benchmark
		"-o", "proto_version=1", "-o", "publication_names="+publication, "-h", cfg.Host, "-p", fmt.Sprint(cfg.Port), "-U", cfg.User, "-d", cfg.Database)
	cmd.Env = []string{"PGPASSWORD=" + cfg.Password, "PGSSLMODE=disable"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said strings.Builder
	cmd.Stderr = &said
	done := make(chan error, 1)
	r.mu.Lock()
	r.done = done
	r.mu.Unlock()
	err = cmd.Run()
	r.mu.Lock()
	if s := cmd.ProcessState; s != nil {
		r.cpu += (s.UserTime() + s.SystemTime()).Seconds()
	}
	r.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("pg_recvlogical: %w: %s", err, said.String())
	}
	done <- err
	return err
}

// ended is its finish line: it stops at the end of the backlog.
func (r *slotReader) ended() (bool, error) {
	r.mu.Lock()
	done := r.done
	r.mu.Unlock()
	if done == nil {
		return false, nil
	}
	select {
	case err := <-done:
		return true, err
	default:
		return false, nil
	}
}

// rehome is the product: a database on one or more shards.
type rehomeFollower struct {
	bed    *drainBed
	server *Server
	db     string
	shards int
	more   []string // arguments of start-replication
}

func (r *rehomeFollower) label() string    { return rehomeShards(r.shards) }
func (r *rehomeFollower) database() string { return r.db }

func (r *rehomeFollower) commands() []string {
	return []string{"rehome start-replication --from $SOURCE --to $REHOME/DB --include 'public.*'", "rehome pause-replication; the backlog; rehome resume-replication"}
}

func (r *rehomeFollower) own() (float64, error) { return TreeCPU(r.server.Pid()) }

func (r *rehomeFollower) targets() (all []tenant.DSN) {
	for _, c := range r.bed.rig.Targets[:r.shards] {
		all = append(all, c.DSN(r.db))
	}
	return all
}

func (r *rehomeFollower) join(ctx context.Context) error {
	var names []string
	for n := range r.shards {
		names = append(names, fmt.Sprint("s", n+1))
	}
	if _, err := r.server.CLI(ctx, "create", r.db, "--realm-key", r.bed.realm, "--owner", "owner@example.com", "--shards", strings.Join(names, ",")); err != nil {
		return err
	}
	args := append([]string{"start-replication", "--from", r.bed.dsn().Reveal(), "--to", r.server.url + "/" + r.db, "--include", "public.*"}, r.more...)
	args, err := r.server.Approve(ctx, args...)
	if err != nil {
		return err
	}
	if _, err := r.server.CLI(ctx, args...); err != nil {
		return err
	}
	if _, err := r.server.CLI(ctx, "replication-progress", "--db", r.db, "--watch", "--until", "in_sync", "-q"); err != nil {
		return err
	}
	return r.bed.caughtUp(ctx, r)
}

func (r *rehomeFollower) slot(ctx context.Context) (name string, err error) {
	return Scalar[string](ctx, r.bed.rig.Control.DSN(controlDB), `SELECT 'rehome_' || id FROM rehome_control.replications WHERE database = $1`, r.db)
}

func (r *rehomeFollower) start(ctx context.Context) error {
	_, err := r.server.CLI(ctx, "resume-replication", "--db", r.db)
	return err
}

func (r *rehomeFollower) stop(ctx context.Context) error {
	if _, err := r.server.CLI(ctx, "pause-replication", "--db", r.db); err != nil {
		return err
	}
	return r.bed.idle(ctx, r)
}

func (r *rehomeFollower) leave(ctx context.Context) error {
	_, err := r.server.CLI(ctx, "cancel-replication", "--db", r.db, "--yes")
	return err
}
