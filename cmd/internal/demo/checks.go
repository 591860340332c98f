package demo

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// pauseLimit is the maximum pause that the cutover is asked for (its default). A loaded machine may need more than the
// usual tens of milliseconds; the figure says how many.
const pauseLimit = 5 * time.Second

// checkAll ends the writing and looks at everything.
func (d *demo) checkAll(ctx context.Context) error {
	d.writing.stop()
	d.pulse()
	report := d.writers.Report()
	d.rep.Writers = &report
	d.rep.Rates.Writes = perSecond(report.Counts.Acknowledged, time.Since(d.since))
	if d.opt.fault != nil {
		if err := d.opt.fault(ctx, d); err != nil {
			return fmt.Errorf("break something: %w", err)
		}
	}
	source, err := d.pool(ctx, d.source.DSN(database), "rehome demo", 2)
	if err != nil {
		return err
	}
	d.show.progress("comparing the shards with what the clients were told")
	d.rep.Checks = append(d.rep.Checks, workload.Check(ctx, d.ledger, d.placement, d.shardPools, source)...)
	d.rep.Checks = append(d.rep.Checks, d.checks...)
	d.rep.Checks = append(d.rep.Checks, clientsCheck(report), socketsCheck(report.Sockets, d.newURL()), pauseCheck(d.certificate.PauseMillis), verificationCheck(d.verified, d.rep.Rows, d.during))
	for _, check := range []func(context.Context) Check{d.spread, d.told, d.cleaned, d.fence(source), d.signed(source), d.tombstone, d.deletedSoftly(source), d.discreet} {
		d.rep.Checks = append(d.rep.Checks, check(ctx))
	}
	d.show.clear()
	return nil
}

// failing makes a check's result of an error.
func failing(name, unit string, err error) Check {
	return Check{Name: name, Unit: unit, Detail: "could not be checked: " + err.Error()}
}

// clientsCheck: both sides were written to, and nobody was left without an answer.
func clientsCheck(r workload.WriterReport) Check {
	c := r.Counts
	source, shards := c.BySide[workload.SideSource], c.BySide[workload.SideShards]
	return Check{
		Name: "clients-never-stopped", OK: source > 0 && shards > 0 && c.Unknown == 0 && r.Redirects > 0, Figure: c.Acknowledged, Unit: "acknowledged writes",
		Detail: fmt.Sprintf("%s by the source, %s by the shards, %d without an answer; %d redirects followed", output.Count(source), output.Count(shards), c.Unknown, r.Redirects),
	}
}

// socketsCheck: WebSockets were told where to go, closed, and opened again there.
func socketsCheck(r workload.SocketReport, newURL string) Check {
	told := r.Closes["4301 "+newURL]
	return Check{
		Name: "websockets-sent-on", OK: told >= sockets && r.MovedTo == newURL && r.Opened > told, Figure: told, Unit: "closed with the new URL",
		Detail: fmt.Sprintf("they went to %s; %d opened in all, %d notices", orNothing(r.MovedTo), r.Opened, len(r.Notices)),
	}
}

func orNothing(s string) string {
	if s == "" {
		return "no other place"
	}
	return s
}

func pauseCheck(ms float64) Check {
	return Check{
		Name: "pause-within-its-maximum", OK: ms > 0 && ms <= float64(pauseLimit.Milliseconds()), Figure: int64(ms + 0.5), Unit: "ms",
		Detail: "from the fence to its decision, as the certificate says",
	}
}

// connectionsCheck: there were clients on the old side, and in the end there are none.
func connectionsCheck(figures []int) Check {
	c := Check{Name: "connections-fall-to-zero", Unit: "connections left"}
	if len(figures) == 0 {
		c.Detail = "they were never counted"
		return c
	}
	first, last := figures[0], figures[len(figures)-1]
	c.OK, c.Figure = first > 0 && last == 0, int64(last)
	c.Detail = fmt.Sprintf("%d were open before the cutover; gateway and the source's own sessions together", first)
	return c
}

// spread: every shard holds realms, or the move would not show that they are spread.
func (d *demo) spread(ctx context.Context) Check {
	c := Check{Name: "every-shard-holds-realms", OK: true, Unit: "realms"}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(d.shardPools)) {
		var n int64
		if err := d.shardPools[name].QueryRow(ctx, `SELECT count(*) FROM public.realms`).Scan(&n); err != nil {
			return failing(c.Name, c.Unit, fmt.Errorf("shard %s: %w", name, err))
		}
		c.OK = c.OK && n > 0
		c.Figure += n
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	c.OK = c.OK && c.Figure == int64(d.rep.Realms)
	c.Detail = strings.Join(parts, ", ")
	return c
}

