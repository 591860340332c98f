package e2e

import (
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// otpRig is an installation with a source that may be moved; each test has a database, and a person, of its own, so that
// the rate limits of one do not meet another's.
type otpRig struct {
	*installation
	src   tenant.DSN
	codes []string // all that were sent or typed; none may be found anywhere
}

func newOTPRig(t *testing.T) *otpRig {
	t.Helper()
	r := &otpRig{src: pgcluster.NewDatabase(t, shared)}
	execSQL(t, open(t, r.src), goodTable)
	r.installation = newInstallation(t, pgcluster.NewDatabase(t, shared))
	r.addShards(pgcluster.StartT(t, pgcluster.Options{}))
	return r
}

// database makes one with an owner of its own.
func (r *otpRig) database(name string) (to, owner string) {
	r.t.Helper()
	owner = name + ".owner@example.com"
	r.must("create", name, "--owner", owner)
	return r.url + "/" + name, owner
}

func (r *otpRig) ask(args ...string) (id, code string) {
	r.t.Helper()
	id, code = r.request(args...)
	r.codes = append(r.codes, code)
	return id, code
}

// wrongCode is a code of the right form that is not the right one.
func wrongCode(code string) string {
	other := []byte(code)
	for i, c := range other {
		if c >= '0' && c <= '9' {
			other[i] = '0' + (c-'0'+1)%10
		}
	}
	return string(other)
}

func with(args []string, id, code string) []string {
	return append(slices.Clone(args), "--otp-id", id, "--otp", code)
}

// denied runs a command whose code is refused: exit 4, with the reason, which the audit log has too.
func (r *otpRig) denied(reason, id, code string, args []string) {
	r.t.Helper()
	p := r.refused(4, with(args, id, code)...)
	if p.Code != reason || p.Hint == "" {
		r.t.Fatalf("rehome %s: refused with %q (%s), want %q", args[0], p.Code, p.Detail, reason)
	}
	r.codes = append(r.codes, code)
	r.audited("otp.redeem", "refused", id, reason)
}

// audited looks for an entry about a challenge among the newest of the audit log.
func (r *otpRig) audited(action, outcome, challenge, reason string) {
	r.t.Helper()
	entries := mustJSON[[]api.AuditEntry](r.installation, "audit", "-n", "20")
	for _, e := range entries {
		var d struct{ Challenge, Reason, For string }
		if err := json.Unmarshal(e.Detail, &d); err != nil {
			r.t.Fatal(err)
		}
		if e.Action == action && e.Outcome == outcome && d.Challenge == challenge && d.Reason == reason {
			if e.Actor == "" || e.Address == "" || d.For == "" || e.At.IsZero() {
				r.t.Errorf("the audit entry does not say who, where and what for: %+v", e)
			}
			return
		}
	}
	r.t.Errorf("the audit log has no %s, %s of challenge %s for reason %q: %+v", action, outcome, challenge, reason, entries)
}

// quiet fails if a code is kept or logged anywhere.
func (r *otpRig) quiet() {
	r.t.Helper()
	texts := r.traces()
	for _, c := range r.codes {
		digits := strings.NewReplacer("-", "", " ", "").Replace(c)
		for _, form := range []string{c, digits} {
			// Between other digits and letters it is a part of a number or digest.
			shows := regexp.MustCompile(`(^|[^0-9A-Za-z])` + regexp.QuoteMeta(form) + `($|[^0-9A-Za-z])`)
			for where, text := range texts {
				if at := shows.FindStringIndex(text); at != nil {
					r.t.Errorf("%s shows a code: %s", where, text[max(0, at[0]-80):min(len(text), at[1]+20)])
				}
			}
		}
	}
}

func (r *otpRig) replications(to string) []api.Replication {
	r.t.Helper()
	return mustJSON[[]api.Replication](r.installation, "replications", "--db", to)
}

// TestCodes: a code opens exactly what it was asked for, once, for a while, and guessing closes it.
func TestCodes(t *testing.T) {
	t.Parallel()
	rig := newOTPRig(t)
	for _, c := range []struct {
		name string
		run  func(t *testing.T, r *otpRig)
	}{
		{"wrong", wrongCodes},
		{"expired", expiredCode},
		{"another plan", codeOfAnotherPlan},
		{"replayed", replayedCode},
		{"another action", codeOfAnotherAction},
		{"rate", askTooOften},
		{"totp", authenticator},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := *rig
			r.installation = rig.in(t)
			c.run(t, &r)
			rig.codes = r.codes
		})
	}
	rig.quiet()
}

