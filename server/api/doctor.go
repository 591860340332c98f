package api

import (
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// Doctor is what a comparison of the control database with reality found.
type Doctor struct {
	At       time.Time        `json:"at"`
	OK       bool             `json:"ok"`       // nothing was found, or nothing is left
	Findings []tenant.Finding `json:"findings"` // after a fix: what is left
	Repairs  []Repair         `json:"repairs,omitempty"`
}

// Repair is one finding that a fix worked on.
type Repair struct {
	Code   string `json:"code"`
	Object string `json:"object,omitempty"`
	Done   bool   `json:"done"` // it is not found any more
	Error  string `json:"error,omitempty"`
}
