package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// in is the same installation for a subtest.
func (i *installation) in(t *testing.T) *installation {
	c := *i
	c.t = t
	return &c
}

// with is the same installation for who has another environment.
func (i *installation) with(extra ...string) *installation {
	c := *i
	c.extra = append(append([]string{}, i.extra...), extra...)
	return &c
}

// refused runs a command with -o json that must fail and returns what it says on stderr.
func (i *installation) refused(exit int, args ...string) api.Problem {
	i.t.Helper()
	out, errs, code := i.run(append(args, "-o", "json")...)
	if code != exit {
		i.t.Fatalf("rehome %s: exit %d, want %d\n%s%s", strings.Join(args, " "), code, exit, out, errs)
	}
	var p api.Problem
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &p); err != nil {
		i.t.Fatalf("rehome %s says %q: %v", strings.Join(args, " "), errs, err)
	}
	if p.Code == "" || p.Detail == "" {
		i.t.Errorf("rehome %s does not say why: %+v", strings.Join(args, " "), p)
	}
	return p
}

// traces is all that an installation keeps and shows of what happened: the server's log, the audit log, the control
// database.
func (i *installation) traces() map[string]string {
	i.t.Helper()
	log, err := os.ReadFile(i.log.Name())
	if err != nil {
		i.t.Fatal(err)
	}
	dump, err := exec.CommandContext(i.t.Context(), filepath.Join(shared.BinDir(), "pg_dump"), "-a", "--inserts", i.control.Reveal()).Output()
	if err != nil {
		i.t.Fatal(err)
	}
	return map[string]string{"the server's log": string(log), "the audit log": i.must("audit", "-n", "1000", "-o", "json"), "the control database": string(dump)}
}

// noneShows fails if a secret is in a text, in clear or in an encoding that anybody undoes.
func noneShows(t *testing.T, texts map[string]string, secrets ...string) {
	t.Helper()
	for where, text := range texts {
		for _, s := range secrets {
			if s == "" {
				t.Fatal("an empty secret would show everywhere")
			}
			for _, form := range []string{s, url.QueryEscape(s), hex.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte(s))} {
				if at := strings.Index(text, form); at >= 0 {
					t.Errorf("%s shows a secret: …%s…", where, text[max(0, at-100):min(len(text), at+len(form)+20)])
				}
			}
		}
	}
}

func passwordOf(t *testing.T, dsn tenant.DSN) string {
	t.Helper()
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		t.Fatal("the test's DSN does not parse")
	}
	p, _ := u.User.Password()
	return p
}

// finding is what must be said of a source or target: the code, what it concerns, and the beginning of a way out.
type finding struct{ code, object, remedy string }

// refusal is a source that cannot be moved as it is.
type refusal struct {
	dsn  tenant.DSN // as the person names it
	args []string
	want []finding
	// real is the database behind it, as superuser; empty if there is none. It must stay as it is.
	real    tenant.DSN
	cluster *pgcluster.Cluster
}

const goodTable = `CREATE TABLE notes (realm_id int NOT NULL, id int, body text, PRIMARY KEY (realm_id, id)); INSERT INTO notes SELECT i % 7, i, 'n' FROM generate_series(1, 50) i;`

