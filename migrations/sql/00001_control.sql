-- The control database: the authority for everything but who may write (that is the gate's, in the source's database).
-- All tables live in the schema rehome_control. Columns that end in _sealed hold AES-GCM ciphertext with a key id.

-- +goose Up
CREATE TABLE rehome_control.installations (
    singleton     boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id            text NOT NULL,                  -- short random name; part of NATS subjects
    base_url      text NOT NULL,
    admin_email   text NOT NULL DEFAULT '',
    public_key    bytea NOT NULL,                 -- ed25519, signs certificates and webhooks
    private_key_sealed bytea NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rehome_control.settings (
    name          text PRIMARY KEY,
    value         text,
    value_sealed  bytea,                          -- for settings that carry credentials, as the e-mail channel's URL
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rehome_control.shards (
    name          text PRIMARY KEY,
    ordinal       integer NOT NULL UNIQUE,        -- never used again; the offset of the shard's sequence values
    dsn_sealed    bytea NOT NULL,                 -- to a maintenance database of the server
    dsn_label     text NOT NULL,                  -- the same without password
    weight        integer NOT NULL DEFAULT 100 CHECK (weight >= 0),
    zone          text NOT NULL DEFAULT '',
    accepting     boolean NOT NULL DEFAULT true,  -- takes realms of new databases
    system_identifier text NOT NULL,
    server_version integer NOT NULL,              -- server_version_num
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rehome_control.databases (
    name          text PRIMARY KEY,
    kind          text NOT NULL CHECK (kind IN ('sharded','adopted')),
    state         text NOT NULL DEFAULT 'active' CHECK (state IN ('active','stopped','deleting','deleted','purged')),
    owner_email   text NOT NULL DEFAULT '',
    realm_key     text NOT NULL DEFAULT 'realm_id',
    upstream_url  text NOT NULL DEFAULT '',       -- the application that the gateway forwards HTTP to
    adopted_dsn_sealed bytea,                     -- kind adopted: the database itself
    adopted_dsn_label  text NOT NULL DEFAULT '',
    placement_epoch bigint NOT NULL DEFAULT 0,    -- the placement in force
    created_at    timestamptz NOT NULL DEFAULT now(),
    deleted_at    timestamptz,
    purge_after   timestamptz,
    purged_at     timestamptz
);

CREATE TABLE rehome_control.database_shards (
    database      text NOT NULL REFERENCES rehome_control.databases(name) ON DELETE CASCADE,
    shard         text NOT NULL REFERENCES rehome_control.shards(name),
    PRIMARY KEY (database, shard)
);

CREATE TABLE rehome_control.placements (
    database      text NOT NULL REFERENCES rehome_control.databases(name) ON DELETE CASCADE,
    epoch         bigint NOT NULL,
    placement     jsonb NOT NULL,                 -- tenant.Placement
    reason        text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (database, epoch)
);

CREATE TABLE rehome_control.api_clients (
    id            text PRIMARY KEY,
    secret_hash   bytea NOT NULL,                 -- SHA-256 of the secret
    email         text NOT NULL,
    scopes        text[] NOT NULL,
    databases     text[] NOT NULL DEFAULT '{}',   -- empty: all
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz
);

CREATE TABLE rehome_control.replications (
    id            text PRIMARY KEY,               -- also in slot and publication: rehome_<id>
    database      text NOT NULL REFERENCES rehome_control.databases(name),
    source_dsn_sealed bytea NOT NULL,
    source_label  text NOT NULL,
    target_url    text NOT NULL,
    options       jsonb NOT NULL,                 -- tenant.ReplicationOptions
    state         jsonb NOT NULL,                 -- tenant.State
    phase         text NOT NULL,                  -- state->>'Phase', for queries
    slot_name     text NOT NULL,
    publication   text NOT NULL,
    source_identity jsonb NOT NULL DEFAULT '{}',  -- system identifier, timeline, server version
    start_lsn     pg_lsn,                         -- the slot's consistent point
    placement_epoch bigint NOT NULL,
    catalogue     jsonb,                          -- what was published, as described when the slot was made
    progress      jsonb,                          -- last tenant.Progress
    approved_by   text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz
);
-- One replication at a time moves a database.
CREATE UNIQUE INDEX replications_one_active ON rehome_control.replications (database) WHERE phase NOT IN ('completed','cancelled');

CREATE TABLE rehome_control.replication_steps (
    replication   text NOT NULL REFERENCES rehome_control.replications(id) ON DELETE CASCADE,
    name          text NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    detail        jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (replication, name)
);

-- What is copied: a leaf table, or later a chunk of one. The shard's own row (rehome.copied) is the truth.
CREATE TABLE rehome_control.replication_chunks (
    replication   text NOT NULL REFERENCES rehome_control.replications(id) ON DELETE CASCADE,
    relation      text NOT NULL,                  -- leaf table
    chunk         integer NOT NULL DEFAULT 0,
    watermark     pg_lsn NOT NULL,                -- the snapshot's position: older commits are in it
    rows          bigint NOT NULL,
    bytes         bigint NOT NULL,
    finished_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (replication, relation, chunk)
);

-- What Rehome changed at a source, written before it is done.
CREATE TABLE rehome_control.source_changes (
    replication   text NOT NULL REFERENCES rehome_control.replications(id) ON DELETE CASCADE,
    ordinal       integer NOT NULL,
    object        text NOT NULL,
    description   text NOT NULL,
    do_sql        text NOT NULL,
    undo_sql      text NOT NULL,
    undone_at     timestamptz,
    PRIMARY KEY (replication, ordinal)
);

-- Requests to the worker that owns a replication. Executed once each, in order; every kind is idempotent.
CREATE TABLE rehome_control.replication_commands (
    id            text PRIMARY KEY,
    replication   text NOT NULL REFERENCES rehome_control.replications(id) ON DELETE CASCADE,
    kind          text NOT NULL,                  -- pause resume cancel verify cutover rollback complete
    args          jsonb NOT NULL DEFAULT '{}',
    requested_by  text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    finished_at   timestamptz,
    result        jsonb,
    error         jsonb                           -- kind, code, message, hint, findings
);
CREATE INDEX replication_commands_open ON rehome_control.replication_commands (replication, created_at) WHERE finished_at IS NULL;

CREATE TABLE rehome_control.verifications (
    id            text PRIMARY KEY,
    replication   text NOT NULL REFERENCES rehome_control.replications(id) ON DELETE CASCADE,
    started_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    lsn           pg_lsn,
    clean         boolean,
    digest        text,
    result        jsonb                           -- tenant.Verification
);

-- Attempts to move write authority. The decision itself is the gate's row at the source; this is intent and report.
CREATE TABLE rehome_control.cutovers (
    attempt       text PRIMARY KEY,
    replication   text NOT NULL REFERENCES rehome_control.replications(id) ON DELETE CASCADE,
    direction     text NOT NULL CHECK (direction IN ('cutover','rollback','rehearsal')),
    gate_epoch    bigint NOT NULL,                -- e: the gate's epoch before the attempt
    step          text NOT NULL,                  -- the last persisted step
    max_pause_ms  bigint NOT NULL,
    approved_by   text NOT NULL DEFAULT '',
    started_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    outcome       text CHECK (outcome IN ('target','source')),
    report        jsonb NOT NULL DEFAULT '{}',
    certificate   jsonb                           -- tenant.Certificate, signed
);

-- Ownership with a fencing epoch: whoever takes a lease raises it; shards refuse commits of older epochs.
CREATE TABLE rehome_control.leases (
    resource      text PRIMARY KEY,
    holder        text NOT NULL,
    epoch         bigint NOT NULL,
    expires_at    timestamptz NOT NULL
);

CREATE TABLE rehome_control.challenges (
    id            text PRIMARY KEY,
    action        text NOT NULL,                  -- start-replication cutover redirect rollback delete-db ...
    database      text NOT NULL,
    plan          jsonb NOT NULL,
    plan_text     text NOT NULL,                  -- the plan in words, as the e-mail shows it
    plan_digest   bytea NOT NULL,                 -- SHA-256 of the canonical plan
    code_hash     bytea NOT NULL,
    recipient     text NOT NULL,
    channel       text NOT NULL,
    requested_by  text NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    attempts      integer NOT NULL DEFAULT 0,
    used_at       timestamptz,
    closed_at     timestamptz                     -- too many tries
);
CREATE INDEX challenges_recipient ON rehome_control.challenges (recipient, created_at);
CREATE INDEX challenges_database ON rehome_control.challenges (database, created_at);

CREATE TABLE rehome_control.grants (
    id            text PRIMARY KEY,
    challenge     text NOT NULL REFERENCES rehome_control.challenges(id),
    action        text NOT NULL,
    database      text NOT NULL,
    plan_digest   bytea NOT NULL,
    approved_by   text NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    used_at       timestamptz
);

CREATE TABLE rehome_control.totp_seeds (
    email         text PRIMARY KEY,
    seed_sealed   bytea NOT NULL,
    confirmed_at  timestamptz,
    last_step     bigint NOT NULL DEFAULT 0,      -- RFC 6238 §5.2: a step is accepted once
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rehome_control.redirects (
    database      text PRIMARY KEY,
    target_url    text NOT NULL,
    mode          text NOT NULL CHECK (mode IN ('redirect','proxy','refuse')),
    permanent     boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_by    text NOT NULL DEFAULT '',
    tombstone_until timestamptz                   -- set at deletion; afterwards 410
);

-- A deletion that waits for the second confirmation.
CREATE TABLE rehome_control.delete_confirmations (
    database      text PRIMARY KEY,
    token_hash    bytea NOT NULL,                 -- of the link
    code_hash     bytea NOT NULL,                 -- of the code in the same e-mail
    attempts      integer NOT NULL DEFAULT 0,
    requested_by  text NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    args          jsonb NOT NULL DEFAULT '{}'
);

-- One row per database, minute, protocol, client and outcome: opened connections; open now is the gateway's own gauge.
CREATE TABLE rehome_control.connection_stats (
    database      text NOT NULL,
    minute        timestamptz NOT NULL,
    protocol      text NOT NULL,                  -- http websocket postgres
    client        text NOT NULL,                  -- user agent or application_name
    address       text NOT NULL,
    outcome       text NOT NULL,                  -- served redirected proxied refused held
    server        text NOT NULL,                  -- which server counted
    opened        bigint NOT NULL DEFAULT 0,
    bytes         bigint NOT NULL DEFAULT 0,
    last_seen     timestamptz NOT NULL,
    PRIMARY KEY (database, minute, protocol, client, address, outcome, server)
);

CREATE TABLE rehome_control.connection_gauges (
    database      text NOT NULL,
    server        text NOT NULL,
    protocol      text NOT NULL,
    client        text NOT NULL,
    address       text NOT NULL,
    open_now      integer NOT NULL,
    updated_at    timestamptz NOT NULL,
    PRIMARY KEY (database, server, protocol, client, address)
);

CREATE TABLE rehome_control.audit (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT now(),
    actor         text NOT NULL,
    action        text NOT NULL,
    object        text NOT NULL DEFAULT '',
    outcome       text NOT NULL,                  -- ok, refused, failed
    address       text NOT NULL DEFAULT '',
    detail        jsonb NOT NULL DEFAULT '{}'
);

-- Events wait here until they are published; the row is the truth, NATS the news.
CREATE TABLE rehome_control.events (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream        text NOT NULL,                  -- what the sequence counts: a replication's id, or 'installation'
    seq           bigint NOT NULL,                -- 1, 2, 3 … without gaps in a stream
    subject       text NOT NULL,
    event         jsonb NOT NULL,                 -- CloudEvents 1.0
    created_at    timestamptz NOT NULL DEFAULT now(),
    published_at  timestamptz,
    UNIQUE (stream, seq)
);
CREATE INDEX events_unpublished ON rehome_control.events (id) WHERE published_at IS NULL;

CREATE TABLE rehome_control.event_sequences (
    stream        text PRIMARY KEY,
    last          bigint NOT NULL
);

-- An Idempotency-Key and the answer it got.
CREATE TABLE rehome_control.idempotency_keys (
    key           text NOT NULL,
    client        text NOT NULL,
    request_hash  bytea NOT NULL,
    status        integer,
    response      bytea,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client, key)
);

-- +goose Down
DROP TABLE rehome_control.idempotency_keys, rehome_control.event_sequences, rehome_control.events, rehome_control.audit,
    rehome_control.connection_gauges, rehome_control.connection_stats, rehome_control.delete_confirmations,
    rehome_control.redirects, rehome_control.totp_seeds, rehome_control.grants, rehome_control.challenges,
    rehome_control.leases, rehome_control.cutovers, rehome_control.verifications, rehome_control.replication_commands,
    rehome_control.source_changes, rehome_control.replication_chunks, rehome_control.replication_steps,
    rehome_control.replications, rehome_control.api_clients, rehome_control.placements,
    rehome_control.database_shards, rehome_control.databases, rehome_control.shards, rehome_control.settings,
    rehome_control.installations;
