package server

import (
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// verifyRequest refuses what contradicts itself.
func verifyRequest(v api.VerifyRequest) (api.VerifyRequest, error) {
	switch {
	case v.Stop && v != api.VerifyRequest{Stop: true}:
		return v, tenant.Errorf(tenant.KindInvalid, "bad-verify", "ask for one after the other", "stop ends the continuous mode and goes with nothing else")
	case v.Continuous && (v.Repair || v.Resume):
		return v, tenant.Errorf(tenant.KindInvalid, "bad-verify", "repair first, then begin the continuous mode", "the continuous mode only compares, and goes on by itself")
	case v.EveryMS > 0 && !v.Continuous:
		return v, tenant.Errorf(tenant.KindInvalid, "bad-verify", "add continuous, or leave every out", "every belongs to the continuous mode")
	}
	return v, nil
}
