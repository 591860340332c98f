package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// quiet is how long an address is not told the same of the same thing again, unless it got worse.
	quiet = time.Hour
	// worse: half the time that was left, when people were told last, is left.
	worse = 0.5
	// MuteAll stands for every topic.
	MuteAll = "all"

	issuer = "Rehome"
	// sendTimeout bounds one mail, its retries in the channel included.
	sendTimeout = 30 * time.Second
)

// where is what mails say of the database and the replication.
type where struct {
	Database, Owner, Admin string
	Replication            string
	Source, Target         string
	ApprovedBy             string
	Pause                  *float64 // of the last cutover or rollback, ms
}

func (n *Notifier) where(ctx context.Context, tx pgx.Tx, x news) (where, error) {
	w := where{Database: x.database, Replication: x.replication}
	err := tx.QueryRow(ctx, `SELECT admin_email FROM rehome_control.installations`).Scan(&w.Admin)
	if err != nil {
		return w, err
	}
	err = tx.QueryRow(ctx, `SELECT owner_email FROM rehome_control.databases WHERE name = $1`, x.database).Scan(&w.Owner)
	if err == nil && x.replication != "" {
		err = tx.QueryRow(ctx, `SELECT r.source_label, r.target_url, r.approved_by, (SELECT (c.report->>'pause_ms')::float8 FROM rehome_control.cutovers c
				WHERE c.replication = r.id AND c.outcome IS NOT NULL ORDER BY c.started_at DESC LIMIT 1)
			FROM rehome_control.replications r WHERE r.id = $1`, x.replication).Scan(&w.Source, &w.Target, &w.ApprovedBy, &w.Pause)
	}
	if errors.Is(err, pgx.ErrNoRows) { // gone since; the event stands for itself
		err = nil
	}
	return w, err
}

// recipients are those whose matter it is: the database's owner (else the administrator), and who approved the replication.
func (w where) recipients() []string {
	first := w.Owner
	if first == "" {
		first = w.Admin
	}
	var out []string
	for _, a := range []string{first, w.ApprovedBy} {
		parsed, err := mail.ParseAddress(a)
		if err != nil || parsed.Address != a || slices.ContainsFunc(out, func(o string) bool { return strings.EqualFold(o, a) }) {
			continue
		}
		out = append(out, a)
	}
	return out
}

// mail makes a mail and its job for everybody concerned who wants it.
func (n *Notifier) mail(ctx context.Context, tx pgx.Tx, x news) error {
	if !slices.Contains(mailed, x.topic) || (x.topic == Paused && x.facts.Asked) {
		return nil
	}
	w, err := n.where(ctx, tx, x)
	if err != nil {
		return err
	}
	to := w.recipients()
	if len(to) == 0 {
		return nil
	}
	if ok, err := n.worthTelling(ctx, tx, x); err != nil || !ok {
		return err
	}
	notice := n.word(x, w)
	for _, address := range to {
		var muted bool
		if err := tx.QueryRow(ctx, `SELECT coalesce((SELECT muted && ARRAY[$2, 'all'] FROM rehome_control.notification_settings WHERE email = lower($1)), false)`, address, string(x.topic)).Scan(&muted); err != nil {
			return err
		}
		if muted {
			continue
		}
		m, err := otp.NoticeMessage(address, issuer, notice)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		var id int64
		err = tx.QueryRow(ctx, `INSERT INTO rehome_control.notices (event_id, topic, database, recipient, subject, message, created_at) VALUES ($1,$2,$3,$4,$5,$6,$7) RETURNING id`,
			x.event.ID, string(x.topic), x.database, address, m.Subject, raw, n.cfg.Now()).Scan(&id)
		if err != nil {
			return err
		}
		if _, err := n.jobs.InsertTx(ctx, tx, mailArgs{Notice: id}, &river.InsertOpts{Queue: mailQueue, MaxAttempts: jobTries}); err != nil {
			return fmt.Errorf("insert the job: %w", err)
		}
	}
	return nil
}

// worthTelling keeps back what people were told of the same matter within the hour, unless it got worse. The cursor's row
// is held, so nobody else decides at the same time.
func (n *Notifier) worthTelling(ctx context.Context, tx pgx.Tx, x news) (bool, error) {
	thing := x.replication
	if thing == "" {
		thing = x.database
	}
	switch x.topic {
	case SlotInDanger, VerificationFail, Paused, WayBackBroken, Alarm:
	default:
		return true, nil
	}
	topic := "mail " + string(x.topic)
	if x.topic == Alarm || x.topic == Paused || x.topic == SlotInDanger {
		topic += " " + x.same // another reason is other news
	}
	var at time.Time
	var urgency float64
	err := tx.QueryRow(ctx, `SELECT at, urgency FROM rehome_control.told WHERE thing = $1 AND topic = $2`, thing, topic).Scan(&at, &urgency)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, err
	}
	if err == nil && x.event.Time.Sub(at) < quiet && !(urgency < 0 && x.urgency > urgency*worse) {
		return false, nil
	}
	_, err = tx.Exec(ctx, `INSERT INTO rehome_control.told (thing, topic, at, urgency) VALUES ($1,$2,$3,$4)
		ON CONFLICT (thing, topic) DO UPDATE SET at = excluded.at, urgency = excluded.urgency`, thing, topic, x.event.Time, x.urgency)
	return true, err
}

