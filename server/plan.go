package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// Actions that take a person's code.
const (
	actionStart    = "start-replication"
	actionCutover  = "cutover"
	actionRollback = "rollback"
	actionComplete = "complete"
	actionRedirect = "redirect"
	actionDelete   = "delete-db"
)

const (
	// defaultMaxPause is the deadline of a cutover that names none.
	defaultMaxPause = 5 * time.Second
	// maxMaxPause bounds how long writers may be kept waiting: beyond it clients' own timeouts fire.
	maxMaxPause = 60 * time.Second
	// holdMargin is how much longer than the maximum pause a cutover may ask gateways to hold.
	holdMargin = 5 * time.Second
	// verificationFresh is how old the verification of a cutover may be: what the cutover itself will allow, so that
	// nobody is asked for a code that it then refuses.
	verificationFresh = cutover.VerificationMaxAge
)

// plan is what a code is bound to: computed here, from the request and from the state of the world, for the challenge
// and once more for the action itself. Body's JSON is what is digested.
type plan struct {
	action   string
	database string
	body     any
	text     string // in words, for the e-mail
}

type startPlan struct {
	Action         string                    `json:"action"`
	Source         string                    `json:"source"`     // without credentials
	SourceDigest   string                    `json:"source_mac"` // of the whole connection string
	Target         string                    `json:"target"`
	Options        tenant.ReplicationOptions `json:"options"`
	Shards         []string                  `json:"shards"`
	PlacementEpoch int64                     `json:"placement_epoch"`
}

func (s *Server) planStart(source tenant.DSN, t target, o tenant.ReplicationOptions) plan {
	// With a key: the plan is stored, and a plain digest would let whoever reads it try passwords.
	mac := hmac.New(sha256.New, s.box.Derive("plan-source"))
	_, _ = mac.Write([]byte(source.Reveal()))
	o = o.WithDefaults()
	body := startPlan{
		Action: actionStart, Source: source.String(), SourceDigest: hex.EncodeToString(mac.Sum(nil)), Target: t.url, Options: o,
		Shards: t.placement.Shards(), PlacementEpoch: t.placement.Epoch,
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Copy everything from %s to %s and keep it in step.\n", body.Source, body.Target)
	fmt.Fprintf(&b, "Rows are spread by %s over the shards %s (placement epoch %d).\n", o.RealmKey, strings.Join(body.Shards, ", "), body.PlacementEpoch)
	fmt.Fprintf(&b, "The source gets a slot, a publication and the schema rehome; its clients notice nothing.\n")
	if o.FixIdentity {
		fmt.Fprintf(&b, "The replica identity of tables at the source is changed where that is needed (taken back at the end).\n")
	}
	if len(o.RealmsNeverChange) > 0 {
		fmt.Fprintf(&b, "Asserted: no row of these tables changes its realm: %s.\n", strings.Join(o.RealmsNeverChange, ", "))
	}
	if len(o.Accept) > 0 {
		fmt.Fprintf(&b, "Accepted by name: %s.\n", strings.Join(o.Accept, ", "))
	}
	return plan{action: actionStart, database: t.database.Name, body: body, text: b.String()}
}

type cutoverPlan struct {
	Action             string `json:"action"`
	Source             string `json:"source"`
	Target             string `json:"target"`
	Replication        string `json:"replication"`
	Verification       string `json:"verification"`
	VerificationDigest string `json:"verification_digest"`
	PlacementEpoch     int64  `json:"placement_epoch"`
	MaxPauseMS         int64  `json:"max_pause_ms"`
	NoWayBack          bool   `json:"no_way_back"`
	Rehearse           bool   `json:"rehearse,omitempty"`
}

// planCutover refuses unless the newest verification is clean, and fresh: proof before switch.
func (s *Server) planCutover(ctx context.Context, r api.Replication, in api.CutoverPlan) (plan, cutoverPlan, error) {
	body, err := s.moveBody(ctx, actionCutover, r, in)
	if err != nil {
		return plan{}, body, err
	}
	if err := s.verified(ctx, r, &body); err != nil {
		return plan{}, body, err
	}
	var b strings.Builder
	if body.Rehearse {
		fmt.Fprintf(&b, "REHEARSAL of moving the right to write from %s to %s. Nothing moves: the decision is not taken, and everything goes back to what it was.\n", body.Source, body.Target)
		fmt.Fprintf(&b, "Writes wait as in a cutover, for at most %s, and then go on at the old side.\n", time.Duration(body.MaxPauseMS)*time.Millisecond)
	} else {
		fmt.Fprintf(&b, "Move the right to write from %s to %s.\n", body.Source, body.Target)
		fmt.Fprintf(&b, "Writes wait for at most %s; if it takes longer everything stays as it was.\n", time.Duration(body.MaxPauseMS)*time.Millisecond)
	}
	fmt.Fprintf(&b, "Replication %s, verification %s (digest %s), placement epoch %d.\n", body.Replication, body.Verification, short(body.VerificationDigest), body.PlacementEpoch)
	if body.NoWayBack && !body.Rehearse {
		fmt.Fprintf(&b, "There will be no way back.\n")
	}
	return plan{action: actionCutover, database: r.Database, body: body, text: b.String()}, body, nil
}

// verified puts the newest verification into the plan, which is refused unless that is clean and fresh.
func (s *Server) verified(ctx context.Context, r api.Replication, body *cutoverPlan) error {
	var finished time.Time
	var clean bool
	err := s.pool.QueryRow(ctx, `SELECT id, coalesce(digest, ''), coalesce(clean, false), least(finished_at, compared_at) FROM rehome_control.verifications
		WHERE replication = $1 AND finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1`, r.ID).Scan(&body.Verification, &body.VerificationDigest, &clean, &finished)
	const hint = "run rehome verify"
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return tenant.Errorf(tenant.KindRefused, "not-verified", hint, "replication %s has not been verified", r.ID)
	case err != nil:
		return fmt.Errorf("read the verification: %w", err)
	case !clean:
		return tenant.Errorf(tenant.KindRefused, "verification-not-clean", "see the differing rows with rehome verify; after the cause is mended verify again", "verification %s is not clean", body.Verification)
	case s.cfg.Now().Sub(finished) > verificationFresh:
		return tenant.Errorf(tenant.KindRefused, "verification-too-old", hint, "verification %s is %s old; at most %s is trusted", body.Verification, s.cfg.Now().Sub(finished).Round(time.Minute), verificationFresh)
	}
	return nil
}