// wrongCodes: five tries, then the right one comes too late.
func wrongCodes(t *testing.T, r *otpRig) {
	to, _ := r.database("wrong")
	args := moveArgs("start-replication", r.src.Reveal(), to)
	id, code := r.ask(args...)
	r.audited("otp.request", "ok", id, "")
	for range 4 {
		r.denied("wrong-code", id, wrongCode(code), args)
	}
	r.denied("too-many-tries", id, wrongCode(code), args)
	r.denied("too-many-tries", id, code, args)
	r.denied("unknown-challenge", "ch_none", code, args)
	if n := len(r.replications(to)); n != 0 {
		t.Errorf("%d replications were started", n)
	}

	// Four wrong tries leave a fifth, and blanks and case of how it was copied do not matter.
	id, code = r.ask(args...)
	for range 4 {
		r.denied("wrong-code", id, wrongCode(code), args)
	}
	digits := strings.NewReplacer("-", "", " ", "").Replace(code)
	r.must(with(args, id, digits[:3]+" "+digits[3:])...)
	r.audited("otp.redeem", "ok", id, "")
}

func expiredCode(t *testing.T, r *otpRig) {
	to, _ := r.database("expired")
	args := moveArgs("start-replication", r.src.Reveal(), to)
	id, code := r.ask(args...)
	control := open(t, r.control)
	left := scalar[float64](t, control, `SELECT extract(epoch FROM expires_at - now())::float8 FROM rehome_control.challenges WHERE id = $1`, id)
	if left <= 0 || left > otp.CodeTTL.Seconds() {
		t.Errorf("the code is valid for %.0f s more", left)
	}
	execSQL(t, control, `UPDATE rehome_control.challenges SET expires_at = now() - interval '1 second' WHERE id = $1`, id)
	r.denied("code-expired", id, code, args)
	if n := len(r.replications(to)); n != 0 {
		t.Errorf("%d replications were started", n)
	}
}

// codeOfAnotherPlan: another option, source or target is another plan.
func codeOfAnotherPlan(t *testing.T, r *otpRig) {
	to, _ := r.database("plan")
	elsewhere, _ := r.database("elsewhere")
	args := moveArgs("start-replication", r.src.Reveal(), to)
	other := pgcluster.NewDatabase(t, shared)
	execSQL(t, open(t, other), goodTable)
	id, code := r.ask(args...)
	r.denied("code-for-another-plan", id, code, append(slices.Clone(args), "--copy-jobs", "5"))
	r.denied("code-for-another-plan", id, code, append(slices.Clone(args), "--accept", "large-objects:source"))
	r.denied("code-for-another-plan", id, code, moveArgs("start-replication", other.Reveal(), to))
	r.denied("code-for-another-plan", id, code, moveArgs("start-replication", r.src.Reveal(), elsewhere))
	if n := len(r.replications(to)) + len(r.replications(elsewhere)); n != 0 {
		t.Errorf("%d replications were started", n)
	}
	r.must(with(args, id, code)...) // it was only ever good for this
	got := r.replications(to)
	if len(got) != 1 || got[0].Options.CopyJobs == 5 {
		t.Errorf("replications: %+v", got)
	}
}

func replayedCode(t *testing.T, r *otpRig) {
	to, _ := r.database("replay")
	args := moveArgs("start-replication", r.src.Reveal(), to)
	id, code := r.ask(args...)
	r.must(with(args, id, code)...)
	r.denied("code-used", id, code, args)
	r.must("cancel-replication", "--db", to, "--yes") // now nothing else stands in the way of a second time
	r.denied("code-used", id, code, args)
	r.denied("code-used", id, wrongCode(code), args)
	if n := len(r.replications(to)); n != 1 {
		t.Errorf("%d replications were started with one code", n)
	}
}

func codeOfAnotherAction(t *testing.T, r *otpRig) {
	to, _ := r.database("action")
	start := moveArgs("start-replication", r.src.Reveal(), to)
	remove := []string{"delete-db", to, "--yes", "--force", "connections,certificate,redirect"}
	id, code := r.ask(start...)
	r.denied("code-for-another-plan", id, code, remove)
	id, code = r.ask(remove...)
	r.denied("code-for-another-plan", id, code, start)
	if db := mustJSON[[]api.Database](r.installation, "databases"); !slices.ContainsFunc(db, func(d api.Database) bool { return d.Name == "action" && d.State == "active" }) {
		t.Errorf("databases: %+v", db)
	}
}