// verificationCheck: it was clean, and looked at everything that there was while clients wrote.
func verificationCheck(v tenant.Verification, atLeast, during int64) Check {
	return Check{
		Name: "verification-clean", OK: v.Clean && v.Error == "" && v.Rows >= atLeast && v.Digest != "" && during > 0, Figure: v.Rows, Unit: "rows",
		Detail: fmt.Sprintf("both sides compared at %s, while %s writes were acknowledged; digest %.12s", v.LSN, output.Count(during), v.Digest),
	}
}

// What a replication makes at a source, and what complete takes away.
const (
	leftSlots        = "slot"
	leftPublications = "publication"
	leftIndexes      = "identity index"
	leftIdentities   = "replica identity"
)

func leftoverKinds(shards int) []string {
	if shards == 1 {
		return []string{leftSlots, leftPublications}
	}
	return []string{leftSlots, leftPublications, leftIndexes, leftIdentities}
}

// leftovers counts them.
func (d *demo) leftovers(ctx context.Context) (map[string]int64, error) {
	conn, err := pgx.Connect(ctx, d.source.DSN(database).Reveal())
	if err != nil {
		return nil, fmt.Errorf("look at the source: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	left := map[string]int64{}
	for kind, sql := range map[string]string{
		leftSlots:        `SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'rehome%'`,
		leftPublications: `SELECT count(*) FROM pg_publication WHERE pubname LIKE 'rehome%'`,
		leftIndexes:      `SELECT count(*) FROM pg_class WHERE relkind IN ('i', 'I') AND relname LIKE 'rehome%' AND relnamespace IN ('public'::regnamespace, 'ledger'::regnamespace)`,
		leftIdentities:   `SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relreplident <> 'd' AND relnamespace IN ('public'::regnamespace, 'ledger'::regnamespace)`,
	} {
		var n int64
		if err := conn.QueryRow(ctx, sql).Scan(&n); err != nil {
			return nil, fmt.Errorf("look at the source: %w", err)
		}
		left[kind] = n
	}
	return left, nil
}

func (d *demo) cleaned(ctx context.Context) Check {
	c := Check{Name: "slot-and-publication-gone", Unit: "left at the source"}
	left, err := d.leftovers(ctx)
	if err != nil {
		return failing(c.Name, c.Unit, err)
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(left)) {
		c.Figure += left[kind]
		parts = append(parts, fmt.Sprintf("%s %d", kind, left[kind]))
	}
	c.OK, c.Detail = c.Figure == 0, strings.Join(parts, ", ")
	return c
}

// fence: a program that still writes to the source learns where to go.
func (d *demo) fence(source *pgxpool.Pool) func(context.Context) Check {
	return func(ctx context.Context) Check {
		c := Check{Name: "fence-names-the-new-address", Unit: "refusals"}
		_, err := source.Exec(ctx, `UPDATE public.plans SET price = price`)
		pe, ok := errors.AsType[*pgconn.PgError](err)
		if !ok {
			return failing(c.Name, c.Unit, fmt.Errorf("a write to the source was not refused by its Postgres: %v", err)) //nolint:errorlint // it may be nil
		}
		c.OK, c.Detail = pe.Code == workload.FenceCode && strings.Contains(pe.Hint, d.newURL()), pe.Code+": "+pe.Message+"; hint: "+pe.Hint
		if c.OK {
			c.Figure = 1
		}
		return c
	}
}

// signed: the certificate is signed by one's own installation, and says what the gate and the verification say.
func (d *demo) signed(source *pgxpool.Pool) func(context.Context) Check {
	return func(ctx context.Context) Check {
		c := Check{Name: "certificate-valid", Unit: "signatures"}
		if err := d.checkCertificate(ctx, source); err != nil {
			c.Detail = err.Error()
			return c
		}
		c.OK, c.Figure = true, 1
		c.Detail = fmt.Sprintf("signed by installation %s; gate epoch %d, marker %s, %d sequences set", d.certificate.Installation, d.certificate.GateEpoch, d.certificate.MarkerLSN, len(d.certificate.Sequences))
		return c
	}
}

func (d *demo) checkCertificate(ctx context.Context, source *pgxpool.Pool) error {
	cl, err := d.own.client()
	if err != nil {
		return err
	}
	inst, err := cl.Installation(ctx)
	if err != nil {
		return fmt.Errorf("ask for the installation's key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(inst.PublicKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return errors.New("the installation's public key cannot be read")
	}
	state, err := gate.ReadGate(ctx, source)
	if err != nil {
		return fmt.Errorf("read the source's gate: %w", err)
	}
	return certificateHolds(d.certificate, key, state, d.verified, d.newURL())
}

// certificateHolds checks the signature, and what is signed against its witnesses.
func certificateHolds(c tenant.Certificate, key ed25519.PublicKey, state gate.State, v tenant.Verification, newURL string) error {
	if err := cutover.Verify(c, key); err != nil {
		return err
	}
	switch {
	case state.Side != gate.SideTarget || state.Epoch != c.GateEpoch || state.Attempt != c.Attempt:
		return fmt.Errorf("the gate says %s, epoch %d, attempt %s; the certificate epoch %d, attempt %s", state.Side, state.Epoch, state.Attempt, c.GateEpoch, c.Attempt)
	case c.Verification != v.ID || c.Digest != v.Digest:
		return fmt.Errorf("the certificate is about verification %s, the clean one is %s", c.Verification, v.ID)
	case c.Target != newURL || state.NewURL != newURL:
		return fmt.Errorf("the certificate names %s, the gate %s; expected %s", c.Target, state.NewURL, newURL)
	}
	return nil
}

// tombstone: the old address goes on redirecting after the deletion.
func (d *demo) tombstone(ctx context.Context) Check {
	return d.redirects(ctx, "tombstone-redirects", http.StatusPermanentRedirect)
}

// deletedSoftly: the hosted side counts it as deleted, and its data is there until the time of grace is over.
func (d *demo) deletedSoftly(source *pgxpool.Pool) func(context.Context) Check {
	return func(ctx context.Context) Check {
		c := Check{Name: "deleted-but-not-yet-destroyed", Unit: "days of grace"}
		all, err := ask[[]api.Database](ctx, d.hosted, "databases")
		if err != nil {
			return failing(c.Name, c.Unit, err)
		}
		var realms int
		if err := source.QueryRow(ctx, `SELECT count(*) FROM public.realms`).Scan(&realms); err != nil {
			return failing(c.Name, c.Unit, err)
		}
		i := slices.IndexFunc(all, func(db api.Database) bool { return db.Name == database })
		if i < 0 || all[i].State != "deleted" || all[i].PurgeAfter == nil {
			c.Detail = "the hosted side does not list it as deleted"
			return c
		}
		left := time.Until(*all[i].PurgeAfter)
		c.Figure = int64(left.Hours()/24 + 0.5)
		c.OK = left > 24*time.Hour && realms == d.rep.Realms
		c.Detail = fmt.Sprintf("until %s undelete brings it back; %d of %d realms are still there", output.When(*all[i].PurgeAfter), realms, d.rep.Realms)
		return c
	}
}

// told: the owner got e-mails about what happened, each once.
func (d *demo) told(ctx context.Context) Check {
	c := Check{Name: "owner-was-told", Unit: "e-mails", OK: true}
	want := map[string]int{"is in sync": 1, "was cut over": 2, "was rolled back": 1, "was deleted": 1}
	err := eventually(ctx, mailWithin, "the owner is told what happened", func(context.Context) (bool, error) {
		c.OK, c.Figure = true, 0
		var parts []string
		for _, subject := range slices.Sorted(maps.Keys(want)) {
			n := 0
			for _, i := range []*installation{d.hosted, d.own} {
				mails, err := otp.ReadMailbox(i.mail)
				if err != nil {
					return false, fmt.Errorf("read the mailbox: %w", err)
				}
				for _, m := range mails {
					if m.Kind == otp.KindNotice && m.To == owner && strings.Contains(m.Subject, subject) {
						n++
					}
				}
			}
			c.Figure += int64(n)
			c.OK = c.OK && n == want[subject]
			parts = append(parts, fmt.Sprintf("%s %d", subject, n))
		}
		c.Detail = strings.Join(parts, ", ")
		return c.OK, nil
	})
	if err != nil && c.Detail == "" {
		return failing(c.Name, c.Unit, err)
	}
	return c
}

// discreet: no code and no password is in a server's log.
func (d *demo) discreet(context.Context) Check {
	c := Check{Name: "no-secret-in-the-logs", Unit: "secrets looked for"}
	var secrets []string
	var logs []byte
	for _, i := range []*installation{d.hosted, d.own} {
		raw, err := os.ReadFile(i.logFile)
		if err != nil {
			return failing(c.Name, c.Unit, err)
		}
		logs = append(logs, raw...)
		mails, err := otp.ReadMailbox(i.mail)
		if err != nil {
			return failing(c.Name, c.Unit, err)
		}
		for _, m := range mails {
			if m.Code != "" {
				secrets = append(secrets, m.Code)
			}
		}
	}
	for _, cl := range append(slices.Clone(d.shards), d.source) {
		secrets = append(secrets, passwordOf(cl.DSN(database)))
	}
	found := 0
	for _, s := range secrets {
		if s == "" || bytes.Contains(logs, []byte(s)) {
			found++
		}
	}
	c.Figure, c.OK = int64(len(secrets)), found == 0 && len(logs) > 0 && len(secrets) > 0
	c.Detail = fmt.Sprintf("codes and passwords, in %s of logs: %d found", output.Bytes(float64(len(logs))), found)
	return c
}
