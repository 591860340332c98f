package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// slotReader only reads, what comes as it comes, and applies nothing. It is no lower bound of what a drain takes: it reads each message
// as it comes, and its walsender uses up to three times the CPU of that of one who is busy applying, or reads what has gathered.
//
// With decode nothing is sent at all: a function of SQL decodes what is in the slot and stores it, which is what decoding costs.
type slotReader struct {
	scribe
	bed    *drainBed
	decode bool

	mu   sync.Mutex
	cpu  float64
	done chan error
}

func (r *slotReader) slot(context.Context) (string, error) { return r.name(), nil }

func (r *slotReader) label() string {
	if r.decode {
		return decoderName
	}
	return readerName
}

func (r *slotReader) name() string {
	if r.decode {
		return "decoder_" + r.bed.database
	}
	return "reader_" + r.bed.database
}

func (r *slotReader) targets() []tenant.DSN          { return nil }
func (r *slotReader) stop(ctx context.Context) error { return r.bed.idle(ctx, r) }

func (r *slotReader) join(ctx context.Context) error {
	r.log.Note("$SOURCE: SELECT pg_create_logical_replication_slot(" + tenant.QuoteLiteral(r.name()) + ", 'pgoutput')")
	return r.bed.exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.name())
}

// pass lets the slot go to where the source is: it only follows while it drains.
func (r *slotReader) pass(ctx context.Context) error {
	return r.bed.exec(ctx, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, r.name())
}

func (r *slotReader) leave(ctx context.Context) error {
	return r.bed.exec(ctx, `SELECT pg_drop_replication_slot($1)`, r.name())
}

func (r *slotReader) own() (float64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cpu, nil
}

// atOnce reports whether it begins as soon as it is asked, so that there is no walsender to wait for.
func (r *slotReader) atOnce() bool { return r.decode }

func (r *slotReader) start(ctx context.Context) error {
	done := make(chan error, 1)
	r.mu.Lock()
	r.done = done
	r.mu.Unlock()
	read := r.receive
	if r.decode {
		read = r.decodeAll
	}
	err := read(ctx)
	done <- err
	return err
}

// decodeAll has a session at the source decode the backlog. The slot stays where it is.
func (r *slotReader) decodeAll(ctx context.Context) error {
	sql := "SELECT count(*), sum(length(data)) FROM pg_logical_slot_peek_binary_changes(" + tenant.QuoteLiteral(r.name()) +
		", NULL, NULL, 'proto_version', '1', 'publication_names', " + tenant.QuoteLiteral(publication) + ")"
	return r.sql(ctx, r.bed.dsn(), "$SOURCE", sql)
}

// receive runs pg_recvlogical until the end of the backlog.
func (r *slotReader) receive(ctx context.Context) error {
	var end string
	if err := r.bed.src.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return fmt.Errorf("read the source's position: %w", err)
	}
	cfg, err := pgx.ParseConfig(r.bed.dsn().Reveal())
	if err != nil {
		return fmt.Errorf("read the source's address: %w", err)
	}
	args := []string{
		"--start", "--no-loop", "-S", r.name(), "-f", "/dev/null", "--endpos", end, "--fsync-interval=0", "-o", "proto_version=1", "-o", "publication_names=" + publication,
		"-h", cfg.Host, "-p", fmt.Sprint(cfg.Port), "-U", cfg.User, "-d", cfg.Database,
	}
	r.log.Note(shell("pg_recvlogical", args))
	cmd := exec.CommandContext(ctx, r.bed.rig.Tool("pg_recvlogical"), args...) //nolint:gosec // programs of the benchmark
	cmd.Env = []string{"PGPASSWORD=" + cfg.Password, "PGSSLMODE=disable"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said strings.Builder
	cmd.Stderr = &said
	err = cmd.Run()
	r.mu.Lock()
	if s := cmd.ProcessState; s != nil {
		r.cpu += (s.UserTime() + s.SystemTime()).Seconds()
	}
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("pg_recvlogical: %w: %s", err, said.String())
	}
	return nil
}

// ended is its finish line: it stops at the end of the backlog.
func (r *slotReader) ended() (bool, error) {
	r.mu.Lock()
	done := r.done
	r.mu.Unlock()
	if done == nil {
		return false, nil
	}
	select {
	case err := <-done:
		return true, err
	default:
		return false, nil
	}
}
