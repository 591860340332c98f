package catalog_test

import (
	"testing"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern string
		name    tenant.TableName
		want    bool
	}{
		{"*", tenant.TableName{Schema: "a", Name: "b"}, true},
		{"a.*", tenant.TableName{Schema: "a", Name: "b.c"}, true},
		{"t*", tenant.TableName{Schema: "public", Name: "tables"}, true},
		{"t*", tenant.TableName{Schema: "t", Name: "tables"}, false},
		{`"*"."*"`, tenant.TableName{Schema: "*", Name: "*"}, true},
		{`"*"."*"`, tenant.TableName{Schema: " a", Name: "B"}, false},
		{`"*"`, tenant.TableName{Schema: "public", Name: "a"}, false},
		{`"Odd ""one.".*`, tenant.TableName{Schema: `Odd "one.`, Name: "x"}, true},
		{`"Odd".x*`, tenant.TableName{Schema: "Odd", Name: "xyz"}, true},
		{`"a.b"*`, tenant.TableName{Schema: "public", Name: "a.b.c"}, true},
	} {
		if got := catalog.Matches(c.pattern, c.name); got != c.want {
			t.Errorf("pattern %s, table %s: %v", c.pattern, c.name, got)
		}
	}
	opts := tenant.ReplicationOptions{TableKeys: map[string]string{"*": "any", "app.*": "of_schema", "app.x": "of_table", "ap*": "of_public"}}
	for range 20 { // a map's order differs from time to time
		for name, want := range map[tenant.TableName]string{{Schema: "app", Name: "x"}: "of_table", {Schema: "app", Name: "y"}: "of_schema", {Schema: "z", Name: "y"}: "any"} {
			if got, explicit := catalog.WantedRealmKey(opts, name); got != want || !explicit {
				t.Fatalf("%s: realm key %s, want %s", name, got, want)
			}
		}
	}
}
