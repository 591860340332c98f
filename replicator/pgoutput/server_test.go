package pgoutput_test

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

var record = flag.Bool("record", false, "write the server's messages into the fuzz test's corpus")

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	flag.Parse()
	// The least memory before a transaction is streamed, so that small ones are.
	os.Exit(pgcluster.Main(m, pgcluster.Options{Settings: map[string]string{"logical_decoding_work_mem": "64kB"}}, &cluster))
}

const receiveTimeout = 20 * time.Second

// stream is a running replication stream of one database.
type stream struct {
	t       *testing.T
	conn    *pgconn.PgConn
	decoder pgoutput.Decoder
	names   map[uint32]string
}

func startStream(t *testing.T, dsn tenant.DSN, args ...string) *stream {
	t.Helper()
	cfg, err := pgconn.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal("the test cluster's DSN cannot be parsed")
	}
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	slot := fmt.Sprintf("s_%x", sha256.Sum256([]byte(t.Name())))[:20]
	if _, err := pglogrepl.CreateReplicationSlot(t.Context(), conn, slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Temporary: true}); err != nil {
		t.Fatal(err)
	}
	args = append(args, "publication_names 'p'")
	if err := pglogrepl.StartReplication(t.Context(), conn, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: args}); err != nil {
		t.Fatal(err)
	}
	return &stream{t: t, conn: conn, names: map[uint32]string{}}
}

// until decodes messages and renders them as text, up to the given number of commits.
func (s *stream) until(commits int) []string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), receiveTimeout)
	defer cancel()
	var out []string
	var m pgoutput.Message
	for commits > 0 {
		raw, err := s.conn.ReceiveMessage(ctx)
		if err != nil {
			s.t.Fatalf("after %q: %v", out, err)
		}
		data, ok := raw.(*pgproto3.CopyData)
		if !ok {
			s.t.Fatalf("got a %T: %v", raw, raw)
		}
		if data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		xld, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			s.t.Fatal(err)
		}
		if *record {
			s.record(xld.WALData, s.decoder.Streaming())
		}
		if err := s.decoder.Decode(xld.WALData, &m); err != nil {
			s.t.Fatal(err)
		}
		if text := s.render(&m); text != "" {
			out = append(out, text)
		}
		if m.Kind == pgoutput.Commit || m.Kind == pgoutput.StreamCommit {
			if m.EndLSN <= m.LSN || time.Since(m.Time).Abs() > time.Hour || m.Time.IsZero() {
				s.t.Errorf("%s: LSN %s, end %s, time %s", m.Kind, m.LSN, m.EndLSN, m.Time)
			}
			commits--
		}
	}
	return out
}

// record keeps one message of each shape as a seed.
func (s *stream) record(buf []byte, streamed bool) {
	if len(buf) > 400 {
		return
	}
	dir := filepath.Join("testdata", "fuzz", "FuzzParse")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	name := fmt.Sprintf("server-%s-%v-%x", strings.ReplaceAll(strings.ToLower(pgoutput.Kind(buf[0]).String()), " ", "-"), streamed, len(buf))
	body := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\nbool(%v)\n", buf, streamed)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) render(m *pgoutput.Message) string {
	name := s.names[m.OID]
	switch m.Kind {
	case pgoutput.RelationKind:
		s.names[m.OID] = m.Relation.Name
		cols := ""
		for _, c := range m.Relation.Columns {
			cols += " " + c.Name
			if c.Key {
				cols += "*"
			}
		}
		return fmt.Sprintf("relation %s.%s %c%s", m.Relation.Namespace, m.Relation.Name, m.Relation.Identity, cols)
	case pgoutput.TypeKind:
		return "type " + m.Namespace + "." + m.Name
	case pgoutput.Insert:
		return "insert " + name + " " + values(m.New)
	case pgoutput.Update:
		if m.OldKind == pgoutput.OldNone {
			return "update " + name + " " + values(m.New)
		}
		return fmt.Sprintf("update %s %c %s -> %s", name, m.OldKind, values(m.Old), values(m.New))
	case pgoutput.Delete:
		return fmt.Sprintf("delete %s %c %s", name, m.OldKind, values(m.Old))
	case pgoutput.Truncate:
		all := ""
		for _, oid := range m.OIDs {
			all += " " + s.names[oid]
		}
		return fmt.Sprintf("truncate %d%s", m.Flags, all)
	case pgoutput.Logical:
		return fmt.Sprintf("message %d %s %s", m.Flags, m.Prefix, m.Content)
	case pgoutput.StreamAbort:
		if m.XID == m.SubXID {
			return "abort"
		}
		return "abort of a sub-transaction"
	case pgoutput.StreamStart, pgoutput.StreamStop, pgoutput.Begin, pgoutput.Commit, pgoutput.StreamCommit:
		return ""
	}
	return m.Kind.String()
}

func values(t pgoutput.Tuple) string {
	var parts []string
	for _, v := range t {
		switch v.Kind {
		case pgoutput.Null:
			parts = append(parts, "NULL")
		case pgoutput.Unchanged:
			parts = append(parts, "unchanged")
		case pgoutput.Binary:
			parts = append(parts, fmt.Sprintf("%x", v.Data))
		default:
			parts = append(parts, fmt.Sprintf("%.12s", v.Data))
		}
	}
	return "(" + strings.Join(parts, ",") + ")"
}

