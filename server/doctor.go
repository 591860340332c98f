package server

import (
	"context"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/server/doctor"
)

// doctorTimeout bounds an examination: below the five minutes that the command line waits for an answer.
const doctorTimeout = 2 * time.Minute

// doctorFixTimeout bounds one with repairs. What is not done then is found again by the next.
const doctorFixTimeout = 4 * time.Minute

type doctorOutput struct{ Body api.Doctor }

func (s *Server) newDoctor() *doctor.Doctor {
	return doctor.New(doctor.Config{
		Pool: s.pool, Seal: s.box, Catalogue: s.catalogue, Gateway: s.gateway, BaseURL: s.installation.BaseURL, Tombstone: s.cfg.Tombstone,
		Signer: cutover.Signer{Installation: s.installation.ID, Key: s.installation.PrivateKey}, Now: s.cfg.Now, Logger: s.log,
		Channel: func(ctx context.Context) (string, error) {
			ch, err := s.channel(ctx)
			if err != nil {
				return "", err
			}
			return ch.String(), nil
		},
	})
}

// examine compares the control database with what is there; nothing changes.
func (s *Server) examine(ctx context.Context, _ *struct{}) (*doctorOutput, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, doctorTimeout, tookTooLong("the examination", doctorTimeout))
	defer cancel()
	r, err := s.newDoctor().Examine(ctx)
	if err != nil {
		return nil, ownTime(ctx, err)
	}
	return &doctorOutput{Body: r}, nil
}

// repair performs the repairs that are safe.
func (s *Server) repair(ctx context.Context, _ *struct{}) (*doctorOutput, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, doctorFixTimeout, tookTooLong("the repair", doctorFixTimeout))
	defer cancel()
	r, err := s.newDoctor().Fix(ctx)
	if err != nil {
		return nil, ownTime(ctx, err)
	}
	note(ctx, "repairs", r.Repairs)
	note(ctx, "left", len(r.Findings))
	return &doctorOutput{Body: r}, nil
}