// refusals makes the cases. Each source has one thing that is wrong.
func refusals(t *testing.T) map[string]func(t *testing.T) refusal {
	t.Helper()
	on := func(c *pgcluster.Cluster, sql string, want ...finding) func(t *testing.T) refusal {
		return func(t *testing.T) refusal {
			dsn := pgcluster.NewDatabase(t, c)
			execSQL(t, open(t, dsn), sql)
			return refusal{dsn: dsn, real: dsn, cluster: c, want: want}
		}
	}
	return map[string]func(t *testing.T) refusal{
		"bad password": func(t *testing.T) refusal {
			r := on(shared, goodTable, finding{"source-unreachable", "source", "password"})(t)
			u, err := url.Parse(r.real.Reveal())
			if err != nil {
				t.Fatal("the test's DSN does not parse")
			}
			u.User = url.UserPassword(u.User.Username(), "mis-typed-Pa55word")
			r.dsn = tenant.DSN(u.String())
			return r
		},
		"no such database": func(*testing.T) refusal {
			return refusal{dsn: shared.DSN("there_is_none"), want: []finding{{"source-unreachable", "source", "there_is_none"}}}
		},
		"nobody listens": func(t *testing.T) refusal {
			dsn := tenant.DSN("postgres://me:nobody-Hears-Th1s@127.0.0.1:" + strconv.Itoa(freePort(t)) + "/acme?sslmode=disable")
			return refusal{dsn: dsn, want: []finding{{"source-unreachable", "source", "check host, port"}}}
		},
		"plain role": func(t *testing.T) refusal {
			r := on(shared, goodTable)(t)
			conn := open(t, r.real)
			name := "plain_" + scalar[string](t, conn, `SELECT current_database()`)
			execSQL(t, conn, `CREATE ROLE `+tenant.QuoteIdent(name)+` LOGIN PASSWORD 'plain-Role-Pa55'`)
			t.Cleanup(func() {
				execSQL(t, conn, `DROP OWNED BY `+tenant.QuoteIdent(name))
				execSQL(t, conn, `DROP ROLE `+tenant.QuoteIdent(name))
			})
			r.dsn = shared.DSNAs(name, "plain-Role-Pa55", scalar[string](t, conn, `SELECT current_database()`))
			r.want = []finding{
				{"no-replication-privilege", "source", `ALTER ROLE "` + name + `" REPLICATION`},
				{"no-create-privilege", "source", "GRANT CREATE ON DATABASE"},
				{"not-owner", "public.notes", "GRANT "},
				{"no-select", "public.notes", "GRANT SELECT ON"},
			}
			return r
		},
		"not the owner": func(t *testing.T) refusal {
			r := on(shared, goodTable)(t)
			conn := open(t, r.real)
			db := scalar[string](t, conn, `SELECT current_database()`)
			name := "streamer_" + db
			execSQL(t, conn, `CREATE ROLE `+tenant.QuoteIdent(name)+` LOGIN REPLICATION PASSWORD 'streamer-Pa55'`)
			execSQL(t, conn, `GRANT CREATE ON DATABASE `+tenant.QuoteIdent(db)+` TO `+tenant.QuoteIdent(name))
			execSQL(t, conn, `GRANT SELECT ON notes TO `+tenant.QuoteIdent(name))
			t.Cleanup(func() {
				execSQL(t, conn, `DROP OWNED BY `+tenant.QuoteIdent(name))
				execSQL(t, conn, `DROP ROLE `+tenant.QuoteIdent(name))
			})
			r.dsn = shared.DSNAs(name, "streamer-Pa55", db)
			r.want = []finding{{"not-owner", "public.notes", "GRANT "}}
			return r
		},
		"wal_level": func(t *testing.T) refusal {
			c := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"wal_level": "replica"}})
			return on(c, goodTable, finding{"wal-level", "source", "ALTER SYSTEM SET wal_level = logical"})(t)
		},
		"no primary key": on(shared, goodTable+`CREATE TABLE bare (realm_id int NOT NULL, body text)`,
			finding{"no-identity", "public.bare", "--fix-identity"}),
		"replica identity nothing": on(shared, goodTable+`ALTER TABLE notes REPLICA IDENTITY NOTHING`,
			finding{"no-identity", "public.notes", "--fix-identity"}),
		"key without the realm": on(shared, `CREATE TABLE notes (realm_id int NOT NULL, id int PRIMARY KEY)`,
			finding{"realm-not-in-identity", "public.notes", "--fix-identity"}, finding{"constraint-without-realm", "public.notes_pkey", "--accept"}),
		"no realm column": on(shared, goodTable+`CREATE TABLE "Odd names" (id int PRIMARY KEY)`,
			finding{"realm-key-missing", `public."Odd names"`, "--reference"}),
		"NULL realms": on(shared, `CREATE TABLE notes (realm_id int, id int PRIMARY KEY); INSERT INTO notes VALUES (1, 1), (NULL, 2)`,
			finding{"realm-key-null", "public.notes", `UPDATE "public"."notes" SET "realm_id" = `}, finding{"realm-key-nullable", "public.notes", "SET NOT NULL"}),
		"unlogged": on(shared, goodTable+`CREATE UNLOGGED TABLE cache (realm_id int NOT NULL, id int, PRIMARY KEY (realm_id, id)); INSERT INTO cache VALUES (1, 1)`,
			finding{"unlogged-table", "public.cache", "SET LOGGED"}),
		"large object": on(shared, goodTable+`SELECT lo_from_bytea(0, 'large')`,
			finding{"large-objects", "source", "bytea"}),
	}
}

// untouched describes a source: its schema, slots and publications.
func untouched(t *testing.T, r refusal) string {
	t.Helper()
	if r.real == "" {
		return ""
	}
	conn := open(t, r.real)
	return catalogueOf(t, r.cluster, r.real) + scalar[string](t, conn, `SELECT concat_ws(' ', (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()),
		(SELECT count(*) FROM pg_publication), to_regnamespace('rehome'))`)
}

func has(found []tenant.Finding, want finding) bool {
	for _, f := range found {
		if f.Code == want.code && f.Object == want.object && f.Severity == tenant.Blocking && strings.Contains(f.Remedy, want.remedy) {
			return true
		}
	}
	return false
}