func open(t *testing.T, sql ...string) (tenant.DSN, *pgx.Conn) {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	run(t, conn, sql...)
	return dsn, conn
}

func run(t *testing.T, conn *pgx.Conn, sql ...string) {
	t.Helper()
	for _, s := range sql {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func TestServerMessages(t *testing.T) {
	t.Parallel()
	dsn, conn := open(t,
		`CREATE TYPE mood AS ENUM ('sad','glad')`,
		`CREATE TABLE keyed (id int PRIMARY KEY, name text, big text, m mood)`,
		`ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL`,
		`CREATE TABLE "Full" (a int, b text)`, `ALTER TABLE "Full" REPLICA IDENTITY FULL`,
		`CREATE TABLE empty ()`,
		`CREATE PUBLICATION p FOR ALL TABLES`)
	for _, version := range []string{"proto_version '1'", "proto_version '2'"} {
		t.Run(version, func(t *testing.T) {
			run(t, conn, `TRUNCATE keyed, "Full", empty`)
			s := startStream(t, dsn, version, "messages 'true'")
			run(t, conn,
				`INSERT INTO keyed VALUES (1, 'a', repeat('x', 5000), 'glad'), (2, NULL, '', NULL)`,
				`UPDATE keyed SET name = 'b' WHERE id = 1`,
				`UPDATE keyed SET id = 3 WHERE id = 1`,
				`DELETE FROM keyed WHERE id = 3`,
				`INSERT INTO "Full" VALUES (1, 'one')`,
				`UPDATE "Full" SET b = NULL`,
				`DELETE FROM "Full"`,
				`INSERT INTO empty DEFAULT VALUES`,
				`TRUNCATE keyed, "Full" RESTART IDENTITY CASCADE`,
				`SELECT pg_logical_emit_message(true, 'px', 'hello')`)
			want := []string{
				"type public.mood",
				"relation public.keyed d id* name big m",
				"insert keyed (1,a,xxxxxxxxxxxx,glad)",
				"insert keyed (2,NULL,,NULL)",
				"update keyed (1,b,unchanged,glad)",
				"update keyed K (1,NULL,NULL,NULL) -> (3,b,unchanged,glad)",
				"delete keyed K (3,NULL,NULL,NULL)",
				"relation public.Full f a* b*",
				"insert Full (1,one)",
				"update Full O (1,one) -> (1,NULL)",
				"delete Full O (1,NULL)",
				"relation public.empty d",
				"insert empty ()",
				"truncate 3 keyed Full",
				"message 1 px hello",
			}
			if diff := cmp.Diff(want, describedOnce(s.until(10))); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

// describedOnce leaves out descriptions that were sent before: the server sends them again after any invalidation of its
// catalogue caches, also one that a neighbour caused.
func describedOnce(messages []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(messages, func(m string) bool {
		if !strings.HasPrefix(m, "type ") && !strings.HasPrefix(m, "relation ") {
			return false
		}
		again := seen[m]
		seen[m] = true
		return again
	})
}

func TestServerBinary(t *testing.T) {
	t.Parallel()
	dsn, conn := open(t,
		`CREATE TABLE b (id bigint PRIMARY KEY, u uuid, n numeric, d bytea, a int[], f float8)`,
		`CREATE PUBLICATION p FOR ALL TABLES`)
	s := startStream(t, dsn, "proto_version '2'", "binary 'true'")
	run(t, conn, `INSERT INTO b VALUES (258, '00112233-4455-6677-8899-aabbccddeeff', 1.5, '\xbeef', '{7}', 1)`)
	want := []string{
		"relation public.b d id* u n d a f",
		"insert b (0000000000000102,00112233445566778899aabbccddeeff,000200000000000100011388,beef,00000001000000000000001700000001000000010000000400000007,3ff0000000000000)",
	}
	if diff := cmp.Diff(want, describedOnce(s.until(1))); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// TestServerStreams has a large transaction with a sub-transaction that is rolled back, beside a small one.
func TestServerStreams(t *testing.T) {
	t.Parallel()
	dsn, conn := open(t, `CREATE TABLE s (id int PRIMARY KEY, v text)`, `CREATE PUBLICATION p FOR ALL TABLES`)
	s := startStream(t, dsn, "proto_version '2'", "streaming 'true'")
	const fill = `INSERT INTO s SELECT i, repeat('v', 100) FROM generate_series(%d, %d) i`
	run(t, conn, `BEGIN`, fmt.Sprintf(fill, 1, 2000), `SAVEPOINT a`, fmt.Sprintf(fill, 2001, 4000), `ROLLBACK TO a`,
		fmt.Sprintf(fill, 4001, 6000), `TRUNCATE s`, `INSERT INTO s VALUES (1, 'x')`, `COMMIT`, `UPDATE s SET v = 'y'`)
	got := map[string]int{}
	for _, line := range s.until(2) {
		kind, _, _ := strings.Cut(line, " ")
		got[kind]++
	}
	// How many blocks there are, and so whether the rolled-back rows were sent before they were known to be, is the
	// server's choice; it sends the abort if they were.
	sent := 4001 + got["abort"]*2000
	if got["abort"] > 1 || got["insert"] < 4001 || got["insert"] > sent || got["truncate"] != 1 || got["update"] != 1 || got["relation"] < 1 {
		t.Errorf("messages: %v", got)
	}
}
