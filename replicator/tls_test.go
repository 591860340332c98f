package replicator_test

import (
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// serveTLS makes a cluster answer over TLS too. What it returns changes a connection string to it: so that it asks for
// TLS, and believes nobody else; dir is for what that needs.
func serveTLS(t *testing.T, c *pgcluster.Cluster, dir string) func(tenant.DSN) tenant.DSN {
	t.Helper()
	https := httptest.NewTLSServer(nil) // lends its certificate for 127.0.0.1
	defer https.Close()
	own := https.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))
	db := open(t, c.DSN("postgres"))
	for file, content := range map[string]string{
		"server.crt": cert,
		"server.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	} { // by the server, which must own its key
		exec(t, db, `COPY (SELECT unnest(string_to_array(`+tenant.QuoteLiteral(strings.TrimSpace(content))+`, E'\n'))) TO PROGRAM 'umask 077; cat > `+file+`'`)
	}
	exec(t, db, `ALTER SYSTEM SET ssl = on`)
	exec(t, db, `SELECT pg_reload_conf()`)
	roots := filepath.Join(dir, "roots.crt")
	if err := os.WriteFile(roots, []byte(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(dsn tenant.DSN) tenant.DSN {
		u, err := url.Parse(dsn.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set("sslmode", "verify-full")
		q.Set("sslrootcert", roots)
		u.RawQuery = q.Encode()
		return tenant.DSN(u.String())
	}
}

// TestBacklogOverTLS: a source and shards that are asked for TLS are reached by TLS, and a backlog is no slower work than another:
// a pause for every change of this one would take minutes.
func TestBacklogOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() // made before, and so removed after, all that connects
	src := pgcluster.StartT(t, pgcluster.Options{})
	over := serveTLS(t, src, dir)
	shards := []tenant.DSN{over(pgcluster.NewDatabase(t, src)), over(pgcluster.NewDatabase(t, src))}
	r := newRigOn(t, src, len(shards), tenant.ReplicationOptions{}, itemsDDL)
	writer := open(t, r.source)
	exec(t, writer, `SET synchronous_commit = off`)
	r.source = over(r.source)
	for i := range shards {
		r.shards[i].DSN = shards[i]
	}
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	const backlog = 40_000
	exec(t, writer, `DO $$ BEGIN
		FOR k IN 1..`+strconv.Itoa(backlog)+` LOOP UPDATE items SET n = n + 1 WHERE id = 1 + k % 100; COMMIT; END LOOP; END $$`)
	e, _ := r.start()
	eventually(t, "the backlog is applied", func() bool {
		return r.total(`SELECT coalesce(sum(n), 0) FROM items WHERE id <= 100`) == scalar[int64](t, r.srcDB, `SELECT sum(n) FROM items WHERE id <= 100`)
	})
	for _, what := range []string{"stream", "lane"} {
		if !scalar[bool](t, writer, `SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE $1`, "rehome-"+what+"-%") {
			t.Errorf("a %s came without TLS", what)
		}
	}
	r.verifyClean(e)
	r.sameRows()
}
