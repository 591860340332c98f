package cutover

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

// maxSchemaFindings bounds how many differences are named one by one; the rest is counted.
const maxSchemaFindings = 30

// checkCatalogues compares the source's catalogue with each shard's, before the source takes the writes back: whatever
// changed on one side only refuses, with what differs. It changes nothing.
func checkCatalogues(ctx context.Context, job Job, f *findings) error {
	if job.Catalogue == nil {
		return nil
	}
	in := verify.Input{
		Catalogue: job.Catalogue, Accepted: job.Accept, Shards: map[string]verify.Sessions{},
		Source: verify.Snapshot(func(ctx context.Context) (*pgx.Conn, error) { return gate.SourceSession(ctx, job.Source) }),
	}
	for _, s := range job.Shards {
		in.Shards[s.Name] = verify.Snapshot(func(ctx context.Context) (*pgx.Conn, error) { return gate.ShardSession(ctx, s.DSN) })
	}
	diffs, err := verify.Schemas(ctx, in)
	if err != nil {
		return err
	}
	// The same difference at several shards is one finding.
	type difference struct{ object, kind, source, target string }
	var order []difference
	shards := map[difference][]string{}
	for _, d := range diffs {
		key := difference{d.Object, d.Kind, d.Source, d.Target}
		if shards[key] == nil {
			order = append(order, key)
		}
		shards[key] = append(shards[key], d.Shard)
	}
	const alike = "make both sides alike: take the change back at the shards, or repeat it at the source; then: rehome verify"
	for i, d := range order {
		if i == maxSchemaFindings {
			f.add(tenant.Blocking, "schema-differs", "source", "see those above", "and %d more differences between the schemas", len(order)-i)
			break
		}
		where := "shard " + strings.Join(shards[d], ", ")
		switch d.kind {
		case verify.TableExtra:
			f.add(tenant.Warning, "table-not-replicated", d.object, "carry its rows over by hand, if they matter", "the table is not replicated: its rows stay at %s", where)
		case verify.PartitionMissing:
			f.add(tenant.Warning, "partition-missing", d.object, "", "the partition is at the source only, not at %s", where)
		case verify.TableGone:
			f.add(tenant.Blocking, "schema-differs", d.object, "make the table again at the source, and copy its rows there: or stay at the shards", "the table is not at the source any more")
		case verify.TableMissing, verify.TriggerMissing, verify.TriggerExtra, verify.TriggerDisabled, verify.IndexInvalid:
			f.add(tenant.Blocking, "schema-differs", d.object, alike, "%s at %s", d.kind, where)
		default:
			f.add(tenant.Blocking, "schema-differs", d.object, alike,
				"%s: the source has %s, %s has %s", d.kind, orNothing(d.source), where, orNothing(d.target))
		}
	}
	return nil
}

func orNothing(s string) string {
	if s == "" {
		return "nothing of it"
	}
	return fmt.Sprintf("%q", s)
}
