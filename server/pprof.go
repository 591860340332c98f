package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof" // adds its handlers to the default mux too, which nothing serves
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// pprofHeaderTimeout bounds how long a connection to the profiles may keep its request to itself.
const pprofHeaderTimeout = 10 * time.Second

// profiles serves /debug/pprof/ on a listener of its own: never on the public one. The zero value serves nothing.
type profiles struct{ listener net.Listener }

// listenForProfiles binds the address, which the settings have found to be one of this machine.
func listenForProfiles(ctx context.Context, addr string) (profiles, error) {
	if addr == "" {
		return profiles{}, nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return profiles{}, &tenant.Error{Kind: tenant.KindUnavailable, Code: "cannot-listen", Message: "cannot listen on " + addr, Hint: "set REHOME_PPROF to a free address", Err: err}
	}
	return profiles{listener: ln}, nil
}

// run serves until ctx ends. A profile that is being made then is cut off.
func (p profiles) run(ctx context.Context) error {
	if p.listener == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	// Not pprof.Cmdline: flags may hold secrets.
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: pprofHeaderTimeout, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = hs.Close() }) // what is left of it has nobody to read it
	defer stop()
	if err := hs.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve profiles: %w", err)
	}
	return nil
}

func (p profiles) close() error {
	if p.listener == nil {
		return nil
	}
	return p.listener.Close()
}
