package gate

// A publication that names the root of a partition tree says nothing of a TRUNCATE of one of its partitions (pgoutput
// leaves it out). Triggers on the partitions note it as a row of a table of ours, which is published.
//
// The table is only ever added to: deleting old rows here could make a user's transaction wait for another, or fail.
const createTruncated = `
CREATE TABLE IF NOT EXISTS rehome.truncated (
    id     text PRIMARY KEY,
    root   oid NOT NULL,
    schema text NOT NULL,
    name   text NOT NULL,
    at     timestamptz NOT NULL
)`

// createNoteTruncation: of a table that left its tree nothing is noted.
const createNoteTruncation = `
CREATE OR REPLACE FUNCTION rehome.note_truncation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $note$
BEGIN
    IF TG_OP = 'TRUNCATE' AND pg_partition_root(TG_RELID) <> TG_RELID THEN
        INSERT INTO rehome.truncated VALUES (gen_random_uuid()::text, pg_partition_root(TG_RELID), TG_TABLE_SCHEMA, TG_TABLE_NAME, clock_timestamp());
    END IF;
    RETURN NULL;
END
$note$`

const revokeNoteTruncation = `REVOKE ALL ON FUNCTION rehome.note_truncation() FROM PUBLIC`
