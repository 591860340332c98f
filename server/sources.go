package server

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

// adoptedSource finds the adopted database that a replication's source is, so that the gateway holds and switches the
// clients who come by that name, too; "" if this installation has none. Addresses are compared, as both were written: one
// server under two names is not recognised.
func (s *Server) adoptedSource(ctx context.Context, source tenant.DSN) (string, error) {
	want, err := addressOf(source)
	if err != nil {
		return "", err
	}
	list, err := s.catalogue.Databases(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range list {
		if p := requestOf(ctx).principal; p == nil || !p.sees(d.Name) { // whose clients they are, somebody else decides
			continue
		}
		if d.Kind != shard.KindAdopted || d.State == shard.Deleted || d.State == shard.Purged {
			continue
		}
		dsn, err := s.catalogue.AdoptedDSN(ctx, d.Name)
		if err != nil {
			return "", err
		}
		if got, err := addressOf(dsn); err == nil && got == want {
			return d.Name, nil
		}
	}
	return "", nil
}

// address is where a database is, whoever connects to it.
type address struct {
	host, database string
	port           uint16
}

func addressOf(dsn tenant.DSN) (address, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return address{}, errors.New("the stored connection string cannot be read")
	}
	return address{host: strings.ToLower(cfg.Host), port: cfg.Port, database: cfg.Database}, nil
}
