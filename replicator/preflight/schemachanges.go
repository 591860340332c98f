package preflight

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/ddl"
)

// schemaChanges says what a change of the source's schema will do to the replication: where the role may create event
// triggers it is followed, else it pauses. Triggers that note a TRUNCATE of a partition are made by the engine for what is
// there at the start, and later by the event triggers only.
func (c *checker) schemaChanges(ctx context.Context) {
	cfg, err := pgx.ParseConfig(c.in.Source.Reveal())
	if err != nil {
		return
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.RuntimeParams["application_name"] = "rehome preflight"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return // said by others
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	may, err := ddl.Permitted(tctx, conn)
	if err != nil || may {
		return
	}
	c.warn("schema-changes-pause", "source", "connect as a superuser (or a managed server's administrator), or run migrations before the move or after it, and truncate no partition alone that is younger than the replication",
		"the role may not create event triggers: a change of the source's schema will pause the replication until the shards have it, "+
			"and a TRUNCATE of a partition alone that was made or attached after the start is not carried: only a verification shows the rows that stay at the shards")
}
