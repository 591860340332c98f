package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	database = "acme"
	owner    = "owner@acme.example"
	vendor   = "ops@hosted.example"
	operator = "ops@own.example"
	seed     = 42

	// logLines are shown of each log when a step went wrong.
	logLines = 12
)

// demo is one run. Its fields fill up from step to step.
type demo struct {
	opt  options
	show *show
	rep  *Report
	dir  string

	group *errgroup.Group
	base  context.Context //nolint:containedctx // of everything that runs beside the steps, from run until its end

	source *pgcluster.Cluster
	shards []*pgcluster.Cluster
	pools  []*pgxpool.Pool // all that were opened

	hosted, own    *installation
	oldApp, newApp *application
	placement      tenant.Placement
	shardPools     map[string]*pgxpool.Pool
	ledger         *workload.Ledger
	writers        *workload.Writers
	writing        *service
	curve          *curve    // of the old side's connections
	since          time.Time // writers write

	replication api.Replication
	certificate tenant.Certificate
	verified    tenant.Verification
	during      int64   // writes that were acknowledged while it compared
	checks      []Check // of what can be seen during the journey only
	step        int
	title       string
}

func newDemo(o options, s *show) *demo {
	return &demo{opt: o, show: s, shardPools: map[string]*pgxpool.Pool{}}
}

// service is something that runs beside the steps.
type service struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start runs a service until it is stopped or the demo ends. One that fails ends the demo.
func (d *demo) start(run func(ctx context.Context) error) *service {
	ctx, cancel := context.WithCancel(d.base)
	s := &service{cancel: cancel, done: make(chan struct{})}
	d.group.Go(func() error {
		defer close(s.done)
		defer cancel()
		if err := run(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	})
	return s
}

func (s *service) stop() {
	s.cancel()
	<-s.done
}

// run does the journey, answers with the report and takes everything down.
func (d *demo) run(ctx context.Context, answer func(*Report) error) (*Report, error) {
	began := time.Now()
	d.rep = &Report{Scale: d.opt.scale, Shards: d.opt.shards, Checks: []Check{}, Steps: []StepTime{}, Connections: []int{}}
	dir, err := os.MkdirTemp("", "rehome-demo-")
	if err != nil {
		return d.rep, fmt.Errorf("make a temporary directory: %w", err)
	}
	d.dir = dir
	base, cancel := context.WithCancel(ctx)
	d.group, d.base = errgroup.WithContext(base)
	defer d.teardown(cancel)

	err = d.journey(d.base)
	d.rep.Seconds = time.Since(began).Seconds()
	if interrupted(ctx, err) {
		d.show.clear()
		return d.rep, context.Cause(ctx)
	}
	if err != nil {
		err = d.failure(err)
	}
	d.rep.OK = err == nil && d.rep.failed() == 0
	if aerr := answer(d.rep); aerr != nil && err == nil {
		err = aerr
	}
	if d.opt.keep {
		d.stay(ctx)
	}
	return d.rep, err
}

// journey does one step after the other.
func (d *demo) journey(ctx context.Context) error {
	for _, s := range d.steps() {
		d.step, d.title = d.step+1, s.title
		began := time.Now()
		d.show.step(d.step, s.title)
		sctx, cancel := context.WithTimeoutCause(ctx, s.within, fmt.Errorf("the step is not done within %s", s.within))
		err := s.do(sctx)
		if err != nil && sctx.Err() != nil && !errors.Is(err, context.Cause(sctx)) {
			err = fmt.Errorf("%w (%w)", context.Cause(sctx), err)
		}
		cancel()
		d.rep.Steps = append(d.rep.Steps, StepTime{Step: d.step, Title: s.title, Seconds: time.Since(began).Seconds()})
		if err != nil {
			return err
		}
	}
	return nil
}

// failure says which step went wrong, and shows what the logs say last.
func (d *demo) failure(err error) error {
	d.show.clear()
	f := &Failure{Step: d.step, Title: d.title, Message: err.Error()}
	d.rep.Failed = f
	logs := map[string]string{}
	if d.hosted != nil {
		logs["hosted server"] = d.hosted.logFile
	}
	if d.own != nil {
		logs["own server"] = d.own.logFile
	}
	if d.source != nil {
		logs["source's Postgres"] = d.source.LogFile()
	}
	for _, name := range []string{"hosted server", "own server", "source's Postgres"} {
		if lines := lastLines(logs[name], logLines); len(lines) > 0 {
			d.show.answer.Notef("the %s's log ends:\n%s%s", strings.TrimSuffix(name, "'s Postgres"), indent, strings.Join(lines, "\n"+indent))
		}
	}
	kind, code, hint := tenant.KindInternal, "demo-step-failed", "run it again with --keep to look at what it leaves; if it fails again, report it with the lines above"
	if e, ok := errors.AsType[*tenant.Error](err); ok && e.Hint != "" {
		code, hint = e.Code, e.Hint
	}
	return &tenant.Error{Kind: kind, Code: code, Hint: hint, Message: fmt.Sprintf("step %d (%s): %s", f.Step, f.Title, f.Message)}
}

// lastLines reads the end of a file; nothing if there is none.
func lastLines(path string, n int) []string {
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	return lines[max(0, len(lines)-n):]
}

// stay leaves everything running until a person has seen enough.
func (d *demo) stay(ctx context.Context) {
	p := d.show.answer
	p.Notef("\neverything goes on running until Ctrl-C:")
	for _, i := range []*installation{d.hosted, d.own} {
		if i != nil {
			p.Notef("  %-8s %s/%s   cd %s && rehome databases   mails in %s", i.name, i.url, database, i.dir, i.mail)
		}
	}
	if d.source != nil {
		p.Notef("  source   %s", d.source.DSN(database).Reveal())
	}
	for n, c := range d.shards {
		if c != nil {
			p.Notef("  %-8s %s", shardName(n), c.DSN(database).Reveal())
		}
	}
	p.Notef("  logs in %s", filepath.Join(d.dir, "*.log"))
	<-ctx.Done()
}

// teardown ends what runs, in the order of dependence: services, pools, clusters, files.
func (d *demo) teardown(cancel context.CancelFunc) {
	d.show.clear()
	d.show.progress("cleaning up")
	cancel()
	_ = d.group.Wait() // what failed ended the journey and was told there
	for _, p := range d.pools {
		p.Close()
	}
	var g errgroup.Group
	for _, c := range append(d.shards, d.source) {
		if c != nil {
			g.Go(c.Remove)
		}
	}
	err := g.Wait()
	if rerr := os.RemoveAll(d.dir); err == nil {
		err = rerr
	}
	d.show.clear()
	if err != nil {
		d.show.answer.Notef("warning: not everything could be removed from %s: %s", d.dir, err)
	}
}

func shardName(n int) string { return fmt.Sprintf("eu-%d", n+1) }
