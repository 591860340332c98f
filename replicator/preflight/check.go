package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/schema"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// connectTimeout bounds one connection: long enough for a server that wakes up first.
	connectTimeout = 15 * time.Second
	// partTimeout bounds one statement: what takes longer would burden the source.
	partTimeout = 30 * time.Second
	// nullCheckTimeout bounds the search for NULL in one realm key, which may read the whole table.
	nullCheckTimeout = 10 * time.Second
	// longTransaction is the age from which an open transaction is named: slots wait for every older one.
	longTransaction = time.Minute
	// clockSkew is the difference between clocks from which shown lags and expiries mislead.
	clockSkew = 2 * time.Second
)

// Target is one shard's database.
type Target struct {
	Shard string
	DSN   tenant.DSN // of the tenant's database on that shard
}

// Input is what is checked.
type Input struct {
	Source  tenant.DSN
	Targets []Target
	Options tenant.ReplicationOptions
	Shards  int // that the database lives on; 0: len(Targets)
	Logger  *slog.Logger
}

// Report is what was found, blocking findings first. Catalogue is nil when the source could not be described.
type Report struct {
	Findings  []tenant.Finding
	Catalogue *catalog.Catalogue
}

// Check looks at both sides and changes neither. An error means that it could not be carried out at all (the context
// ended); everything else is a finding.
func Check(ctx context.Context, in Input) (Report, error) {
	in.Options = in.Options.WithDefaults()
	if in.Shards <= 0 {
		in.Shards = max(1, len(in.Targets))
	}
	if in.Logger == nil {
		in.Logger = slog.New(slog.DiscardHandler)
	}
	c := &checker{in: in}
	if err := c.source(ctx); err != nil {
		return Report{}, err
	}
	if err := c.targets(ctx); err != nil {
		return Report{}, err
	}
	c.finish()
	return Report{Findings: c.found, Catalogue: c.cat}, nil
}

// checker collects the findings of one side. Each target has one of its own, which is merged at the end.
type checker struct {
	in    Input
	found []tenant.Finding
	cat   *catalog.Catalogue
	facts facts
}

// facts are what the targets are compared with.
type facts struct {
	described     bool
	systemID      string
	extensions    map[string]string // name -> version
	roles         []string          // named in policies
	collations    []string          // of the system, used by columns
	accessMethods []string
	forcedRLS     []string           // tables
	unreadable    []tenant.TableName // sequences
	bytes         int64
}

func (c *checker) add(f tenant.Finding) { c.found = append(c.found, f) }

