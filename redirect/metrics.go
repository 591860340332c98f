package redirect

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a gateway. None has a label per database: their number is not bounded.
type metrics struct {
	requests       *prometheus.CounterVec
	bytes          *prometheus.CounterVec
	heldTime       prometheus.Histogram
	heldRefused    prometheus.Counter
	heldDropped    prometheus.Counter
	socketsSlow    prometheus.Counter
	upstreamErrors prometheus.Counter
	reloadErrors   prometheus.Counter
	flushErrors    prometheus.Counter
	reloaded       prometheus.Gauge
	held           prometheus.GaugeFunc
	sockets        prometheus.GaugeFunc
	routes         prometheus.GaugeFunc
}

func newMetrics(g *Gateway) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "rehome", Subsystem: "gateway", Name: name, Help: help})
	}
	gauge := func(name, help string, f func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "rehome", Subsystem: "gateway", Name: name, Help: help}, f)
	}
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "rehome", Subsystem: "gateway", Name: "requests_total", Help: "Requests and upgrades, by protocol and by what they got.",
		}, []string{"protocol", "outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "rehome", Subsystem: "gateway", Name: "bytes_total", Help: "Bytes sent to clients, for WebSockets in both directions.",
		}, []string{"protocol"}),
		heldTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "rehome", Subsystem: "gateway", Name: "held_seconds", Help: "How long held requests waited.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		heldRefused:    counter("held_refused_total", "Requests refused because too many waited."),
		heldDropped:    counter("held_dropped_total", "Held requests whose client went away; they were not forwarded."),
		socketsSlow:    counter("slow_websockets_total", "WebSockets closed because a side took nothing for too long."),
		upstreamErrors: counter("upstream_errors_total", "Requests whose upstream did not answer."),
		reloadErrors:   counter("route_reload_errors_total", "Routes could not be read; the last ones stayed in force."),
		flushErrors:    counter("stats_flush_errors_total", "Statistics could not be written; they were kept for the next time."),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "rehome", Subsystem: "gateway", Name: "routes_reloaded_timestamp_seconds", Help: "When routes were last read.",
		}),
		held:    gauge("held_requests", "Requests that wait now.", func() float64 { return float64(g.holds.held()) }),
		sockets: gauge("websockets_open", "WebSockets open now.", func() float64 { return float64(g.sockets.len()) }),
		routes: gauge("routes", "Databases and tombstones known.", func() float64 {
			if t := g.routes.Load(); t != nil {
				return float64(len(t.routes))
			}
			return 0
		}),
	}
}

// Collectors are the gateway's metrics, to be registered by the server.
func (g *Gateway) Collectors() []prometheus.Collector {
	m := g.metrics
	return []prometheus.Collector{
		m.requests, m.bytes, m.heldTime, m.heldRefused, m.heldDropped, m.socketsSlow, m.upstreamErrors,
		m.reloadErrors, m.flushErrors, m.reloaded, m.held, m.sockets, m.routes,
	}
}
