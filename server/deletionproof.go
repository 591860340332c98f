package server

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// checkCertificate wants proof that the data lives on elsewhere: a certificate whose signature is right, by the key that
// the person trusts where one was named, and, where this side has a gate of its own, the gate's word that it is the one:
// the latest decision of exactly this database. After a rollback the gate has moved on.
func (s *Server) checkCertificate(ctx context.Context, d shard.Database, in api.DeletePlan) (*tenant.Finding, error) {
	finding := func(format string, args ...any) *tenant.Finding {
		return &tenant.Finding{Code: forceCertificate, Message: fmt.Sprintf(format, args...), Remedy: "fetch it from the new side (rehome certificate show ID -o json > FILE) and name it: --certificate FILE"}
	}
	c := in.Certificate
	if c == nil {
		return finding("no certificate of a cutover was given"), nil
	}
	key, err := signerOf(*c)
	if err == nil {
		err = cutover.Verify(*c, key)
	}
	if err != nil {
		return finding("the certificate is not good: %s", err), nil
	}
	if trusted := in.CertificateKey; trusted != "" && trusted != c.PublicKey && trusted != cutover.Fingerprint(key) {
		return finding("the certificate is signed by another key (%s) than the one that you trust", cutover.Fingerprint(key)), nil
	}
	if c.Database != d.Name {
		return finding("the certificate is of database %s", c.Database), nil
	}
	// This installation signs for data that came to it. Such a certificate says that the data lives here and nowhere else.
	if c.Target == s.databaseURL(d.Name) || c.PublicKey == base64.StdEncoding.EncodeToString(s.installation.PublicKey) {
		return finding("the certificate says that the data was moved here, to %s: this is the new side", c.Target), nil
	}
	if d.Kind != shard.KindAdopted {
		return nil, nil
	}
	state, err := s.gateOf(ctx, d)
	switch {
	case errors.Is(err, gate.ErrNoGate):
		return finding("the database has no gate: it was never cut over"), nil
	case err != nil:
		return finding("the database cannot be asked whether the certificate is of its latest decision: %s", tenant.AsError(err).Message), nil
	case state.Side != gate.SideTarget:
		return finding("the gate says that this side writes (epoch %d): what the certificate proves was taken back", state.Epoch), nil
	// A rollback that was taken back has moved the gate on, and left the cutover's attempt there.
	case state.Epoch < c.GateEpoch || (state.Epoch > c.GateEpoch && state.Attempt == "") || (state.Attempt != "" && state.Attempt != c.Attempt):
		return finding("the certificate is of another cutover (epoch %d) than the gate's (epoch %d)", c.GateEpoch, state.Epoch), nil
	case state.NewURL != "" && state.NewURL != c.Target:
		return finding("the certificate says that the data went to %s, and the gate says to %s", c.Target, state.NewURL), nil
	}
	return nil, nil
}

// signerOf is the public key in a certificate. That it is the one of the installation that it names, only that
// installation can tell: the gate binds a certificate to this side, and the person to a key that is trusted.
func signerOf(c tenant.Certificate) (ed25519.PublicKey, error) {
	key, err := base64.StdEncoding.DecodeString(c.PublicKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("its public key cannot be read")
	}
	return key, nil
}

// moveOpen finds what a move keeps at its source until complete or cancel: its publication, and what the way back has there.
const moveOpen = `SELECT coalesce((SELECT min(pubname::text) FROM pg_catalog.pg_publication WHERE pubname LIKE 'rehome\_%'), ''),
	to_regclass('rehome.applier') IS NOT NULL`

// checkWayBack refuses while a move from this database is not completed: what is deleted here is what a rollback would go
// back to, and every write of the new side still comes here.
func (s *Server) checkWayBack(ctx context.Context, d shard.Database, _ api.DeletePlan) (*tenant.Finding, error) {
	if d.Kind != shard.KindAdopted {
		return nil, nil
	}
	finding := func(format string, args ...any) *tenant.Finding {
		return &tenant.Finding{Code: forceWayBack, Message: fmt.Sprintf(format, args...), Remedy: "close it at the new side when nobody will want to go back: rehome complete"}
	}
	conn, err := s.openAdopted(ctx, d.Name)
	if err != nil {
		return finding("the database cannot be asked whether a move from it is still under way: %s", tenant.AsError(err).Message), nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var publication string
	var wayBack bool
	if err := conn.QueryRow(ctx, moveOpen).Scan(&publication, &wayBack); err != nil {
		return nil, fmt.Errorf("look for a move that is under way: %w", err)
	}
	switch {
	case wayBack:
		return finding("the way back is open: writes of the new side still come here, and a rollback would go back to this data"), nil
	case publication != "":
		return finding("a move from this database is not completed: its publication %s is there", publication), nil
	}
	return nil, nil
}
