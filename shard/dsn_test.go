package shard

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

func TestWithDatabase(t *testing.T) {
	for in, want := range map[string]string{
		"postgres://u:p%40ss%2Fword@h:5433/postgres":                "postgres://u:p%40ss%2Fword@h:5433/acme",
		"postgresql://u@h":                                          "postgresql://u@h/acme",
		"postgres://u:p@h/x?sslmode=disable":                        "postgres://u:p@h/acme?sslmode=disable",
		"postgres://u:p@h/?dbname=x&sslmode=disable&database=y":     "postgres://u:p@h/acme?sslmode=disable",
		"postgres://u:p@h1:1,h2:2/x":                                "postgres://u:p@h1:1,h2:2/acme",
		"host=h user=u password=p dbname=x":                         "host=h user=u password=p dbname=acme",
		`host=h user = u password = 'a \' dbname=b' dbname = 'x y'`: `host=h user=u password='a \' dbname=b' dbname=acme`,
		`host=h user=u password=a\ b`:                               `host=h user=u password=a\ b dbname=acme`,
		"user=u password='' host=h":                                 "user=u password='' host=h dbname=acme",
	} {
		got, err := withDatabase(tenant.DSN(in), "acme")
		if err != nil || got.Reveal() != want {
			t.Errorf("%s: %s, %v; want %s", in, got.Reveal(), err, want)
			continue
		}
		before, _ := pgx.ParseConfig(in)
		after, _ := pgx.ParseConfig(want)
		if before.Password != after.Password || before.Host != after.Host || before.User != after.User {
			t.Errorf("%s: another meaning", in)
		}
	}
	for _, in := range []string{"", "postgres://h:bad/x", "host", "host='x"} {
		if got, err := withDatabase(tenant.DSN(in), "acme"); err == nil {
			t.Errorf("%q accepted as %s", in, got.Reveal())
		}
	}
}