// checkRefusal asks for a move in all four ways; each must refuse, say why and what to do, and touch nothing.
func checkRefusal(t *testing.T, inst *installation, r refusal) {
	t.Helper()
	before := untouched(t, r)
	shown := map[string]string{}
	for _, command := range []string{"preflight", "start-replication"} {
		args := moveArgs(command, r.dsn.Reveal(), inst.url+"/acme", r.args...)
		if command == "start-replication" {
			args = append(args, "--request-otp")
		}
		out, errs, code := inst.run(args...)
		shown[command] = out + errs
		if code != 3 {
			t.Fatalf("%s: exit %d, want 3\n%s%s", command, code, out, errs)
		}
		for _, w := range r.want {
			if !strings.Contains(out+errs, w.code+":"+w.object) || !strings.Contains(out+errs, w.remedy) {
				t.Errorf("%s does not tell of %+v:\n%s%s", command, w, out, errs)
			}
		}

		out, errs, code = inst.run(append(args, "-o", "json")...)
		shown[command+" -o json"] = out + errs
		if code != 3 {
			t.Fatalf("%s -o json: exit %d, want 3\n%s%s", command, code, out, errs)
		}
		var found []tenant.Finding
		if command == "preflight" {
			var p api.Preflight
			if err := json.Unmarshal([]byte(out), &p); err != nil {
				t.Fatalf("%v in %q", err, out)
			}
			if p.OK {
				t.Error("preflight says ok")
			}
			found = p.Findings
		} else {
			var p api.Problem
			if err := json.Unmarshal([]byte(errs), &p); err != nil {
				t.Fatalf("%v in %q", err, errs)
			}
			if p.Code != "preflight-refused" || p.Hint == "" {
				t.Errorf("problem %q, hint %q", p.Code, p.Hint)
			}
			found = p.Findings
		}
		for _, w := range r.want {
			if !has(found, w) {
				t.Errorf("%s -o json: no blocking finding %+v in %+v", command, w, found)
			}
		}
	}
	if diff := cmp.Diff(before, untouched(t, r)); diff != "" {
		t.Errorf("the source was changed:\n%s", diff)
	}
	noneShows(t, shown, passwordOf(t, r.dsn))
	noneShows(t, inst.traces(), passwordOf(t, r.dsn))
}

// TestRefusals: what cannot be moved is refused before a byte moves, with the remedy, and nobody is asked for a code.
func TestRefusals(t *testing.T) {
	t.Parallel()
	inst := newInstallation(t, pgcluster.NewDatabase(t, shared))
	shards := []*pgcluster.Cluster{pgcluster.StartT(t, pgcluster.Options{}), pgcluster.StartT(t, pgcluster.Options{})}
	inst.addShards(shards...)
	inst.must("create", "acme", "--owner", "owner@example.com")
	cases := refusals(t)
	for name, make := range cases {
		t.Run(name, func(t *testing.T) { checkRefusal(t, inst.in(t), make(t)) })
	}
	t.Run("a good source is let through", func(t *testing.T) {
		dsn := pgcluster.NewDatabase(t, shared)
		execSQL(t, open(t, dsn), goodTable)
		out := mustJSON[api.Preflight](inst.in(t), moveArgs("preflight", dsn.Reveal(), inst.url+"/acme")...)
		if !out.OK || out.Tables != 1 {
			t.Errorf("preflight: %+v", out)
		}
	})
	t.Run("a shard is down", func(t *testing.T) {
		dsn := pgcluster.NewDatabase(t, shared)
		execSQL(t, open(t, dsn), goodTable)
		if err := shards[1].Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkRefusal(t, inst.in(t), refusal{dsn: dsn, real: dsn, cluster: shared, want: []finding{{"target-unreachable", "shard s2", "that the server runs"}}})
		if err := shards[1].Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p := mustJSON[api.Preflight](inst.in(t), moveArgs("preflight", dsn.Reveal(), inst.url+"/acme")...); !p.OK {
			t.Errorf("the shard is back, and preflight says %+v", p)
		}
	})

	audit := mustJSON[[]api.AuditEntry](inst, "audit", "-n", "1000")
	refused := 0
	for _, e := range audit {
		if e.Action == "request-challenge" && e.Outcome == "refused" && strings.Contains(string(e.Detail), "preflight-refused") {
			refused++
		}
	}
	if want := 2 * (len(cases) + 1); refused != want {
		t.Errorf("the audit log has %d refused requests for a code, want %d", refused, want)
	}
	control := open(t, inst.control)
	if n := scalar[int](t, control, `SELECT (SELECT count(*) FROM rehome_control.challenges) + (SELECT count(*) FROM rehome_control.replications)`); n != 0 {
		t.Errorf("%d challenges or replications were made of what was refused", n)
	}
	noneShows(t, inst.traces(), passwordOf(t, shards[0].DSN("postgres")), passwordOf(t, shards[1].DSN("postgres")), passwordOf(t, inst.control))
}