func (s *Server) planRollback(ctx context.Context, r api.Replication, in api.CutoverPlan) (plan, cutoverPlan, error) {
	body, err := s.moveBody(ctx, actionRollback, r, in)
	if err != nil {
		return plan{}, body, err
	}
	if err := s.verified(ctx, r, &body); err != nil {
		return plan{}, body, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Go back: move the right to write from %s to %s again.\n", body.Target, body.Source)
	fmt.Fprintf(&b, "Writes wait for at most %s; if it takes longer everything stays as it was.\n", time.Duration(body.MaxPauseMS)*time.Millisecond)
	fmt.Fprintf(&b, "What was written since the cutover is at the old side already: the way back carried it there. Replication goes on from the old side to the new one.\n")
	fmt.Fprintf(&b, "Replication %s, verification %s (digest %s), placement epoch %d.\n", body.Replication, body.Verification, short(body.VerificationDigest), body.PlacementEpoch)
	return plan{action: actionRollback, database: r.Database, body: body, text: b.String()}, body, nil
}

func (s *Server) moveBody(ctx context.Context, action string, r api.Replication, in api.CutoverPlan) (cutoverPlan, error) {
	pause := time.Duration(in.MaxPauseMS) * time.Millisecond
	if pause == 0 {
		pause = defaultMaxPause
	}
	if pause < 0 || pause > maxMaxPause {
		return cutoverPlan{}, tenant.Errorf(tenant.KindInvalid, "bad-max-pause", "name up to "+maxMaxPause.String(), "a maximum pause of %s is not possible", pause)
	}
	if in.Rehearse && action != actionCutover {
		return cutoverPlan{}, tenant.Errorf(tenant.KindInvalid, "no-rehearsal", "rehearse a cutover; rollback has --dry-run", "a %s cannot be rehearsed", action)
	}
	p, err := s.catalogue.Placement(ctx, r.Database)
	if err != nil {
		return cutoverPlan{}, err
	}
	return cutoverPlan{Action: action, Source: r.From, Target: r.To, Replication: r.ID, PlacementEpoch: p.Epoch, MaxPauseMS: pause.Milliseconds(), NoWayBack: in.NoWayBack, Rehearse: in.Rehearse}, nil
}

type completePlan struct {
	Action      string `json:"action"`
	Source      string `json:"source"`
	Target      string `json:"target"`
	Replication string `json:"replication"`
	DropFence   bool   `json:"drop_fence"`

	SourceDestroyed bool `json:"source_destroyed"`
}

// planComplete is of a completion after which two sides can accept writes: one that drops the fence, or whose source is only
// said to be gone.
func planComplete(r api.Replication, dropFence, sourceDestroyed bool) plan {
	body := completePlan{Action: actionComplete, Source: r.From, Target: r.To, Replication: r.ID, DropFence: dropFence, SourceDestroyed: sourceDestroyed}
	var b strings.Builder
	if sourceDestroyed {
		fmt.Fprintf(&b, "Complete replication %s without the old side, %s, which is declared DESTROYED.\n", body.Replication, body.Source)
		fmt.Fprintf(&b, "Nobody asks it which side may write. Where a cutover or rollback is in doubt the new side, %s, is opened: what it had not received is lost.\n", body.Target)
		fmt.Fprintf(&b, "Should the old side still be there, or come back, both can accept writes, and nothing brings them together again. There is no way back.\n")
	}
	if dropFence {
		fmt.Fprintf(&b, "Complete replication %s and let the old side, %s, accept writes again, beside %s.\nNothing keeps clients from writing to both then, and what is written to the old side stays there. There is no way back.\n", body.Replication, body.Source, body.Target)
	}
	return plan{action: actionComplete, database: r.Database, body: body, text: b.String()}
}

type redirectPlan struct {
	Action    string `json:"action"`
	From      string `json:"from"`
	To        string `json:"to"`
	Mode      string `json:"mode"`
	Permanent bool   `json:"permanent"`
	Force     bool   `json:"force"`
}

func (s *Server) planRedirect(in api.RedirectPlan) (plan, redirectPlan, error) {
	body := redirectPlan{Action: actionRedirect, From: s.databaseURL(in.Database), To: in.To, Mode: in.Mode, Permanent: in.Permanent, Force: in.Force}
	if body.Mode == "" {
		body.Mode = string(redirect.ModeRedirect)
	}
	if !oneOf(body.Mode, string(redirect.ModeRedirect), string(redirect.ModeProxy), string(redirect.ModeRefuse)) {
		return plan{}, body, tenant.Errorf(tenant.KindInvalid, "bad-redirect-mode", "use redirect, proxy or refuse", "there is no mode %q", body.Mode)
	}
	to, err := tenant.ParseDatabaseURL(in.To)
	if err != nil {
		return plan{}, body, err
	}
	if body.To = to.String(); body.To == body.From {
		return plan{}, body, tenant.Errorf(tenant.KindInvalid, "redirect-to-itself", "name the new address", "%s cannot be redirected to itself", body.From)
	}
	var b strings.Builder
	how := map[string]string{
		string(redirect.ModeRedirect): "Send the clients of", string(redirect.ModeProxy): "Forward (proxy) the clients of", string(redirect.ModeRefuse): "Refuse, naming the new address, the clients of",
	}[body.Mode]
	fmt.Fprintf(&b, "%s %s to %s.\n", how, body.From, body.To)
	if body.Permanent {
		fmt.Fprintf(&b, "Permanently: clients may remember it.\n")
	}
	if body.Force {
		fmt.Fprintf(&b, "Although the old side may still accept writes.\n")
	}
	return plan{action: actionRedirect, database: in.Database, body: body, text: b.String()}, body, nil
}

type deletePlan struct {
	Action            string   `json:"action"`
	Database          string   `json:"database"`
	URL               string   `json:"url"`
	Force             []string `json:"force"`
	CertificateDigest string   `json:"certificate_sha256"`
	CertificateKey    string   `json:"certificate_key"` // that the person trusts
}

// What a deletion may override by name.
const (
	forceConnections = "connections"
	forceCertificate = "certificate"
	forceRedirect    = "redirect"
	forceWayBack     = "way-back"
)

func (s *Server) planDelete(in api.DeletePlan) (plan, deletePlan, error) {
	body := deletePlan{Action: actionDelete, Database: in.Database, URL: s.databaseURL(in.Database), Force: slices.Sorted(slices.Values(in.Force)), CertificateKey: in.CertificateKey}
	body.Force = orEmpty(slices.Compact(body.Force))
	for _, f := range body.Force {
		if !oneOf(f, forceConnections, forceCertificate, forceRedirect, forceWayBack) {
			return plan{}, body, tenant.Errorf(tenant.KindInvalid, "bad-force", "name connections, certificate, redirect or way-back", "there is nothing called %q to override", f)
		}
	}
	if in.Certificate != nil {
		encoded, err := json.Marshal(in.Certificate)
		if err != nil {
			return plan{}, body, fmt.Errorf("encode the certificate: %w", err)
		}
		sum := sha256.Sum256(encoded)
		body.CertificateDigest = hex.EncodeToString(sum[:])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Delete the database %s (%s).\n", body.Database, body.URL)
	fmt.Fprintf(&b, "A second mail asks to confirm. Then it is out of reach at once and destroyed after %s; until then rehome undelete brings it back.\n", days(s.cfg.DeleteGrace))
	if len(body.Force) > 0 {
		fmt.Fprintf(&b, "Overridden: %s.\n", strings.Join(body.Force, ", "))
	}
	if in.Certificate != nil {
		fmt.Fprintf(&b, "Certificate of the cutover to %s, decided %s.\n", in.Certificate.Target, in.Certificate.DecidedAt.UTC().Format(time.RFC3339))
		if key, err := signerOf(*in.Certificate); err == nil {
			fmt.Fprintf(&b, "Signed with the key %s; the new side shows its own with rehome certificate key.\n", cutover.Fingerprint(key))
		}
	}
	return plan{action: actionDelete, database: in.Database, body: body, text: b.String()}, body, nil
}

// days words a span of time.
func days(d time.Duration) string {
	if d >= 48*time.Hour {
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return d.Round(time.Minute).String()
}

// short shows the beginning of a digest.
func short(digest string) string { return digest[:min(len(digest), 16)] }
