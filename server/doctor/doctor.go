package doctor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// lookTimeout bounds one look at one server: all queries are of the catalogue, and take milliseconds each.
	lookTimeout = 10 * time.Second
	// closeTimeout bounds the goodbye to a server that does not answer any more.
	closeTimeout = time.Second
	// parallel bounds the servers looked at at once.
	parallel = 8
	// looks is how often something is seen before it is taken for more than the trace of work under way.
	looks = 3
	// lookAgain is between them: a stream connects anew, and a cutover follows its decision, within about a second.
	lookAgain = time.Second
	// repairTimeout bounds one repair; a purge that needs longer is carried on by the server's own job.
	repairTimeout = 2 * time.Minute
	// unlockTimeout bounds the release of the lock between fixes; its session is closed then.
	unlockTimeout = 2 * time.Second
)

// Gateway is what is needed of the gateway: what a cutover needs, and tombstones.
type Gateway interface {
	cutover.Gateways
	SetTombstone(ctx context.Context, database string, until time.Time) error
}

// Config is what a doctor works with. LookAgain, Now and Logger may be left out.
type Config struct {
	Pool      *pgxpool.Pool // control database
	Seal      *seal.Box
	Catalogue *shard.Catalogue
	Gateway   Gateway
	Signer    cutover.Signer
	BaseURL   string                                    // of the installation
	Tombstone time.Duration                             // how long a deleted database's address redirects
	Channel   func(ctx context.Context) (string, error) // the e-mail channel in force, without credentials
	LookAgain time.Duration                             // between two looks at the same thing; 0: the default
	Now       func() time.Time
	Logger    *slog.Logger
}

// Doctor examines one installation. It has no state of its own.
type Doctor struct {
	cfg      Config
	cutovers *cutover.Coordinator
}

// New makes a doctor.
func New(cfg Config) *Doctor {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.LookAgain <= 0 {
		cfg.LookAgain = lookAgain
	}
	return &Doctor{cfg: cfg, cutovers: cutover.New(cutover.Config{Pool: cfg.Pool, Gateways: cfg.Gateway, Signer: cfg.Signer, Logger: cfg.Logger, Now: cfg.Now})}
}

// finding is what a check found, with what mends it.
type finding struct {
	tenant.Finding
	passing bool                        // may be the trace of work under way: reported if it stays
	repair  func(context.Context) error // nil: a person has to
}

// findings collects; add returns the finding for what else belongs to it.
type findings struct{ list []*finding }

func (f *findings) add(s tenant.Severity, code, object, remedy, format string, args ...any) *finding {
	n := &finding{Finding: tenant.Finding{Severity: s, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Remedy: remedy}}
	f.list = append(f.list, n)
	return n
}

func (f *finding) mayPass() *finding { f.passing = true; return f }

func (f *finding) fix(repair func(context.Context) error) *finding {
	f.repair, f.Fixable = repair, repair != nil
	return f
}

const fixIt = "rehome doctor --fix"

// Examine looks at everything and changes nothing. An error says that the control database could not be read.
func (d *Doctor) Examine(ctx context.Context) (api.Doctor, error) {
	found, err := d.examine(ctx)
	if err != nil {
		return api.Doctor{}, err
	}
	return d.report(found), nil
}

func (d *Doctor) report(found []*finding) api.Doctor {
	r := api.Doctor{At: d.cfg.Now(), OK: len(found) == 0, Findings: []tenant.Finding{}}
	for _, f := range found {
		r.Findings = append(r.Findings, f.Finding)
	}
	return r
}

