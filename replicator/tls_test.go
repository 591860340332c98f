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

// serveTLS makes a source answer over TLS only where it is asked to, and returns the connection string that asks for it
// and believes nobody else; dir is for what that needs.
func serveTLS(t *testing.T, dsn tenant.DSN, dir string) tenant.DSN {
	t.Helper()
	https := httptest.NewTLSServer(nil) // lends its certificate for 127.0.0.1
	defer https.Close()
	own := https.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))
	db := open(t, dsn)
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

// TestBacklogOverTLS: a source that is asked for TLS is copied and followed over TLS, and a backlog from it is no slower work than
// another: a pause for every change of this one would take minutes.
func TestBacklogOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() // before the rig, which still connects while it is taken down
	src := pgcluster.StartT(t, pgcluster.Options{})
	r := newRigOn(t, src, 2, tenant.ReplicationOptions{}, itemsDDL)
	plain := r.source
	r.source = serveTLS(t, r.source, dir)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	stop()
	const backlog = 40_000
	writer := open(t, plain)
	exec(t, writer, `SET synchronous_commit = off`)
	exec(t, writer, `DO $$ BEGIN
		FOR k IN 1..`+strconv.Itoa(backlog)+` LOOP UPDATE items SET n = n + 1 WHERE id = 1 + k % 100; COMMIT; END LOOP; END $$`)
	e, _ := r.start()
	eventually(t, "the backlog is applied", func() bool {
		return r.total(`SELECT coalesce(sum(n), 0) FROM items WHERE id <= 100`) == scalar[int64](t, r.srcDB, `SELECT sum(n) FROM items WHERE id <= 100`)
	})
	if !scalar[bool](t, r.srcDB, `SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'rehome-stream-%'`) {
		t.Error("the stream came without TLS")
	}
	r.verifyClean(e)
	r.sameRows()
}
