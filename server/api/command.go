package api

// The kinds of commands that a replication's worker executes.
const (
	CommandPause    = "pause"
	CommandResume   = "resume"
	CommandCancel   = "cancel"
	CommandVerify   = "verify"
	CommandCutover  = "cutover"
	CommandRollback = "rollback"
	CommandComplete = "complete"
)

// CommandArgs is what the server writes into rehome_control.replication_commands.args for the worker.
type CommandArgs struct {
	Reason          string `json:"reason,omitempty"`           // pause: why
	DropFence       bool   `json:"drop_fence,omitempty"`       // complete: also let the old side accept writes again
	SourceDestroyed bool   `json:"source_destroyed,omitempty"` // complete, cancel: the source is gone for good, as a person declares
	DryRun          bool   `json:"dry_run,omitempty"`          // cutover: findings only
	MaxPauseMS      int64  `json:"max_pause_ms,omitempty"`     // cutover, rollback
	NoWayBack       bool   `json:"no_way_back,omitempty"`      // cutover
	Rehearse        bool   `json:"rehearse,omitempty"`         // cutover: everything but the decision

	Verify VerifyRequest `json:"verify,omitzero"` // verify

	// What the person approved; a worker that finds something else refuses.
	ApprovedBy         string `json:"approved_by,omitempty"`
	Grant              string `json:"grant,omitempty"`
	Verification       string `json:"verification,omitempty"`
	VerificationDigest string `json:"verification_digest,omitempty"`
	PlacementEpoch     int64  `json:"placement_epoch,omitempty"`
}

// CommandError is what a worker writes into rehome_control.replication_commands.error.
type CommandError = Problem
