package api

// VerifyRequest says how to compare. It belongs to the command verify.
type VerifyRequest struct {
	MaxDurationMS int64 `json:"max_duration_ms,omitempty" minimum:"0" doc:"verify: give up after so many milliseconds; what was found equal is kept for resume. 0: no bound"`
	RestMS        int64 `json:"rest_ms,omitempty" minimum:"0" doc:"verify: each session rests so many milliseconds after each table or part"`
	Jobs          int   `json:"jobs,omitempty" minimum:"0" maximum:"64" doc:"verify: tables at the same time"`
	Resume        bool  `json:"resume,omitempty" doc:"verify: go on with the last one that was not finished, with what it did not find equal yet"`
	Repair        bool  `json:"repair,omitempty" doc:"verify: copy rows that differ again, through the stream, until both sides are equal"`
	Continuous    bool  `json:"continuous,omitempty" doc:"verify: compare again and again, until it is stopped or the replication is completed"`
	EveryMS       int64 `json:"every_ms,omitempty" minimum:"0" doc:"verify, continuous: so long after the last one; default 300000"`
	Stop          bool  `json:"stop,omitempty" doc:"verify: end the continuous mode"`
}

// VerifyPolicy is how verifications go on by themselves, as it is stored with the replication.
type VerifyPolicy struct {
	EveryMS       int64 `json:"every_ms"`
	MaxDurationMS int64 `json:"max_duration_ms,omitempty"`
	RestMS        int64 `json:"rest_ms,omitempty"`
	Jobs          int   `json:"jobs,omitempty"`
}

// VerifyModeResult answers a request to begin or end the continuous mode.
type VerifyModeResult struct {
	Continuous bool          `json:"continuous"`
	Policy     *VerifyPolicy `json:"policy,omitempty"`
}
