package replicator

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/tenant"
)

// ErrFenced says that another worker took this replication: whatever this one still holds must be dropped.
var ErrFenced = &tenant.Error{Kind: tenant.KindConflict, Code: "fenced", Message: "another server took over this replication"}

// stop makes an error that pauses the replication: what is wrong and what a person can do.
func stop(code, remedy, format string, args ...any) *tenant.Error {
	return tenant.Errorf(tenant.KindRefused, code, remedy, format, args...)
}

// sqlstateFenced is raised by rehome.advance when the shard's last progress row is not the one the worker knows.
const sqlstateFenced = "RH002"

// IsRetryable reports whether trying again later may help: a lost connection, too few resources, a server that is
// starting or stopping (SQLSTATE classes 08, 40, 53, 57 of the manual's appendix A), or a slot still in use.
func IsRetryable(err error) bool {
	if err == nil || errors.Is(err, ErrFenced) {
		return false
	}
	if te, ok := errors.AsType[*tenant.Error](err); ok {
		return te.Kind == tenant.KindUnavailable
	}
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case pe.Code == "57014" && strings.Contains(pe.Message, "statement timeout"):
			return true
		case pe.Code == "55006", pe.Code == "55P03", pe.Code == "25P03", pe.Code == "25P02":
			return true // object in use, lock not available, idle in transaction, aborted by an earlier error
		case pe.Code == "25006":
			return true // read-only: while a failover is under way an address may still lead to the demoted server
		}
		switch pe.Code[:2] {
		case "08", "40", "53", "57":
			return true
		}
		return false
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || pgconn.Timeout(err) {
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errConnLost) || errors.Is(err, halfopen.ErrLost) || errors.Is(err, pgconn.ErrConnClosed)
}

// errConnLost marks a connection that broke in the middle of something.
var errConnLost = errors.New("the connection was lost")

// describe turns any error into the reason and remedy that a pause shows.
func describe(err error) (reason, remedy string) {
	if te, ok := errors.AsType[*tenant.Error](err); ok {
		return te.Error(), te.Hint
	}
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		reason = err.Error()
		if pe.Detail != "" {
			reason += " (" + pe.Detail + ")"
		}
		return reason, "mend the cause, then: rehome resume-replication"
	}
	return err.Error(), "mend the cause, then: rehome resume-replication"
}

func isLockTimeout(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.Code == "55P03"
}
