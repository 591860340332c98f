package otp

import (
	"context"
	"errors"
	"fmt"

	"github.com/rehomedb/rehome/tenant"
)

// audit hands an entry to the hook, with the outcome that err says, and returns err. What succeeded but could not be
// audited fails: nothing is approved unseen.
func (s *Service) audit(ctx context.Context, e AuditEntry, err error) error {
	if s.cfg.Audit == nil {
		return err
	}
	e.At, e.Outcome = s.now(), OutcomeOK
	if err != nil {
		e.Outcome = OutcomeFailed
		if te, ok := errors.AsType[*tenant.Error](err); ok {
			e.Detail["reason"] = te.Code
			if te.Kind == tenant.KindUnauthorised || te.Kind == tenant.KindInvalid || te.Kind == tenant.KindConflict {
				e.Outcome = OutcomeRefused
				e.Detail["message"] = te.Message
			}
		}
	}
	ctx, cancel := settled(ctx)
	defer cancel()
	if auditErr := s.cfg.Audit(ctx, e); auditErr != nil {
		s.cfg.Logger.ErrorContext(ctx, "audit entry could not be written", "action", e.Action, "object", e.Object, "error", auditErr)
		if err == nil {
			return fmt.Errorf("write the audit entry: %w", auditErr)
		}
	}
	return err
}
