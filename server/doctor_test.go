package server

import (
	"testing"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestDoctor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.addShard("s1")
	d := b.createDatabase()
	var r api.Doctor
	b.must("GET", "/v1/doctor", nil, &r)
	if !r.OK || r.Findings == nil || len(r.Findings) > 0 {
		t.Fatalf("found in a healthy installation: %+v", r)
	}
	if _, err := b.pool.Exec(t.Context(), `UPDATE rehome_control.databases SET placement_epoch = 0 WHERE name = $1`, d.Name); err != nil {
		t.Fatal(err)
	}
	b.must("GET", "/v1/doctor", nil, &r)
	if r.OK || len(r.Findings) != 1 || r.Findings[0].Code != "database-half-created" || !r.Findings[0].Fixable {
		t.Fatalf("found: %+v", r)
	}

	// An operator of replications may look, an administrator of everything repairs, an owner of a database neither.
	for _, c := range []struct {
		request api.ClientRequest
		look    int
	}{
		{api.ClientRequest{Email: owner, Scopes: []string{scopeOperate}}, 200},
		{api.ClientRequest{Email: owner, Scopes: []string{scopeRead}}, 403},
		{api.ClientRequest{Email: owner, Scopes: []string{scopeAdmin}, Databases: []string{d.Name}}, 403},
	} {
		var key api.ClientCreated
		b.must("POST", "/v1/clients", c.request, &key)
		as := withKey(key.ID + ":" + key.Secret)
		if got := b.do("GET", "/v1/doctor", nil, nil, as).status; got != c.look {
			t.Errorf("%+v: to look is answered with %d instead of %d", c.request, got, c.look)
		}
		if a := b.do("POST", "/v1/doctor/fix", nil, nil, as); a.status != 403 || a.problem.Kind != tenant.KindUnauthorised.String() {
			t.Errorf("%+v: to repair is answered with %d", c.request, a.status)
		}
	}

	b.must("POST", "/v1/doctor/fix", nil, &r)
	if !r.OK || len(r.Repairs) != 1 || !r.Repairs[0].Done {
		t.Fatalf("repaired: %+v", r)
	}
	var n int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.audit WHERE action = 'doctor-fix' AND outcome = 'ok' AND detail->'repairs'->0->>'code' = 'database-half-created'`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d audit rows of the repair, %v", n, err)
	}
}
