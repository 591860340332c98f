package catalog

import (
	"fmt"

	"github.com/rehomedb/rehome/tenant"
)

// truncationPrefix begins the names of the triggers that note a TRUNCATE of a partition; the replication follows, since
// several may read from one source and end at different times.
const truncationPrefix = "rehome_truncated_"

// TruncationTrigger is the name of a replication's triggers that note a TRUNCATE of a partition.
func TruncationTrigger(replication string) string { return truncationPrefix + replication }

// PlanTruncations plans a trigger on every partition, which notes a TRUNCATE of it: the stream of a publication by root
// does not tell of it. Without it the rows would stay at the shards. rehome.note_truncation must be there. The trigger
// fires for every session, also for one that applies another replication.
func PlanTruncations(cat *Catalogue, replication string) []tenant.SourceChange {
	var out []tenant.SourceChange
	name := TruncationTrigger(replication)
	for i := range cat.Tables {
		t := &cat.Tables[i]
		if !t.Partitioned {
			continue
		}
		for _, set := range [][]Leaf{t.Branches, t.Leaves} {
			for _, l := range set {
				out = append(out, tenant.SourceChange{
					Ordinal: len(out) + 1, Object: l.Name.String(), Description: l.Name.String() + ": trigger that notes a TRUNCATE of this partition alone",
					Do: doBlock(fmt.Sprintf("IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = %[1]d AND tgname = %[2]s) THEN "+
						"CREATE TRIGGER %[3]s AFTER TRUNCATE ON %[4]s FOR EACH STATEMENT EXECUTE FUNCTION rehome.note_truncation(); ALTER TABLE %[4]s ENABLE ALWAYS TRIGGER %[3]s; END IF;",
						l.OID, tenant.QuoteLiteral(name), tenant.QuoteIdent(name), l.Name.Quoted())),
					// Wherever it is by now: a partition may have got another name, and what the function is needed for blocks its removal.
					Undo: doBlock(fmt.Sprintf("DECLARE t regclass; BEGIN FOR t IN SELECT tgrelid FROM pg_catalog.pg_trigger WHERE tgname = %s LOOP "+
						"EXECUTE pg_catalog.format('DROP TRIGGER %%I ON %%s', %[1]s, t); END LOOP; END;", tenant.QuoteLiteral(name))),
				})
			}
		}
	}
	return out
}
