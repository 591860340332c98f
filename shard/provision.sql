-- The schema rehome of a tenant database on a shard, as far as placement goes. Every statement may run again.
-- Names are qualified everywhere: whoever calls these functions may have any search_path.
CREATE SCHEMA IF NOT EXISTS rehome;
COMMENT ON SCHEMA rehome IS 'Rehome: placement, fence and replication state. Do not change by hand.';
GRANT USAGE ON SCHEMA rehome TO PUBLIC;

-- The hash class of a realm; a contract with data at rest: the first 14 low bits of the first two bytes of SHA-256.
CREATE OR REPLACE FUNCTION rehome.bucket(realm text) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT ((pg_catalog.get_byte(h, 0) OPERATOR(pg_catalog.<<) 8) OPERATOR(pg_catalog.|) pg_catalog.get_byte(h, 1)) OPERATOR(pg_catalog.&) 16383
          FROM (SELECT pg_catalog.sha256(pg_catalog.convert_to($1, 'UTF8'))) AS s(h) $$;

-- What this shard owns, at the placement's epoch.
CREATE TABLE IF NOT EXISTS rehome.owned (
    bucket_from integer NOT NULL CHECK (bucket_from BETWEEN 0 AND 16383),
    bucket_to   integer NOT NULL CHECK (bucket_to BETWEEN bucket_from AND 16383),
    epoch       bigint NOT NULL,
    PRIMARY KEY (bucket_from)
);

-- Realms whose place is not their bucket's: here, or expressly not here.
CREATE TABLE IF NOT EXISTS rehome.pinned (
    realm text PRIMARY KEY,
    here  boolean NOT NULL,
    epoch bigint NOT NULL
);

-- Whether rows of a realm belong on this shard. Any role may ask; nobody needs rights on the tables.
CREATE OR REPLACE FUNCTION rehome.owns(realm text) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT COALESCE(
              (SELECT p.here FROM rehome.pinned p WHERE p.realm = $1),
              EXISTS (SELECT 1 FROM rehome.owned o WHERE rehome.bucket($1) BETWEEN o.bucket_from AND o.bucket_to)) $$;
