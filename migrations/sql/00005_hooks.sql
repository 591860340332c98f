-- Who is told what happened: webhooks (Standard Webhooks) and e-mails. Both are derived from rehome_control.events, once.

-- +goose Up
-- How far the events were looked through for news. Whoever tells moves it in the same transaction as what it makes.
CREATE TABLE rehome_control.news_cursor (
    singleton     boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    after_id      bigint NOT NULL                 -- events.id
);
-- What happened before this version is no news.
INSERT INTO rehome_control.news_cursor (after_id) SELECT coalesce(max(id), 0) FROM rehome_control.events;

CREATE TABLE rehome_control.webhooks (
    id            text PRIMARY KEY,
    url_sealed    bytea NOT NULL,                 -- paths and queries of such URLs are secrets often enough
    url_label     text NOT NULL,                  -- scheme, host and the path's first part
    description   text NOT NULL DEFAULT '',
    topics        text[] NOT NULL DEFAULT '{}',   -- empty: all
    databases     text[] NOT NULL DEFAULT '{}',   -- empty: all
    secret_sealed bytea NOT NULL,
    former_secret_sealed bytea,                   -- signs too, until former_until
    former_until  timestamptz,
    created_by    text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL,
    after_id      bigint NOT NULL,                -- events.id: it hears of later ones
    disabled_at   timestamptz,
    disabled_reason text NOT NULL DEFAULT ''
);

CREATE TABLE rehome_control.webhook_deliveries (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook       text NOT NULL REFERENCES rehome_control.webhooks(id) ON DELETE CASCADE,
    event_id      text NOT NULL,                  -- of the CloudEvent; the header webhook-id
    topic         text NOT NULL,
    database      text NOT NULL DEFAULT '',
    body          text NOT NULL,                  -- what is signed and sent
    state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending','delivered','dead')),
    job           bigint,                         -- the one River job that may send it
    attempts      integer NOT NULL DEFAULT 0,
    status        integer,                        -- HTTP status of the last answer
    error         text NOT NULL DEFAULT '',       -- of the last attempt
    created_at    timestamptz NOT NULL,
    last_at       timestamptz,
    next_at       timestamptz,                    -- pending: not before
    finished_at   timestamptz,
    UNIQUE (webhook, event_id)
);
CREATE INDEX webhook_deliveries_finished ON rehome_control.webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;

-- E-mails about what happened, sent or to be sent.
CREATE TABLE rehome_control.notices (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id      text NOT NULL,
    topic         text NOT NULL,
    database      text NOT NULL DEFAULT '',
    recipient     text NOT NULL,
    subject       text NOT NULL,
    message       jsonb NOT NULL,                 -- otp.Message: the text; never a secret
    state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending','sent','dead')),
    attempts      integer NOT NULL DEFAULT 0,
    error         text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL,
    finished_at   timestamptz,
    UNIQUE (event_id, recipient)
);

-- What was told last of a thing, so that nobody is told the same again and again.
CREATE TABLE rehome_control.told (
    thing         text NOT NULL,                  -- a replication or database
    topic         text NOT NULL,
    at            timestamptz NOT NULL,
    urgency       double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (thing, topic)
);

-- What an address does not want to be told of.
CREATE TABLE rehome_control.notification_settings (
    email         text PRIMARY KEY,               -- lower case
    muted         text[] NOT NULL DEFAULT '{}',   -- topics; 'all': nothing
    updated_at    timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP TABLE rehome_control.notification_settings, rehome_control.told, rehome_control.notices, rehome_control.webhook_deliveries,
    rehome_control.webhooks, rehome_control.news_cursor;
