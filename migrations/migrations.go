// Package migrations carries the schema of the control database, as SQL embedded in the binary, and brings a database
// up to it. Postgres is the authority: goose records in rehome_control.goose_db_version what has been applied. Several
// servers may start at once; a session-level advisory lock lets one of them migrate while the others wait.
//
// A migration here is a change of the control database's schema and never the move of a tenant.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

// Schema is where all tables of the control database live.
const Schema = "rehome_control"

//go:embed sql/*.sql
var files embed.FS

// Status is where a control database stands.
type Status struct {
	Version int64    `json:"version"` // the version in force
	Latest  int64    `json:"latest"`  // the version that this binary knows
	Applied []string `json:"applied"` // what this call applied
}

// Up brings the control database to the latest version. It creates the schema if there is none, and waits for another
// server that is migrating.
func Up(ctx context.Context, cfg *pgx.ConnConfig) (Status, error) {
	db := stdlib.OpenDB(*cfg)
	defer func() { _ = db.Close() }()
	p, err := provider(ctx, db)
	if err != nil {
		return Status{}, err
	}
	results, err := p.Up(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("migrate the control database: %w", err)
	}
	var st Status
	for _, r := range results {
		st.Applied = append(st.Applied, r.Source.Path)
	}
	st.Version, st.Latest, err = p.GetVersions(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("read the control database's version: %w", err)
	}
	return st, nil
}

func provider(ctx context.Context, db *sql.DB) (*goose.Provider, error) {
	// IF NOT EXISTS still races between two sessions; the loser's unique violation means that the schema is there.
	if _, err := db.ExecContext(ctx, `DO $$ BEGIN CREATE SCHEMA IF NOT EXISTS rehome_control; EXCEPTION WHEN unique_violation THEN NULL; END $$`); err != nil {
		return nil, fmt.Errorf("create schema %s: %w", Schema, err)
	}
	sub, err := fs.Sub(files, "sql")
	if err != nil {
		return nil, fmt.Errorf("open the embedded migrations: %w", err)
	}
	store, err := database.NewStore(database.DialectPostgres, Schema+".goose_db_version")
	if err != nil {
		return nil, fmt.Errorf("open goose's version table: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, fmt.Errorf("make the migration lock: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectCustom, db, sub, goose.WithStore(store), goose.WithSessionLocker(locker))
	if err != nil {
		return nil, fmt.Errorf("read the embedded migrations: %w", err)
	}
	return p, nil
}
