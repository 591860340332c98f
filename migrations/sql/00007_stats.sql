-- Usage over time: versions apart from products, coarser rows for what is older, and samples of what is open.

-- +goose Up
ALTER TABLE rehome_control.connection_stats
    ADD COLUMN version text NOT NULL DEFAULT '',           -- of the client, apart from its name
    ADD COLUMN step    text NOT NULL DEFAULT 'minute' CHECK (step IN ('minute','hour','day')); -- what "minute" begins
UPDATE rehome_control.connection_stats SET client = split_part(client, '/', 1), version = substr(client, strpos(client, '/') + 1)
    WHERE strpos(client, '/') > 1;
ALTER TABLE rehome_control.connection_stats DROP CONSTRAINT connection_stats_pkey;
ALTER TABLE rehome_control.connection_stats ADD PRIMARY KEY (database, step, minute, protocol, client, version, address, outcome, server);
CREATE INDEX connection_stats_age ON rehome_control.connection_stats (step, minute);

-- Gauges are of now: servers write theirs again within seconds.
DELETE FROM rehome_control.connection_gauges;
ALTER TABLE rehome_control.connection_gauges ADD COLUMN version text NOT NULL DEFAULT '';
ALTER TABLE rehome_control.connection_gauges DROP CONSTRAINT connection_gauges_pkey;
ALTER TABLE rehome_control.connection_gauges ADD PRIMARY KEY (database, server, protocol, client, version, address);

-- How many connections were open, sampled once a minute: through the gateways of all servers, and past them.
CREATE TABLE rehome_control.connection_samples (
    database      text NOT NULL,
    step          text NOT NULL CHECK (step IN ('minute','hour','day')),
    at            timestamptz NOT NULL,           -- begin of the step
    via           text NOT NULL,                  -- gateway, direct
    protocol      text NOT NULL,                  -- http websocket postgres
    samples       bigint NOT NULL,                -- how many were added up
    open_sum      bigint NOT NULL,                -- divided by samples: the mean
    open_max      bigint NOT NULL,
    PRIMARY KEY (database, step, at, via, protocol)
);
CREATE INDEX connection_samples_age ON rehome_control.connection_samples (step, at);

-- +goose Down
DROP TABLE rehome_control.connection_samples;
DELETE FROM rehome_control.connection_stats WHERE step <> 'minute';
DROP INDEX rehome_control.connection_stats_age;
CREATE TEMPORARY TABLE joined ON COMMIT DROP AS
    SELECT database, minute, protocol, CASE WHEN version = '' THEN client ELSE client || '/' || version END AS client, address, outcome, server,
        sum(opened)::bigint AS opened, sum(bytes)::bigint AS bytes, max(last_seen) AS last_seen
    FROM rehome_control.connection_stats GROUP BY 1, 2, 3, 4, 5, 6, 7;
DELETE FROM rehome_control.connection_stats;
ALTER TABLE rehome_control.connection_stats DROP CONSTRAINT connection_stats_pkey, DROP COLUMN version, DROP COLUMN step;
INSERT INTO rehome_control.connection_stats (database, minute, protocol, client, address, outcome, server, opened, bytes, last_seen) SELECT * FROM joined;
ALTER TABLE rehome_control.connection_stats ADD PRIMARY KEY (database, minute, protocol, client, address, outcome, server);
DELETE FROM rehome_control.connection_gauges;
ALTER TABLE rehome_control.connection_gauges DROP CONSTRAINT connection_gauges_pkey, DROP COLUMN version;
ALTER TABLE rehome_control.connection_gauges ADD PRIMARY KEY (database, server, protocol, client, address);
