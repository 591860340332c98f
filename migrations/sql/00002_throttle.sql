-- What an operator allows a replication at its source (tenant.Throttle). Kept over restarts and take-overs.

-- +goose Up
ALTER TABLE rehome_control.replications ADD COLUMN throttle jsonb NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE rehome_control.replications DROP COLUMN throttle;
