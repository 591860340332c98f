package otp

import (
	"fmt"

	"github.com/rehomedb/rehome/tenant"
)

const askAgain = "ask for a new code"

// What a code can be refused for. Compare with errors.Is: it goes by Code, and messages carry details.
var (
	ErrWrongCode       = refusal("wrong-code", "the code is wrong", "check the code in the newest mail and type it again")
	ErrWrongMailCode   = refusal("wrong-mail-code", "the mailed code is wrong", "type the code of the newest mail; the app's own code comes after it")
	ErrCodeExpired     = refusal("code-expired", "the code has expired", askAgain)
	ErrCodeUsed        = refusal("code-used", "the code has been used", askAgain)
	ErrOtherPlan       = refusal("code-for-another-plan", "the code approves another plan than this", "ask for a code for exactly this command and its options")
	ErrTooManyTries    = refusal("too-many-tries", "too many wrong tries: the challenge is closed", askAgain)
	ErrUnknown         = refusal("unknown-challenge", "there is no such challenge", askAgain)
	ErrRateLimited     = refusal("rate-limited", "too many codes were asked for", "wait a while, then ask again")
	ErrTOTPNotEnrolled = refusal("totp-not-enrolled", "no authenticator app is enrolled for this address", "use the e-mail channel, or enrol one: rehome totp enroll")
	ErrTOTPLocked      = refusal("totp-locked", "the authenticator app is locked after too many wrong codes", "wait an hour, or use the e-mail channel")
	ErrGrantUnusable   = refusal("grant-unusable", "the approval has been used or has expired", askAgain)
	ErrTOTPEnrolled    = &tenant.Error{
		Kind: tenant.KindConflict, Code: "totp-enrolled", Message: "an authenticator app is enrolled for this address",
		Hint: "remove it first: rehome totp remove",
	}
)

func refusal(code, message, hint string) *tenant.Error {
	return &tenant.Error{Kind: tenant.KindUnauthorised, Code: code, Message: message, Hint: hint}
}

// with returns the refusal with more to its message.
func with(e *tenant.Error, format string, args ...any) *tenant.Error {
	c := *e
	c.Message += fmt.Sprintf(format, args...)
	return &c
}

func invalid(code, format string, args ...any) error {
	return tenant.Errorf(tenant.KindInvalid, code, "", format, args...)
}