// mailArgs asks for the next try of a mail.
type mailArgs struct {
	Notice int64 `json:"notice"`
}

// Kind implements river.JobArgs.
func (mailArgs) Kind() string { return "notice-mail" }

type mailWorker struct {
	river.WorkerDefaults[mailArgs]
	n *Notifier
}

// Timeout implements river.Worker.
func (*mailWorker) Timeout(*river.Job[mailArgs]) time.Duration { return sendTimeout + settleTimeout }

// Work implements river.Worker: one try, as with deliveries.
func (w *mailWorker) Work(ctx context.Context, job *river.Job[mailArgs]) error {
	n := w.n
	var raw []byte
	var tries int
	var created time.Time
	var topic string
	err := n.cfg.Pool.QueryRow(ctx, `SELECT message, attempts, created_at, topic FROM rehome_control.notices WHERE id = $1 AND state = 'pending'`, job.Args.Notice).Scan(&raw, &tries, &created, &topic)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the mail: %w", err)
	}
	var m otp.Message
	if err := json.Unmarshal(raw, &m); err != nil {
		return river.JobCancel(fmt.Errorf("read the mail: %w", err))
	}
	failure := n.send(ctx, m)
	if failure != nil && ctx.Err() != nil {
		return river.JobSnooze(0)
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	now := n.cfg.Now()
	tries++
	again, more := n.cfg.Options.Mails.next(tries, now.Sub(created), 0)
	state, text := stateSent, ""
	var finished *time.Time
	switch {
	case failure == nil:
		finished = &now
	case more:
		state, text = statePending, failure.Error()
	default:
		state, text, finished = stateDead, failure.Error(), &now
	}
	if _, err := n.cfg.Pool.Exec(sctx, `UPDATE rehome_control.notices SET state = $2, attempts = $3, error = $4, finished_at = $5 WHERE id = $1`, job.Args.Notice, state, tries, text, finished); err != nil {
		return fmt.Errorf("record the try of a mail: %w", err)
	}
	if failure == nil {
		return nil
	}
	n.cfg.Logger.WarnContext(ctx, "a mail was not sent", "topic", topic, "to", otp.Mask(m.To), "tries", tries, "state", state, "error", text)
	if state == statePending {
		return river.JobSnooze(again)
	}
	if err := n.cfg.Audit(sctx, AuditEntry{Action: "mail-dead", Object: otp.Mask(m.To), Outcome: "failed", Detail: map[string]any{"event": topic, "attempts": tries, "error": text}}); err != nil {
		n.cfg.Logger.ErrorContext(ctx, "write audit row", "action", "mail-dead", "error", err)
	}
	return nil
}

func (n *Notifier) send(ctx context.Context, m otp.Message) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	ch, err := n.cfg.Channel(ctx)
	if err != nil {
		return err
	}
	return ch.Send(ctx, m)
}

// Settings lists what addresses do not want to hear of.
func (n *Notifier) Settings(ctx context.Context) ([]api.NotificationSettings, error) {
	rows, err := n.cfg.Pool.Query(ctx, `SELECT email, muted FROM rehome_control.notification_settings ORDER BY email`)
	if err != nil {
		return nil, fmt.Errorf("read the notification settings: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[api.NotificationSettings])
	if err != nil {
		return nil, fmt.Errorf("read the notification settings: %w", err)
	}
	return list, nil
}

// Mute sets what an address does not want to hear of; nothing: it hears of all.
func (n *Notifier) Mute(ctx context.Context, email string, muted []string) (api.NotificationSettings, error) {
	out := api.NotificationSettings{Email: strings.ToLower(email), Muted: []string{}}
	parsed, err := mail.ParseAddress(email)
	if err != nil || parsed.Address != email {
		return out, tenant.Errorf(tenant.KindInvalid, "bad-email", "write it as name@example.com", "%q is not an e-mail address", email)
	}
	if err := CheckTopics(muted, MuteAll); err != nil {
		return out, err
	}
	if len(muted) > 0 {
		slices.Sort(muted)
		out.Muted = slices.Compact(muted)
	}
	if _, err := n.cfg.Pool.Exec(ctx, `INSERT INTO rehome_control.notification_settings (email, muted, updated_at) VALUES ($1, $2, $3)
		ON CONFLICT (email) DO UPDATE SET muted = excluded.muted, updated_at = excluded.updated_at`, out.Email, out.Muted, n.cfg.Now()); err != nil {
		return out, fmt.Errorf("store the notification settings: %w", err)
	}
	return out, nil
}
