package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

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
	scribe
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
	return s.sql(ctx, s.at.DSN(s.db), "$TARGET1", "ALTER SUBSCRIPTION "+tenant.QuoteIdent(s.db)+" "+v)
}

func (s *subscription) join(ctx context.Context) error {
	if err := CreateDatabase(ctx, s.at, s.db); err != nil {
		return err
	}
	with := strings.Join(append([]string{"slot_name = " + tenant.QuoteIdent(s.db)}, s.options()...), ", ")
	s.log.Name(s.bed.dsn(), "$SOURCE")
	err := s.sql(ctx, s.at.DSN(s.db), "$TARGET1", strings.TrimSpace(s.schema), "CREATE SUBSCRIPTION "+tenant.QuoteIdent(s.db)+" CONNECTION "+tenant.QuoteLiteral(s.bed.dsn().Reveal())+
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

// rehome is the product: a database on one or more shards.
type rehomeFollower struct {
	scribe
	bed    *drainBed
	server *Server
	db     string
	shards int
	more   []string // arguments of start-replication
}

func (r *rehomeFollower) label() string    { return rehomeShards(r.shards) }
func (r *rehomeFollower) database() string { return r.db }

// cli runs a command of the command line and notes it; approved are the arguments that carry its code, nil: it needs none.
func (r *rehomeFollower) cli(ctx context.Context, args, approved []string) error {
	r.log.Name(r.bed.dsn(), "$SOURCE")
	noted := slices.Clone(args)
	for i, a := range noted {
		noted[i] = strings.ReplaceAll(a, r.server.url, "$REHOME")
	}
	r.log.Note(shell("rehome", noted))
	if approved == nil {
		approved = args
	}
	_, err := r.server.CLI(ctx, approved...)
	return err
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
	if err := r.cli(ctx, []string{"create", r.db, "--realm-key", r.bed.realm, "--owner", "owner@example.com", "--shards", strings.Join(names, ",")}, nil); err != nil {
		return err
	}
	args := append([]string{"start-replication", "--from", r.bed.dsn().Reveal(), "--to", r.server.url + "/" + r.db, "--include", "public.*"}, r.more...)
	approved, err := r.server.Approve(ctx, args...)
	if err != nil {
		return err
	}
	if err := r.cli(ctx, args, approved); err != nil {
		return err
	}
	if err := r.cli(ctx, []string{"replication-progress", "--db", r.db, "--watch", "--until", "in_sync", "-q"}, nil); err != nil {
		return err
	}
	return r.bed.caughtUp(ctx, r)
}

func (r *rehomeFollower) slot(ctx context.Context) (name string, err error) {
	return Scalar[string](ctx, r.bed.rig.Control.DSN(controlDB), `SELECT 'rehome_' || id FROM rehome_control.replications WHERE database = $1`, r.db)
}

func (r *rehomeFollower) start(ctx context.Context) error {
	return r.cli(ctx, []string{"resume-replication", "--db", r.db}, nil)
}

func (r *rehomeFollower) stop(ctx context.Context) error {
	if err := r.cli(ctx, []string{"pause-replication", "--db", r.db}, nil); err != nil {
		return err
	}
	return r.bed.idle(ctx, r)
}

func (r *rehomeFollower) leave(ctx context.Context) error {
	_, err := r.server.CLI(ctx, "cancel-replication", "--db", r.db, "--yes")
	return err
}