func (c *checker) block(code, object, remedy, format string, args ...any) {
	c.add(tenant.Finding{Severity: tenant.Blocking, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// blockAcceptable adds how to accept it to the remedy.
func (c *checker) blockAcceptable(code, object, remedy, format string, args ...any) {
	f := tenant.Finding{Severity: tenant.Blocking, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Acceptable: true}
	f.Remedy = remedy + "; or accept it: --accept " + shellQuote(f.ID())
	c.add(f)
}

func (c *checker) warn(code, object, remedy, format string, args ...any) {
	c.add(tenant.Finding{Severity: tenant.Warning, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) notice(code, object, remedy, format string, args ...any) {
	c.add(tenant.Finding{Severity: tenant.Notice, Code: code, Object: object, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// part is a piece of the check with transactions of its own.
type part struct {
	name string
	run  func(context.Context, pgx.Tx) error
}

// parts runs each in a READ ONLY transaction. One that fails becomes a finding; only the context's end stops all.
func (c *checker) parts(ctx context.Context, conn *pgx.Conn, side string, parts []part) error {
	for _, p := range parts {
		err := readOnly(ctx, conn, partTimeout, func(tx pgx.Tx) error { return p.run(ctx, tx) })
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.in.Logger.WarnContext(ctx, "a part of the preflight failed", "side", side, "part", p.name, "error", err)
		c.warn("not-checked", side+": "+p.name, "grant what is missing, or check it by hand", "%s could not be checked at the %s: %v", p.name, side, err)
		if conn.IsClosed() {
			return nil
		}
	}
	return nil
}

func readOnly(ctx context.Context, conn *pgx.Conn, timeout time.Duration, do func(pgx.Tx) error) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", timeout.Milliseconds())); err != nil {
		return err
	}
	return do(tx)
}

func (c *checker) source(ctx context.Context) error {
	conn, problem := connect(ctx, c.in.Source)
	if problem != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.block("source-unreachable", "source", problem.remedy, "%s: %s", c.in.Source, problem.message)
		return nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	err := readOnly(ctx, conn, partTimeout, func(pgx.Tx) (err error) {
		c.cat, err = catalog.Describe(ctx, conn, c.in.Options)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		c.block("not-checked", "source: tables", "see the message; the role must be able to read the system catalogues", "the source's tables cannot be listed: %v", err)
		return nil
	}
	c.facts.described = true
	c.facts.systemID = c.cat.Server.SystemIdentifier
	for _, t := range c.cat.Tables {
		c.facts.bytes += t.Bytes
	}
	if err := c.tools(ctx); err != nil {
		return err
	}
	c.tables()
	return c.parts(ctx, conn, "source", []part{
		{"settings", c.settings},
		{"connections", func(ctx context.Context, tx pgx.Tx) error {
			return c.connections(ctx, tx, "source", c.in.Options.CopyJobs+4)
		}},
		{"privileges", c.privileges},
		{"realm keys", c.realmKeyColumns},
		{"constraints", c.constraints},
		{"foreign keys", c.foreignKeys},
		{"hash partitions", c.hashPartitions},
		{"views", c.dependents},
		{"objects", c.objects},
		{"triggers", c.triggers},
		{"sequences", c.sequences},
		{"activity", c.activity},
		{"clock", func(ctx context.Context, tx pgx.Tx) error { return c.clock(ctx, tx, "source") }},
		{"what the targets need", c.needs},
	})
}

// tools looks for pg_dump. One that did not answer blocks nothing: it is asked again when it is needed, until it does.
func (c *checker) tools(ctx context.Context) error {
	if c.cat.Server.Version < 130000 {
		c.block("source-too-old", "source", "upgrade the source to Postgres 13 or newer", "the source is Postgres %d", c.cat.Server.Version/10000)
	}
	_, err := schema.FindTools(ctx, c.cat.Server.Version)
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*tenant.Error](err)
	switch {
	case !ok:
		return err
	case e.Kind == tenant.KindUnavailable:
		c.warn(e.Code, "server", e.Hint, "%s", e.Message)
	default:
		c.block(e.Code, "server", e.Hint, "%s", e.Message)
	}
	return nil
}

// targets checks all shards at once, each with a checker of its own.
func (c *checker) targets(ctx context.Context) error {
	each := make([]*checker, len(c.in.Targets))
	g, gctx := errgroup.WithContext(ctx)
	for i, t := range c.in.Targets {
		each[i] = &checker{in: c.in, cat: c.cat, facts: c.facts}
		g.Go(func() error { return each[i].target(gctx, t) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, e := range each {
		c.found = append(c.found, e.found...)
	}
	return nil
}

// finish marks what was accepted, and sorts: blocking first.
func (c *checker) finish() {
	rank := map[tenant.Severity]int{tenant.Blocking: 0, tenant.Warning: 1, tenant.Notice: 2}
	used := map[string]bool{}
	for i := range c.found {
		f := &c.found[i]
		if f.Acceptable && slices.Contains(c.in.Options.Accept, f.ID()) {
			f.Accepted = true
			used[f.ID()] = true
		}
	}
	if c.facts.described {
		for _, a := range c.in.Options.Accept {
			if !used[a] {
				c.notice("accept-unused", a, "", "nothing that could be accepted was found under this name")
			}
		}
	}
	slices.SortStableFunc(c.found, func(a, b tenant.Finding) int {
		return cmp.Or(cmp.Compare(rank[a.Severity], rank[b.Severity]), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Object, b.Object))
	})
}

var errDSN = errors.New("the connection string cannot be read")
