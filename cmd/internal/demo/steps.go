package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// writesWithin bounds waits for some hundred writes: seconds, also on a busy machine.
	writesWithin = time.Minute
	// stepWithin bounds a step that has no data to carry.
	stepWithin = 3 * time.Minute
	// dataPerScale is what steps that carry data may take more for each unit of scale.
	dataPerScale = 30 * time.Second
	// writesBetween is how many writes are let through between two steps, so that each has something to be wrong about.
	writesBetween = 100
	// cutoverTries: an attempt that was taken back (exit code 7) is what a cutover may do on a machine that stalls.
	cutoverTries = 3
	exitRefused  = 3
	exitRestored = 7

	certificateFile = "certificate.json"
)

// step is one step of the journey.
type step struct {
	title  string
	within time.Duration
	do     func(context.Context) error
}

func (d *demo) steps() []step {
	data := stepWithin + time.Duration(d.opt.scale)*dataPerScale
	return []step{
		{"Postgres: a source, and shards of one's own", data, d.startClusters},
		{"The hosted service, and the tenant's application", stepWithin, d.startHosted},
		{"Rehome on one's own machines, with the shards", stepWithin, d.startOwn},
		{"Clients write, and will not stop", stepWithin, d.startClients},
		{"Can it be moved?", stepWithin, d.preflight},
		{"Start the replication, with a code by e-mail", stepWithin, d.startReplication},
		{"Copy, while clients write", data, d.watchCopy},
		{"Compare both sides row by row, while both keep moving", data, d.verify},
		{"Cut over", data, d.cutOver},
		{"The way back runs: what is written at the new side arrives at the old one", data, d.wayBack},
		{"Go back: the old side takes the writes again", data, d.rollBack},
		{"Cut over again, to stay", data, d.cutOverAgain},
		{"Send the clients of the old address to the new one", stepWithin, d.redirect},
		{"Watch the old side's connections fall to zero", stepWithin, d.fall},
		{"Complete", stepWithin, d.complete},
		{"Delete the old side", stepWithin, d.deleteOld},
		{"Check everything", data, d.checkAll},
	}
}

// plan are the flags that preflight and start-replication share.
func (d *demo) plan(more ...string) []string {
	return append([]string{"--from", d.source.DSN(database).Reveal(), "--to", d.newURL()}, more...)
}

// accepted are the flags that answer the findings: what has no realms, what can be mended, what is accepted by name.
func (d *demo) accepted() []string {
	var reference []string
	for _, t := range workload.ReferenceTables() {
		reference = append(reference, t.String())
	}
	flags := []string{"--reference", strings.Join(reference, ","), "--fix-identity"}
	if d.opt.shards > 1 {
		for _, c := range workload.ConstraintsWithoutRealm() {
			flags = append(flags, "--accept", "constraint-without-realm:"+c)
		}
	}
	return flags
}

func (d *demo) preflight(ctx context.Context) error {
	first := append([]string{"preflight"}, d.plan()...)
	if _, err := d.do(ctx, how{in: d.own, want: []int{exitRefused}}, first...); err != nil {
		return err
	}
	_, err := d.do(ctx, how{in: d.own}, append([]string{"preflight"}, d.plan(d.accepted()...)...)...)
	return err
}

func (d *demo) startReplication(ctx context.Context) error {
	if _, err := d.approved(ctx, how{in: d.own}, append([]string{"start-replication"}, d.plan(d.accepted()...)...)...); err != nil {
		return err
	}
	all, err := ask[[]api.Replication](ctx, d.own, "replications")
	if err != nil {
		return err
	}
	if len(all) != 1 {
		return fmt.Errorf("%d replications are listed, expected one", len(all))
	}
	d.replication = all[0]
	return nil
}

func (d *demo) watchCopy(ctx context.Context) error {
	began := time.Now()
	if _, err := d.do(ctx, how{in: d.own, raw: true}, "replication-progress", "--watch", "--until", string(tenant.InSync)); err != nil {
		return err
	}
	took := time.Since(began)
	p, err := ask[tenant.Progress](ctx, d.own, "replication-progress")
	if err != nil {
		return err
	}
	d.rep.Rates.CopyRows, d.rep.Rates.CopyBytes = perSecond(p.RowsDone, took), perSecond(p.BytesDone, took)
	d.show.note("%s rows, %s copied in %s: %s/s", output.Count(p.RowsDone), output.Bytes(float64(p.BytesDone)), output.Millis(float64(took.Milliseconds())), output.Bytes(d.rep.Rates.CopyBytes))
	// What must be gone at the end has to be there now, or its absence would prove nothing.
	left, err := d.leftovers(ctx)
	if err != nil {
		return err
	}
	for _, kind := range leftoverKinds(d.opt.shards) {
		if left[kind] == 0 {
			return fmt.Errorf("the source has no %s of the replication, expected at least one", kind)
		}
	}
	return d.acknowledged(ctx, workload.SideSource, writesBetween)
}

