package server

import (
	"context"

	"github.com/rehomedb/rehome/progress"
)

type domainInput struct {
	Name   string `path:"name"`
	Domain string `path:"domain"`
}

// addDomain makes a database known under a domain. That the domain's DNS leads here, and that something in front ends its
// TLS, is the operator's to see to; so only the operator may do it: another's domain would catch another's clients.
func (s *Server) addDomain(ctx context.Context, in *domainInput) (*databaseOutput, error) {
	domain, err := s.gateway.AddDomain(ctx, in.Name, in.Domain)
	if err != nil {
		return nil, err
	}
	note(ctx, "domain", domain)
	s.tell(ctx, progress.Entry{Database: in.Name, Kind: "database", ID: in.Name, Event: "domain-added", Data: map[string]any{"name": in.Name, "domain": domain}})
	return s.getDatabase(ctx, &namedInput{Name: in.Name})
}

func (s *Server) removeDomain(ctx context.Context, in *domainInput) (*databaseOutput, error) {
	note(ctx, "domain", in.Domain)
	if err := s.gateway.RemoveDomain(ctx, in.Name, in.Domain); err != nil {
		return nil, err
	}
	s.tell(ctx, progress.Entry{Database: in.Name, Kind: "database", ID: in.Name, Event: "domain-removed", Data: map[string]any{"name": in.Name, "domain": in.Domain}})
	return s.getDatabase(ctx, &namedInput{Name: in.Name})
}
