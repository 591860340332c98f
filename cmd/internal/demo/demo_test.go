package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/cli"
	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/otp"
)

// The demos of this package run one after the other: each fills a small machine.

// runDemo runs `rehome demo` as a person does, and returns the document.
func runDemo(t *testing.T, o options, args ...string) (rep Report, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(t.Context(), cli.Env{
		Args: append([]string{"demo", "-o", "json"}, args...), Stdout: &out, Stderr: &errs, Environ: os.Environ(), Dir: t.TempDir(),
		Commands: []func(*cli.App) *cobra.Command{func(a *cli.App) *cobra.Command { return newCommand(a, o) }},
	})
	dec := json.NewDecoder(&out)
	if err := dec.Decode(&rep); err != nil {
		t.Fatalf("stdout is no document: %v\n%s", err, errs.String())
	}
	for _, s := range rep.Steps {
		t.Logf("%5.1f s  %s", s.Seconds, s.Title)
	}
	t.Logf("%5.1f s  in all; pause %.0f ms, longest waits %.0f and %.0f ms", rep.Seconds, rep.PauseMillis, rep.GapDirectMillis, rep.GapHTTPMillis)
	if dec.More() {
		t.Error("stdout has more than one document")
	}
	return rep, errs.String(), code
}

func failedChecks(rep Report) []string {
	names := []string{}
	for _, c := range rep.Checks {
		if !c.OK {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

func TestDemo(t *testing.T) {
	sizes := []int{3}
	if os.Getenv("REHOME_LONG") != "" {
		sizes = []int{2, 3} // make long; what notices faults runs with one shard
	}
	for _, shards := range sizes {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			rep, stderr, code := runDemo(t, options{}, "--shards", fmt.Sprint(shards))
			if code != 0 || !rep.OK || rep.Failed != nil {
				t.Fatalf("exit code %d, failed: %+v\n%s", code, rep.Failed, stderr)
			}
			if bad := failedChecks(rep); len(bad) > 0 || len(rep.Checks) < 30 {
				t.Errorf("of %d checks these do not hold: %v", len(rep.Checks), bad)
			}
			for _, c := range rep.Checks {
				if c.Name == "" || c.Unit == "" || c.Detail == "" {
					t.Errorf("a check does not explain itself: %+v", c)
				}
			}
			if rep.PauseMillis <= 0 || rep.GapDirectMillis < rep.PauseMillis/2 || rep.GapHTTPMillis <= 0 || rep.GapRollbackMillis <= 0 || rep.Rates.CopyRows <= 0 || rep.Rates.VerifyRows <= 0 || rep.Rates.Writes <= 0 {
				t.Errorf("figures are missing: %+v", rep)
			}
			if len(rep.Steps) != len(newDemo(options{}, nil).steps()) || rep.Certificate == nil || rep.Shards != shards || len(rep.Connections) < 2 {
				t.Errorf("the report is not whole: %+v", rep)
			}
			gone(t, stderr)
		})
	}
}

// What is broken after the move is noticed by the checks that are there for it, and by no others.
func TestDemoNoticesFaults(t *testing.T) {
	breakThings := func(ctx context.Context, d *demo) error {
		mails, err := otp.ReadMailbox(d.own.mail)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(mails, func(m otp.Mail) bool { return m.Code != "" })
		log, err := os.OpenFile(d.own.logFile, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, werr := log.WriteString("the code is " + mails[i].Code + "\n")
		d.certificate.GateEpoch += 2
		return errors.Join(werr, log.Close(),
			execute(ctx, d.shards[0].DSN(database).Reveal(), `DELETE FROM events WHERE id = (SELECT id FROM ledger.transfers WHERE tags = '{writer}' ORDER BY id LIMIT 1)`),
			execute(ctx, d.shards[0].DSN(database).Reveal(), `UPDATE ledger.accounts SET balance = balance + 1 WHERE realm_id = 'rlm-0001' AND id = 1`),
			execute(ctx, d.source.DSN(database).Reveal(), `CREATE PUBLICATION rehome_left`),
			// The fence watches over its own triggers: who wants to take one away has to take away the watch first.
			execute(ctx, d.source.DSN(database).Reveal(), `ALTER EVENT TRIGGER rehome_fence_ddl_end DISABLE; ALTER TABLE public.plans DISABLE TRIGGER ALL; ALTER EVENT TRIGGER rehome_fence_ddl_end ENABLE ALWAYS`),
			execute(ctx, d.source.DSN(hostedControl).Reveal(), `UPDATE rehome_control.databases SET purge_after = now()`),
			execute(ctx, d.source.DSN(hostedControl).Reveal(), `UPDATE rehome_control.redirects SET target_url = target_url || '/elsewhere'; NOTIFY rehome_routes`),
			d.routed(ctx),
		)
	}
	rep, stderr, code := runDemo(t, options{fault: breakThings}, "--shards", "1")
	if code != 1 || rep.OK || rep.Failed != nil {
		t.Errorf("exit code %d, ok %t, failed %+v\n%s", code, rep.OK, rep.Failed, stderr)
	}
	want := []string{
		workload.CheckPresent, workload.CheckBalances, "certificate-valid", "deleted-but-not-yet-destroyed", "fence-names-the-new-address",
		workload.CheckMoney, "no-secret-in-the-logs", "slot-and-publication-gone", workload.CheckFenced, "tombstone-redirects", workload.CheckWhole,
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, failedChecks(rep)); diff != "" {
		t.Errorf("these checks fail (-want +got):\n%s", diff)
	}
	gone(t, stderr)
}

// routed waits until the hosted gateway knows of a changed redirect.
func (d *demo) routed(ctx context.Context) error {
	return eventually(ctx, probeWithin, "the gateway reads its routes", func(ctx context.Context) (bool, error) {
		return !d.tombstone(ctx).OK, nil
	})
}

func execute(ctx context.Context, dsn, sql string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// An interrupt ends the demo at once, and nothing stays.
func TestDemoInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &watched{see: "own $ rehome add-shard", do: interrupt}
	began := time.Now()
	code := cli.Run(ctx, cli.Env{Args: []string{"demo", "--shards", "1"}, Stdout: out, Stderr: out, Environ: os.Environ(), Dir: t.TempDir(), Commands: []func(*cli.App) *cobra.Command{Command}})
	if code != 130 {
		t.Errorf("exit code %d, want 130\n%s", code, out.String())
	}
	t.Logf("ended after %s", time.Since(began))
	gone(t, out.String())
}

// watched calls do when a text was written.
type watched struct {
	mu  sync.Mutex
	buf bytes.Buffer
	see string
	do  func()
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(b)
	if strings.Contains(w.buf.String(), w.see) {
		w.do()
	}
	return len(b), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// gone: neither directories nor servers of a demo are left.
func gone(t *testing.T, said string) {
	t.Helper()
	dirs := regexp.MustCompile(`file://(/\S+)-mail`).FindStringSubmatch(said)
	if dirs == nil {
		t.Fatalf("the demo named no mailbox:\n%s", said)
	}
	if _, err := os.Stat(dirs[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dirs[1], err)
	}
	ports := regexp.MustCompile(`on port (\d+)`).FindAllStringSubmatch(said, -1)
	if len(ports) < 2 {
		t.Fatalf("the demo named %d ports", len(ports))
	}
	for _, p := range ports {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", "127.0.0.1:"+p[1])
		if err == nil {
			_ = conn.Close()
			t.Errorf("somebody still answers on port %s", p[1])
		}
	}
}
