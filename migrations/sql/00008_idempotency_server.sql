-- Which server works on a request: when it has gone, the next who asks need not wait for it.

-- +goose Up
ALTER TABLE rehome_control.idempotency_keys ADD COLUMN server text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE rehome_control.idempotency_keys DROP COLUMN server;
