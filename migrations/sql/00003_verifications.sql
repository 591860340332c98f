-- Verifications that go on after an interruption, and such as are kept fresh by themselves.

-- +goose Up
ALTER TABLE rehome_control.verifications
    ADD COLUMN command     text NOT NULL DEFAULT '',        -- who asked for it; '': the continuous mode
    ADD COLUMN unfinished  boolean NOT NULL DEFAULT false,  -- parts are still to be compared
    ADD COLUMN compared_at timestamptz;                     -- how fresh it is: tenant.Verification.ComparedAt
CREATE INDEX verifications_replication ON rehome_control.verifications (replication, finished_at);

-- What an unfinished verification found equal so far.
CREATE TABLE rehome_control.verification_parts (
    verification  text NOT NULL REFERENCES rehome_control.verifications(id) ON DELETE CASCADE,
    relation      text NOT NULL,
    number        integer NOT NULL,
    part          jsonb NOT NULL,                            -- verify.Part
    PRIMARY KEY (verification, relation, number)
);

-- How verifications go on by themselves until the cutover; NULL: they do not.
ALTER TABLE rehome_control.replications ADD COLUMN verify_policy jsonb; -- api.VerifyPolicy

-- +goose Down
ALTER TABLE rehome_control.replications DROP COLUMN verify_policy;
DROP TABLE rehome_control.verification_parts;
DROP INDEX rehome_control.verifications_replication;
ALTER TABLE rehome_control.verifications DROP COLUMN command, DROP COLUMN unfinished, DROP COLUMN compared_at;
