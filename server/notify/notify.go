package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/progress"
)

// Config is what a Notifier needs. All but Options, Audit, Now and Logger are required.
type Config struct {
	Pool         *pgxpool.Pool
	Seal         *seal.Box
	Log          *progress.Log
	Installation string // its id
	BaseURL      string
	Version      string // in the User-Agent
	Server       string // this server's name, in the audit log
	Channel      func(context.Context) (otp.Channel, error)
	Audit        func(ctx context.Context, e AuditEntry) error
	Networks     string // NetworksAny or NetworksPublic
	Now          func() time.Time
	Logger       *slog.Logger
	Options      Options
}

// Options change how things are sent; tests make them short.
type Options struct {
	Webhooks Policy        // zero: over a day and a half
	Mails    Policy        // zero: over two thirds of a day
	Timeout  time.Duration // of one try, from the dialling to the answer; zero: DefaultTimeout
	TLS      *tls.Config   // nil: the system's roots
	Poll     time.Duration // how late a try is made whose time has come; zero: webhookPoll
	Rescue   time.Duration // when a job of a server that died is taken over; zero: RescueAfter
}

// AuditEntry is something that a server did by itself.
type AuditEntry struct {
	Action, Object, Outcome string
	Detail                  map[string]any
}

// Notifier tells webhooks and people what happened. It is safe for concurrent use.
type Notifier struct {
	cfg    Config
	sender *sender
	jobs   *river.Client[pgx.Tx]
	wake   chan struct{} // buffered: the webhooks have changed here

	mu   sync.Mutex
	seen int64 // events up to this id are no news, or told

	queues map[string]struct{} // owned by keepQueues
}

// RescueAfter is when a job counts as left by a server that died: longer than any try may take, short enough that a
// receiver hears of it while it matters.
const RescueAfter = 2 * time.Minute

const (
	mailQueue = "mails"
	// mailWorkers is enough: mails are few.
	mailWorkers = 2
	// webhookWorkers bounds how many requests one server sends to one webhook at a time.
	webhookWorkers = 2
	// webhookPoll is how late a try is made whose time has come; each webhook's queue asks that often. New deliveries are
	// announced, and do not wait for it.
	webhookPoll = 2 * time.Second
	// queuesEvery is how late a webhook that another server added is worked for.
	queuesEvery = 2 * time.Second
	// removeQueue bounds the wait for the tries of a webhook that was removed.
	removeQueue = DefaultTimeout + 5*time.Second
)

// New makes a Notifier. Give its workers and queues to a River client, and that client to Use, before Run.
func New(cfg Config) *Notifier {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = func(context.Context, AuditEntry) error { return nil }
	}
	if cfg.Options.Webhooks.Tries == 0 {
		cfg.Options.Webhooks = webhookPolicy()
	}
	if cfg.Options.Mails.Tries == 0 {
		cfg.Options.Mails = mailPolicy()
	}
	if cfg.Options.Timeout == 0 {
		cfg.Options.Timeout = DefaultTimeout
	}
	if cfg.Options.Poll == 0 {
		cfg.Options.Poll = webhookPoll
	}
	if cfg.Options.Rescue == 0 {
		cfg.Options.Rescue = RescueAfter
	}
	return &Notifier{cfg: cfg, sender: newSender(cfg), wake: make(chan struct{}, 1), queues: map[string]struct{}{}}
}

// AddWorkers registers what works on the jobs.
func (n *Notifier) AddWorkers(w *river.Workers) {
	river.AddWorker(w, &deliveryWorker{n: n})
	river.AddWorker(w, &mailWorker{n: n})
}

// Queues are those that are there from the start.
func (n *Notifier) Queues() map[string]river.QueueConfig {
	return map[string]river.QueueConfig{mailQueue: {MaxWorkers: mailWorkers}}
}

// Rescue is when River may take a running job over.
func (n *Notifier) Rescue() time.Duration { return n.cfg.Options.Rescue }

// Use gives the client that inserts and works on jobs.
func (n *Notifier) Use(c *river.Client[pgx.Tx]) { n.jobs = c }

// Run looks for news and keeps a queue for each webhook, until ctx ends; it returns nil then.
func (n *Notifier) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.cfg.Log.Follow(ctx, func() (int, error) { return n.step(ctx) }) })
	g.Go(func() error { return n.keepQueues(ctx) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func queueOf(webhook string) string { return "webhook_" + webhook }

// changed lets keepQueues look at once.
func (n *Notifier) changed() {
	select {
	case n.wake <- struct{}{}:
	default: // it will look
	}
}

// keepQueues works for the webhooks that there are, whichever server they were added at.
func (n *Notifier) keepQueues(ctx context.Context) error {
	tick := time.NewTicker(queuesEvery)
	defer tick.Stop()
	for {
		if err := n.syncQueues(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Logger.WarnContext(ctx, "keep the webhooks' queues", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-tick.C:
		}
	}
}

func (n *Notifier) syncQueues(ctx context.Context) error {
	rows, err := n.cfg.Pool.Query(ctx, `SELECT id FROM rehome_control.webhooks`)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	want := map[string]struct{}{}
	var all error
	for _, id := range ids {
		name := queueOf(id)
		want[name] = struct{}{}
		if _, ok := n.queues[name]; ok {
			continue
		}
		err := n.jobs.Queues().Add(name, river.QueueConfig{MaxWorkers: webhookWorkers, FetchPollInterval: n.cfg.Options.Poll})
		if _, twice := errors.AsType[*river.QueueAlreadyAddedError](err); err != nil && !twice {
			all = errors.Join(all, err)
			continue
		}
		n.queues[name] = struct{}{}
	}
	for name := range n.queues {
		if _, ok := want[name]; ok {
			continue
		}
		rctx, cancel := context.WithTimeout(ctx, removeQueue)
		err := n.jobs.Queues().Remove(rctx, name)
		cancel()
		if _, gone := errors.AsType[*river.QueueNotFoundError](err); err != nil && !gone {
			all = errors.Join(all, err)
			continue
		}
		delete(n.queues, name)
	}
	return all
}
