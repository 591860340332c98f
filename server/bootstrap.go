package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

const (
	applicationName = "rehome-server"
	// connectTimeout is for the first connection: long enough for a database that starts beside the server.
	connectTimeout = 15 * time.Second
	// controlPatience is short, since no statement there takes long and leases depend on it.
	controlPatience = 5 * time.Second
	// maxIdle closes what a busy hour opened.
	maxIdle = 5 * time.Minute
	// purposeSigningKey is the seal's purpose of the installation's private key.
	purposeSigningKey = "installation-key"
	// migrationLock is the advisory lock under which River's tables are brought up to date; goose takes its own.
	migrationLock = 0x7265686f6d65 // "rehome"
)

// connect opens the pool of the control database and makes sure that it answers.
func connect(ctx context.Context, cfg config.Config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(cfg.DatabaseURL.Reveal())
	if err != nil {
		// The parser's error quotes the connection string.
		return nil, tenant.Errorf(tenant.KindInvalid, "bad-database-url", "write it as postgres://user:password@host:5432/database", "REHOME_DATABASE_URL is not a connection string of Postgres")
	}
	pc.MaxConns = int32(cfg.MaxConnections)
	pc.MaxConnIdleTime = maxIdle
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = connectTimeout
	}
	pc.ConnConfig.RuntimeParams["application_name"] = applicationName
	halfopen.Guard(&pc.ConnConfig.Config, controlPatience)
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("open the control database: %w", err)
	}
	pingCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := pool.Ping(pingCtx); err != nil {
		pool.Close()
		return nil, &tenant.Error{
			Kind: tenant.KindUnavailable, Code: "control-database-unreachable", Err: err,
			Message: "the control database at " + cfg.DatabaseURL.String() + " cannot be reached", Hint: "check that it runs, and REHOME_DATABASE_URL",
		}
	}
	return pool, nil
}

// Migrate brings the control database and the job queue's tables up to date, under a lock.
func Migrate(ctx context.Context, cfg config.Config) (migrations.Status, error) {
	pool, err := connect(ctx, cfg)
	if err != nil {
		return migrations.Status{}, err
	}
	defer pool.Close()
	return migrate(ctx, pool, slog.New(slog.DiscardHandler))
}

func migrate(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) (migrations.Status, error) {
	status, err := migrations.Up(ctx, pool.Config().ConnConfig)
	if err != nil {
		return status, err
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return status, fmt.Errorf("migrate the job queue: %w", err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(migrationLock)); err != nil {
		return status, fmt.Errorf("lock the job queue's migration: %w", err)
	}
	m, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: migrations.Schema, Logger: logger})
	if err == nil {
		_, err = m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	}
	if _, unlockErr := conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, int64(migrationLock)); err == nil {
		err = unlockErr
	}
	if err != nil {
		return status, fmt.Errorf("migrate the job queue: %w", err)
	}
	return status, nil
}

// ensureInstallation reads this installation's identity and makes it on the first start. The address is the one of the
// settings in force: an installation may move.
func ensureInstallation(ctx context.Context, pool *pgxpool.Pool, box *seal.Box, baseURL string) (inst Installation, created bool, err error) {
	inst, err = readInstallation(ctx, pool, box)
	if err == nil {
		if inst.BaseURL != baseURL {
			if _, err := pool.Exec(ctx, `UPDATE rehome_control.installations SET base_url = $1`, baseURL); err != nil {
				return inst, false, fmt.Errorf("store the base URL: %w", err)
			}
			inst.BaseURL = baseURL
		}
		return inst, false, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return inst, false, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return inst, false, fmt.Errorf("make the installation's key: %w", err)
	}
	sealed := box.Seal(purposeSigningKey, base64.StdEncoding.EncodeToString(private.Seed()))
	tag, err := pool.Exec(ctx, `INSERT INTO rehome_control.installations (id, base_url, public_key, private_key_sealed) VALUES ($1,$2,$3,$4) ON CONFLICT DO NOTHING`,
		newID(), baseURL, []byte(public), sealed)
	if err != nil {
		return inst, false, fmt.Errorf("store the installation: %w", err)
	}
	inst, err = readInstallation(ctx, pool, box)
	return inst, tag.RowsAffected() == 1, err
}

func readInstallation(ctx context.Context, pool *pgxpool.Pool, box *seal.Box) (Installation, error) {
	var inst Installation
	var public, sealed []byte
	err := pool.QueryRow(ctx, `SELECT id, base_url, admin_email, public_key, private_key_sealed FROM rehome_control.installations`).
		Scan(&inst.ID, &inst.BaseURL, &inst.AdminEmail, &public, &sealed)
	if err != nil {
		return inst, fmt.Errorf("read the installation: %w", err)
	}
	plain, err := box.Open(purposeSigningKey, sealed)
	if err != nil {
		return inst, fmt.Errorf("open the installation's key: %w", err)
	}
	seed, err := base64.StdEncoding.DecodeString(plain)
	if err != nil || len(seed) != ed25519.SeedSize {
		return inst, errors.New("open the installation's key: it is damaged")
	}
	inst.PublicKey, inst.PrivateKey = public, ed25519.NewKeyFromSeed(seed)
	return inst, nil
}

// idLength gives 60 random bits, enough for names that are unique in one control database and short in slot names.
const idLength = 12

// newID makes a random name of lower-case letters and digits, fit for slots, subjects and file names.
func newID() string { return strings.ToLower(rand.Text())[:idLength] }
