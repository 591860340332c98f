package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// newsLate is how old an event may be before it is published: the outbox is emptied within a second.
	newsLate = time.Minute
	// leaseGrace is how long a replication may be without a worker: a lease of 10 s runs out, and the next server looks
	// every few seconds.
	leaseGrace = 15 * time.Second
)

// leaseOf is the lease of a replication, as package supervisor names it.
func leaseOf(replication string) string { return "replication:" + replication }

// checkRoutes looks at the redirects.
func (d *Doctor) checkRoutes(ctx context.Context, f *findings) error {
	rows, err := d.cfg.Pool.Query(ctx, `SELECT r.database, r.target_url, r.tombstone_until IS NULL, COALESCE(d.state IN ('deleted', 'purged'), false), COALESCE(d.deleted_at, now())
		FROM rehome_control.redirects r LEFT JOIN rehome_control.databases d ON d.name = r.database`)
	if err != nil {
		return fmt.Errorf("read the redirects: %w", err)
	}
	var name, to string
	var endless, deleted bool
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&name, &to, &endless, &deleted, &at}, func() error {
		object := "database " + name
		u, err := tenant.ParseDatabaseURL(to)
		if err == nil && strings.EqualFold(u.Base, strings.TrimRight(d.cfg.BaseURL, "/")) && u.Name == name {
			f.add(tenant.Blocking, "redirect-loop", object, "take it back: rehome redirect --off", "its address redirects to itself: %s", to)
		}
		if endless && deleted {
			database, until := name, at.Add(d.cfg.Tombstone)
			f.add(tenant.Warning, "redirect-without-tombstone", object, fixIt+" gives it one, until "+until.UTC().Format(time.DateOnly), "it is deleted, but its redirect has no end").fix(func(ctx context.Context) error {
				return d.cfg.Gateway.SetTombstone(ctx, database, until)
			})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the redirects: %w", err)
	}
	return nil
}

// checkLeases looks for replications that nobody works on. This server runs, so somebody should.
func (d *Doctor) checkLeases(ctx context.Context, f *findings) error {
	rows, err := d.cfg.Pool.Query(ctx, `SELECT r.id, r.phase, COALESCE(l.holder, ''), now() - COALESCE(l.expires_at, r.created_at)
		FROM rehome_control.replications r LEFT JOIN rehome_control.leases l ON l.resource = $1 || r.id
		WHERE COALESCE(l.expires_at, r.created_at) < now() - $2::interval
		  AND (r.phase NOT IN ('completed', 'cancelled') OR EXISTS (
			SELECT FROM rehome_control.replication_commands c WHERE c.replication = r.id AND c.finished_at IS NULL AND c.created_at < now() - $2::interval))`, leaseOf(""), leaseGrace)
	if err != nil {
		return fmt.Errorf("read the leases: %w", err)
	}
	var id, phase, holder string
	var since time.Duration
	_, err = pgx.ForEachRow(rows, []any{&id, &phase, &holder, &since}, func() error {
		last := "nobody ever did"
		if holder != "" {
			last = "the last was " + holder
		}
		f.add(tenant.Blocking, "lease-expired", "replication "+id, "see the log of the servers for why they do not take it, and restart one", "nobody has worked on it for %s although servers run (%s); it is %s", since.Round(time.Second), last, phase).mayPass()
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the leases: %w", err)
	}
	return nil
}

// checkCertificates looks for cutovers that left no proof.
func (d *Doctor) checkCertificates(ctx context.Context, f *findings) error {
	rows, err := d.cfg.Pool.Query(ctx, `SELECT r.id FROM rehome_control.replications r
		WHERE (r.phase = 'cut_over' OR EXISTS (SELECT FROM rehome_control.cutovers c WHERE c.replication = r.id AND c.direction = 'cutover' AND c.outcome = 'target'))
		  AND NOT EXISTS (SELECT FROM rehome_control.cutovers c WHERE c.replication = r.id AND c.direction = 'cutover'
			AND (c.certificate IS NOT NULL OR c.finished_at IS NULL)) ORDER BY r.created_at`)
	if err != nil {
		return fmt.Errorf("look for certificates: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for certificates: %w", err)
	}
	for _, id := range ids {
		f.add(tenant.Blocking, "certificate-missing", "replication "+id, "restore the control database's table cutovers from a backup; without the certificate the old side is not deleted unless forced", "it was cut over, but there is no certificate of that").mayPass()
	}
	return nil
}

// checkEvents looks for news that do not leave.
func (d *Doctor) checkEvents(ctx context.Context, f *findings) error {
	var n int64
	var oldest time.Duration
	err := d.cfg.Pool.QueryRow(ctx, `SELECT count(*), COALESCE(max(now() - created_at), '0'::interval) FROM rehome_control.events WHERE published_at IS NULL AND created_at < now() - $1::interval`, newsLate).Scan(&n, &oldest)
	if err != nil {
		return fmt.Errorf("look for events that wait: %w", err)
	}
	if n > 0 {
		f.add(tenant.Warning, "events-unpublished", "nats", "see that the NATS server of REHOME_NATS_URL runs and lets this installation in; nothing is lost, it catches up by itself",
			"%d events wait to be published, the oldest for %s", n, oldest.Round(time.Second)).mayPass()
	}
	return nil
}

// checkChannel looks how codes reach people.
func (d *Doctor) checkChannel(ctx context.Context, f *findings) error {
	ch, err := d.cfg.Channel(ctx)
	switch {
	case err != nil:
		f.add(tenant.Blocking, "channel-broken", "e-mail channel", "set it again: rehome init-email-channel URL", "the e-mail channel cannot be used: %s", err)
	case ch == "log:":
		f.add(tenant.Warning, "channel-log", "e-mail channel", "set one: rehome init-email-channel smtp://…", "codes go to the server's log, where everybody who reads it finds them")
	}
	return nil
}