// askTooOften: neither a person nor a database can be flooded.
func askTooOften(t *testing.T, r *otpRig) {
	to, _ := r.database("rate")
	args := append(moveArgs("start-replication", r.src.Reveal(), to), "--request-otp")
	for range otp.PerRecipient {
		r.must(args...)
	}
	p := r.refused(4, args...)
	if p.Code != "rate-limited" || p.Hint == "" {
		t.Errorf("refused with %q: %s", p.Code, p.Detail)
	}
	r.audited("otp.request", "refused", "", "rate-limited")
	mails, err := otp.ReadMailbox(r.mail)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for _, m := range mails {
		if m.To == "rate.owner@example.com" {
			r.codes = append(r.codes, m.Code)
			sent++
		}
	}
	if sent != otp.PerRecipient {
		t.Errorf("%d mails were sent", sent)
	}
}

// authenticator: the app's codes count once, and only after the app was confirmed.
func authenticator(t *testing.T, r *otpRig) {
	to, owner := r.database("totp")
	args := append(moveArgs("start-replication", r.src.Reveal(), to), "--otp-channel", "totp")
	if p := r.refused(4, append(slices.Clone(args), "--request-otp")...); p.Code != "totp-not-enrolled" {
		t.Errorf("without an app: refused with %q", p.Code)
	}
	// An app approves what its owner decides: an administrator's key may not enrol one for somebody else.
	if p := r.refused(4, "totp", "enroll", owner); p.Code != "not-your-address" {
		t.Errorf("enrolled with another's key: %q", p.Code)
	}
	operator := r.with()
	operator.dir = t.TempDir() // without a rehome.key REHOME_SECRET counts
	enrolled := mustJSON[api.TOTPEnrolment](operator, "totp", "enroll", owner)
	u, err := url.Parse(enrolled.URI)
	if err != nil {
		t.Fatal("the enrolment's URI does not parse")
	}
	seed := u.Query().Get("secret")
	now := time.Now()
	at := func(step int) string {
		code, err := totp.GenerateCode(seed, now.Add(time.Duration(step)*30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		r.codes = append(r.codes, code)
		return code
	}
	if p := r.refused(4, append(slices.Clone(args), "--request-otp")...); p.Code != "totp-not-enrolled" {
		t.Errorf("with an app that is not confirmed: refused with %q", p.Code)
	}
	// Even the operator's secret does not make an approver: the address' own mail does.
	mails, err := otp.ReadMailbox(r.mail)
	if err != nil {
		t.Fatal(err)
	}
	mailed := ""
	for _, m := range mails {
		if m.Kind == otp.KindTOTPEnrol && m.To == owner {
			mailed = m.Code
		}
	}
	r.codes = append(r.codes, mailed)
	if p := operator.refused(4, "totp", "confirm", owner, at(0), "--mail-code", wrongCode(mailed)); p.Code != "wrong-mail-code" {
		t.Errorf("confirmed without the mail: %q", p.Code)
	}
	if p := operator.refused(4, "totp", "confirm", owner, wrongCode(at(0)), "--mail-code", mailed); p.Code != "wrong-code" {
		t.Errorf("confirmed with a wrong code: %q", p.Code)
	}
	operator.must("totp", "confirm", owner, at(0), "--mail-code", mailed)

	ch := mustJSON[api.Challenge](r.installation, append(slices.Clone(args), "--request-otp")...)
	if ch.Channel != "totp" {
		t.Errorf("challenge: %+v", ch)
	}
	r.denied("code-used", ch.ID, at(0), args) // it confirmed the app
	r.denied("wrong-code", ch.ID, wrongCode(at(1)), args)
	next := at(1) // clocks may differ by a step, so it is good already
	r.must(with(args, ch.ID, next)...)
	r.audited("otp.redeem", "ok", ch.ID, "")
	if n := len(r.replications(to)); n != 1 {
		t.Fatalf("%d replications were started", n)
	}
	r.must("cancel-replication", "--db", to, "--yes")
	remove := []string{"delete-db", to, "--yes", "--force", "connections,certificate,redirect", "--otp-channel", "totp", "--otp", next}
	if p := r.refused(4, remove...); p.Code != "code-used" {
		t.Errorf("the same code for another action: refused with %q (%s)", p.Code, p.Detail)
	}
	r.denied("code-used", ch.ID, next, args)
	if p := r.refused(4, append(slices.Clone(args), "--otp", next)...); p.Code != "code-used" {
		t.Errorf("the same code for a new challenge: refused with %q (%s)", p.Code, p.Detail)
	}
	noneShows(t, r.traces(), seed)
}