func (d *demo) verify(ctx context.Context) error {
	before := d.ledger.Counts().Acknowledged
	if _, err := d.do(ctx, how{in: d.own}, "verify"); err != nil {
		return err
	}
	d.during = d.ledger.Counts().Acknowledged - before
	var err error
	if d.verified, err = ask[tenant.Verification](ctx, d.own, "verify", "--last"); err != nil {
		return err
	}
	d.rep.Rates.VerifyRows = perSecond(d.verified.Rows, d.verified.FinishedAt.Sub(d.verified.StartedAt))
	d.show.note("%s writes were acknowledged meanwhile", output.Count(d.during))
	return nil
}

// cutOver rehearses first: the rehearsal says what the pause would be, and takes itself back.
func (d *demo) cutOver(ctx context.Context) error {
	d.watchConnections()
	if _, err := d.do(ctx, how{in: d.own}, "cutover", "--dry-run"); err != nil {
		return err
	}
	if _, err := d.approved(ctx, how{in: d.own}, append([]string{"cutover", "--rehearse"}, d.plan()...)...); err != nil {
		return err
	}
	if err := d.acknowledged(ctx, workload.SideSource, writesBetween); err != nil {
		return err
	}
	return d.move(ctx, append([]string{"cutover"}, d.plan()...)...)
}

// move runs a cutover or a rollback. It asks for the code before the clients' waits are measured: a person's typing is no
// pause.
func (d *demo) move(ctx context.Context, args ...string) error {
	d.pulse()
	for try := 1; ; try++ {
		r, err := d.approved(ctx, how{in: d.own, before: d.ledger.ResetGaps, want: []int{0, exitRestored}}, args...)
		if err != nil {
			return err
		}
		if r.code == 0 {
			return nil
		}
		if try == cutoverTries {
			return unexpected(args[:1], r, 0)
		}
		d.show.note("the attempt was taken back, the same side as before takes the writes; once more")
	}
}

