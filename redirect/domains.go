package redirect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/net/idna"

	"github.com/rehomedb/rehome/tenant"
)

// maxDomain is the longest name of DNS, without the trailing dot (RFC 1035, 2.3.4).
const maxDomain = 253

// cleanDomain brings a domain into the form in which it is compared: ASCII, lower case, without trailing dot.
func (g *Gateway) cleanDomain(domain string) (string, error) {
	bad := func(why string) error {
		return tenant.Errorf(tenant.KindInvalid, "bad-domain", "write a host name such as db.example.com, without scheme, port and path", "%q cannot be a database's domain: %s", domain, why)
	}
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(strings.TrimSpace(domain), "."))
	if err != nil || ascii == "" || len(ascii) > maxDomain || !strings.Contains(ascii, ".") {
		return "", bad("it is no host name")
	}
	if _, err := netip.ParseAddr(ascii); err == nil {
		return "", bad("it is an address")
	}
	if base := g.cfg.BaseHost; base != "" && (ascii == base || strings.HasSuffix(ascii, "."+base)) {
		return "", bad("it is the installation's own, and NAME." + base + " stands for the database NAME already")
	}
	return ascii, nil
}

// AddDomain makes a database known under a domain of its own. KindConflict if it is another database's.
func (g *Gateway) AddDomain(ctx context.Context, database, domain string) (string, error) {
	domain, err := g.cleanDomain(domain)
	if err != nil {
		return "", err
	}
	var owner string
	err = pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `INSERT INTO rehome_control.domains AS d (domain, database) SELECT $2, name FROM rehome_control.databases WHERE name = $1
			ON CONFLICT (domain) DO UPDATE SET database = d.database RETURNING database`, database, domain).Scan(&owner)
		if err != nil {
			return err
		}
		return notify(ctx, tx)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", tenant.Errorf(tenant.KindNotFound, "database-unknown", "list them with: rehome databases", "there is no database %q", database)
	case err != nil:
		return "", fmt.Errorf("add a domain of %s: %w", database, err)
	case owner != database:
		return "", tenant.Errorf(tenant.KindConflict, "domain-taken", "remove it there first: rehome domains "+owner+" --remove "+domain, "the domain %s is the database %s's", domain, owner)
	}
	g.follow(ctx)
	return domain, nil
}

// RemoveDomain takes a domain away from a database. KindNotFound if it has none of that name.
func (g *Gateway) RemoveDomain(ctx context.Context, database, domain string) error {
	clean := hostOf(strings.TrimSpace(domain)) // whatever is allowed now: what is there can be removed
	if ascii, err := idna.Lookup.ToASCII(clean); err == nil {
		clean = ascii
	}
	err := pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `DELETE FROM rehome_control.domains WHERE database = $1 AND domain = $2`, database, clean)
		if err != nil {
			return fmt.Errorf("remove a domain of %s: %w", database, err)
		}
		if tag.RowsAffected() == 0 {
			return tenant.Errorf(tenant.KindNotFound, "domain-unknown", "list them with: rehome domains "+database, "the database %s has no domain %s", database, clean)
		}
		return notify(ctx, tx)
	})
	if err != nil {
		return err
	}
	g.follow(ctx)
	return nil
}