// Fix examines, performs every repair, and examines again: the report has what was worked on and what is left. Only one
// fix runs at a time in an installation: KindConflict.
func (d *Doctor) Fix(ctx context.Context) (api.Doctor, error) {
	unlock, err := d.lock(ctx)
	if err != nil {
		return api.Doctor{}, err
	}
	defer unlock()
	found, err := d.examine(ctx)
	if err != nil {
		return api.Doctor{}, err
	}
	var repairs []api.Repair
	for _, f := range found {
		if f.repair == nil {
			continue
		}
		r := api.Repair{Code: f.Code, Object: f.Object}
		rctx, cancel := context.WithTimeout(ctx, repairTimeout)
		if err := f.repair(rctx); err != nil {
			r.Error = err.Error()
			d.cfg.Logger.WarnContext(ctx, "repair", "code", f.Code, "object", f.Object, "error", err)
		}
		cancel()
		repairs = append(repairs, r)
	}
	if len(repairs) == 0 {
		return d.report(found), nil
	}
	left, err := d.examine(ctx)
	if err != nil {
		return api.Doctor{}, err
	}
	out := d.report(left)
	for _, r := range repairs {
		r.Done = !slices.ContainsFunc(left, func(f *finding) bool { return f.Code == r.Code && f.Object == r.Object })
		out.Repairs = append(out.Repairs, r)
	}
	return out, nil
}

// lock keeps two fixes apart.
func (d *Doctor) lock(ctx context.Context) (unlock func(), err error) {
	conn, err := d.cfg.Pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin to repair: %w", err)
	}
	var got bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended('rehome doctor', 0))`).Scan(&got); err != nil || !got {
		conn.Release()
		if err != nil {
			return nil, fmt.Errorf("begin to repair: %w", err)
		}
		return nil, tenant.Errorf(tenant.KindConflict, "doctor-busy", "wait until it is done", "repairs are being made already")
	}
	return func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()
		if _, err := conn.Exec(cctx, `SELECT pg_advisory_unlock(hashtextextended('rehome doctor', 0))`); err != nil {
			_ = conn.Conn().Close(cctx) // the lock ends with its session
		}
		conn.Release()
	}, nil
}

// examine runs every check, side by side, the worst findings first.
func (d *Doctor) examine(ctx context.Context) ([]*finding, error) {
	rec, err := d.load(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	byID := map[string]*finding{} // two replications of one source find the same there
	keep := func(list []*finding) {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range list {
			if _, ok := byID[f.ID()]; !ok {
				byID[f.ID()] = f
			}
		}
	}
	var g errgroup.Group
	g.SetLimit(parallel)
	run := func(check func(context.Context, *findings) error) {
		g.Go(func() error {
			list, err := d.persistent(ctx, check)
			keep(list)
			return err
		})
	}
	for _, s := range rec.shards {
		run(func(ctx context.Context, f *findings) error { d.checkShard(ctx, s, f); return nil })
	}
	for _, db := range rec.databases {
		run(func(ctx context.Context, f *findings) error { return d.checkDatabase(ctx, db, f) })
	}
	for _, r := range rec.replications {
		run(func(ctx context.Context, f *findings) error { return d.checkReplication(ctx, r.id, f) })
	}
	for _, check := range []func(context.Context, *findings) error{d.checkRoutes, d.checkLeases, d.checkCertificates, d.checkEvents, d.checkChannel} {
		run(check)
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := make([]*finding, 0, len(byID))
	for _, f := range byID {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *finding) int {
		return strings.Compare(rank(a.Severity)+a.ID(), rank(b.Severity)+b.ID())
	})
	return out, nil
}

// persistent repeats a check while what it finds may pass, and leaves out what did pass.
func (d *Doctor) persistent(ctx context.Context, check func(context.Context, *findings) error) ([]*finding, error) {
	var before []*finding
	for look := 1; ; look++ {
		var f findings
		if err := check(ctx, &f); err != nil {
			return nil, err
		}
		if look > 1 {
			f.list = slices.DeleteFunc(f.list, func(n *finding) bool {
				return n.passing && !slices.ContainsFunc(before, func(b *finding) bool { return b.ID() == n.ID() })
			})
		}
		if look == looks || !slices.ContainsFunc(f.list, func(n *finding) bool { return n.passing }) {
			return f.list, nil
		}
		before = f.list
		t := time.NewTimer(d.cfg.LookAgain)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
	}
}

func rank(s tenant.Severity) string {
	switch s {
	case tenant.Blocking:
		return "0"
	case tenant.Warning:
		return "1"
	}
	return "2"
}