// wayBack: what clients write at the new side arrives at the old one, which refuses writes of its own.
func (d *demo) wayBack(ctx context.Context) error {
	if err := d.acknowledged(ctx, workload.SideShards, 2*writesBetween); err != nil {
		return err
	}
	ids := d.ledger.AcknowledgedBy(workload.SideShards)
	source, err := d.pool(ctx, d.source.DSN(database), "rehome demo", 1)
	if err != nil {
		return err
	}
	defer source.Close()
	began := time.Now()
	err = eventually(ctx, writesWithin, "the source has what was written at the shards", func(ctx context.Context) (bool, error) {
		n, err := workload.Missing(ctx, source, ids)
		return n == 0, err
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	// What is shown is from up to a second ago, when the last of its connections may not have been made.
	var p tenant.Progress
	err = eventually(ctx, writesWithin, "replication-progress shows that the way back runs", func(ctx context.Context) (bool, error) {
		var err error
		p, err = ask[tenant.Progress](ctx, d.own, "replication-progress")
		return p.WayBack != nil && p.WayBack.State == tenant.WayBackRunning, err
	})
	if err != nil {
		return fmt.Errorf("%w; it shows %+v", err, p.WayBack)
	}
	d.show.note("the way back runs: %s and %s behind; all of %s writes are at the source", output.Millis(p.WayBack.LagMillis), output.Bytes(float64(p.WayBack.LagBytes)), output.Count(int64(len(ids))))
	d.checks = append(d.checks, Check{
		Name: "way-back-carries-writes", OK: len(ids) > 0, Figure: int64(len(ids)), Unit: "writes of the shards found at the source",
		Detail: fmt.Sprintf("the last of them %s after it was acknowledged, at most; lag %s", output.Millis(float64(took.Milliseconds())), output.Millis(p.WayBack.LagMillis)),
	})
	return nil
}

// rollBack gives the writes back to the source, which then has everything that either side has acknowledged.
func (d *demo) rollBack(ctx context.Context) error {
	if _, err := d.do(ctx, how{in: d.own}, "verify"); err != nil {
		return err
	}
	if err := d.move(ctx, "rollback"); err != nil {
		return err
	}
	ids := d.ledger.AcknowledgedBy("")
	source, err := d.pool(ctx, d.source.DSN(database), "rehome demo", 1)
	if err != nil {
		return err
	}
	defer source.Close()
	missing, err := workload.Missing(ctx, source, ids)
	if err != nil {
		return err
	}
	d.checks = append(d.checks, Check{
		Name: "rollback-loses-nothing", OK: missing == 0 && len(ids) > 0, Figure: int64(len(ids)), Unit: "acknowledged writes",
		Detail: fmt.Sprintf("by either side, looked for at the source just after it: %d missing", missing),
	})
	if err := d.acknowledged(ctx, workload.SideSource, 2*writesBetween); err != nil {
		return err
	}
	d.rep.GapRollbackMillis = d.ledger.LongestGap(workload.GapDirect).Millis()
	d.show.note("the longest wait of direct clients was %s", output.Millis(d.rep.GapRollbackMillis))
	return nil
}

// cutOverAgain is the one that stays: its certificate counts.
func (d *demo) cutOverAgain(ctx context.Context) error {
	if err := d.verify(ctx); err != nil {
		return err
	}
	return d.move(ctx, append([]string{"cutover"}, d.plan()...)...)
}

// redirect comes right after the cutover: until then the hosted application refuses its clients' writes.
func (d *demo) redirect(ctx context.Context) error {
	if _, err := d.approved(ctx, how{in: d.own, mailbox: d.hosted}, "redirect", "--from", d.oldURL(), "--to", d.newURL()); err != nil {
		return err
	}
	if err := d.acknowledged(ctx, workload.SideShards, 2*writesBetween); err != nil {
		return err
	}
	d.rep.GapDirectMillis, d.rep.GapHTTPMillis = d.ledger.LongestGap(workload.GapDirect).Millis(), d.ledger.LongestGap(workload.GapHTTP).Millis()
	var err error
	if d.certificate, err = ask[tenant.Certificate](ctx, d.own, "certificate", "show"); err != nil {
		return err
	}
	d.rep.Certificate, d.rep.PauseMillis = &d.certificate, d.certificate.PauseMillis
	d.show.note("writes paused for %s; the longest wait of direct clients was %s, of HTTP clients %s", output.Millis(d.rep.PauseMillis),
		output.Millis(d.rep.GapDirectMillis), output.Millis(d.rep.GapHTTPMillis))
	d.checks = append(d.checks, d.redirects(ctx, "redirect-temporary", 307))
	return nil
}

// fall: hours later, when nobody wants to go back, the redirect becomes permanent. Clients remember that and come no
// more; then the vendor stops the application, and its sessions at the source end.
func (d *demo) fall(ctx context.Context) error {
	if _, err := d.approved(ctx, how{in: d.own, mailbox: d.hosted}, "redirect", "--from", d.oldURL(), "--to", d.newURL(), "--permanent"); err != nil {
		return err
	}
	d.checks = append(d.checks, d.redirects(ctx, "redirect-permanent", 308))
	d.show.command(d.own.name, d.curve.args)
	err := d.curve.until(ctx, "nobody comes through the old side's gateway", d.draw, func(s api.Stats) bool { return s.ByVia["gateway"] == 0 })
	if err != nil {
		return err
	}
	d.show.note("nobody comes through the gateway any more; the vendor stops the old application, which has %d sessions", d.curve.last().ByVia["direct"])
	d.oldApp.running.stop()
	if err := d.curve.until(ctx, "nobody is connected to the old side", d.draw, func(s api.Stats) bool { return s.OpenNow == 0 }); err != nil {
		return err
	}
	d.curve.stop()
	d.rep.Connections = d.curve.figures()
	d.show.note("connections: %s", d.show.p.Paint(output.Cyan, sparkline(d.rep.Connections, curveWidth)))
	d.checks = append(d.checks, connectionsCheck(d.rep.Connections))
	return nil
}

func (d *demo) draw(s api.Stats) {
	d.show.progress("%s %d open, %d of them past the gateway", sparkline(d.curve.figures(), curveWidth), s.OpenNow, s.ByVia["direct"])
}

func (d *demo) complete(ctx context.Context) error {
	if _, err := d.do(ctx, how{in: d.own}, "complete", "--yes"); err != nil {
		return err
	}
	d.show.note("slot, publication and helpers are gone from the source; its fence stays")
	return d.acknowledged(ctx, workload.SideShards, writesBetween)
}

func (d *demo) deleteOld(ctx context.Context) error {
	d.show.command(d.own.name, []string{"certificate", "show", "-o", "json"}, ">", certificateFile)
	r := d.own.quietly(ctx, d.own.person, "certificate", "show", "-o", "json")
	if r.code != 0 {
		return unexpected([]string{"certificate", "show"}, r, 0)
	}
	if err := writeFile(d.own.dir, certificateFile, r.stdout); err != nil {
		return err
	}
	key, err := ask[struct {
		Fingerprint string `json:"fingerprint"`
	}](ctx, d.own, "certificate", "key")
	if err != nil {
		return err
	}
	if _, err := d.do(ctx, how{in: d.own}, "certificate", "verify", certificateFile, "--key", key.Fingerprint); err != nil {
		return err
	}
	d.checks = append(d.checks, Check{Name: "certificate-verifies", OK: true, Figure: 1, Unit: "certificates", Detail: "rehome certificate verify, by the key " + key.Fingerprint + ", asking nobody"})
	del := []string{"delete-db", d.oldURL()}
	if _, err := d.do(ctx, how{in: d.own, want: []int{exitRefused}}, append(slices.Clone(del), "--request-otp")...); err != nil {
		return fmt.Errorf("without a certificate it must be refused: %w", err)
	}
	if _, err := d.approved(ctx, how{in: d.own, mailbox: d.hosted}, append(slices.Clone(del), "--certificate", certificateFile)...); err != nil {
		return err
	}
	mail, err := d.hosted.letter(ctx, "the confirmation", isConfirmation)
	if err != nil {
		return err
	}
	d.mailRead(mail)
	if _, err := d.do(ctx, how{in: d.own}, append(slices.Clone(del), "--confirm", mail.Code)...); err != nil {
		return err
	}
	return d.acknowledged(ctx, workload.SideShards, writesBetween)
}
