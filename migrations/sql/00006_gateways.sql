-- Holds and routes that all gateways of the installation agree on.

-- +goose Up
-- A gateway without a live lease keeps requests of databases that are being moved waiting, so nobody has to ask it.
CREATE TABLE rehome_control.gateways (
    server        text PRIMARY KEY,
    seen_at       timestamptz NOT NULL,
    lease_expires_at timestamptz NOT NULL
);

-- New work of a database waits, in every gateway, until the row is gone or its time is over.
CREATE TABLE rehome_control.holds (
    id            text PRIMARY KEY,
    database      text NOT NULL,
    attempt       text NOT NULL,                  -- of a cutover, a rollback or a rehearsal
    until         timestamptz NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE rehome_control.hold_acks (
    hold          text NOT NULL REFERENCES rehome_control.holds(id) ON DELETE CASCADE,
    server        text NOT NULL,
    running       integer NOT NULL DEFAULT 0,     -- requests from before the hold that had not ended
    PRIMARY KEY (hold, server)
);

-- Which side a database's clients go to. The gate at the source decides; this follows it, and only upwards.
CREATE TABLE rehome_control.routes (
    database      text PRIMARY KEY REFERENCES rehome_control.databases(name) ON DELETE CASCADE,
    replication   text NOT NULL DEFAULT '',       -- whose gate the epoch is of
    epoch         bigint NOT NULL,
    side          text NOT NULL CHECK (side IN ('source','target')),
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

ALTER TABLE rehome_control.databases
    ADD COLUMN source_upstream_url text NOT NULL DEFAULT '';  -- the application before the cutover; '': upstream_url
ALTER TABLE rehome_control.replications
    ADD COLUMN source_database text NOT NULL DEFAULT '';      -- the source, if this installation has it as an adopted database

-- Own domains of a database, in lower case, without port and trailing dot.
CREATE TABLE rehome_control.domains (
    domain        text PRIMARY KEY,
    database      text NOT NULL REFERENCES rehome_control.databases(name) ON DELETE CASCADE,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP TABLE rehome_control.domains;
ALTER TABLE rehome_control.replications DROP COLUMN source_database;
ALTER TABLE rehome_control.databases DROP COLUMN source_upstream_url;
DROP TABLE rehome_control.routes, rehome_control.hold_acks, rehome_control.holds, rehome_control.gateways;
