package natspub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/rehomedb/rehome/progress"
)

// drainLock is the advisory lock of who drains: "rehome" and a number, in hexadecimal.
const drainLock = int64(0x7265686f6d650001)

// headerRoom is what a message's headers may take of the server's limit, in bytes.
const headerRoom = 1 << 10

// drainer publishes over one connection to NATS.
type drainer struct {
	p    *Publisher
	js   jetstream.JetStream
	last uint64 // the JetStream sequence of the last acknowledged message; 0: nothing published yet
	mark func(context.Context, progress.DB, []int64) error
}

// run holds a connection of the control database, becomes the one that drains, and drains until something fails. It
// calls healthy when JetStream has answered.
func (d *drainer) run(ctx context.Context, healthy func()) error {
	if d.mark == nil {
		d.mark = d.p.cfg.Log.MarkPublished
	}
	if err := d.ensureStream(ctx); err != nil {
		return err
	}
	d.p.good.Store(true)
	healthy()
	// A connection of its own, beside the pool: it is held for ever, and its end must release the lock.
	conn, err := pgx.ConnectConfig(ctx, d.p.cfg.Pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to the control database: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // an abrupt end releases the lock as well
	}()
	if err := d.becomeDrainer(ctx, conn); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "LISTEN "+progress.Channel); err != nil {
		return fmt.Errorf("listen for events: %w", err)
	}
	if err := d.refillIfNeeded(ctx, conn); err != nil {
		return err
	}
	for {
		n, err := d.drain(ctx, conn)
		if err != nil {
			return err
		}
		if n == batch {
			continue
		}
		if err := idle(ctx, conn); err != nil {
			return err
		}
		if !d.js.Conn().IsConnected() {
			return nats.ErrDisconnected
		}
	}
}

// becomeDrainer waits until no other server of the installation drains.
func (d *drainer) becomeDrainer(ctx context.Context, conn *pgx.Conn) error {
	for {
		var mine bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, drainLock).Scan(&mine); err != nil {
			return fmt.Errorf("lock the outbox: %w", err)
		}
		if mine {
			return nil
		}
		if !d.js.Conn().IsConnected() {
			return nats.ErrDisconnected
		}
		wait(ctx, followerPoll)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// ensureStream makes the stream if there is none. One that is there is left as its owner set it.
func (d *drainer) ensureStream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err := d.js.Stream(ctx, StreamName)
	if err == nil {
		return nil
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("look for the JetStream stream %s: %w", StreamName, err)
	}
	conf := jetstream.StreamConfig{
		Name: StreamName, Description: "Events of Rehome: CloudEvents 1.0; the outbox in the control database is the truth",
		Subjects: []string{Subjects}, Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		MaxAge: keepFor, Duplicates: dedupWindow, AllowDirect: true,
	}
	if len(d.p.servers) == 0 {
		conf.MaxBytes = embeddedBytes
	}
	if _, err := d.js.CreateStream(ctx, conf); err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return fmt.Errorf("make the JetStream stream %s: %w", StreamName, err)
	}
	return nil
}

// refillIfNeeded publishes the last hour's events again if the server may not have them: when this publisher begins, and
// when the stream is shorter than it was.
func (d *drainer) refillIfNeeded(ctx context.Context, db progress.DB) error {
	infoCtx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	stream, err := d.js.Stream(infoCtx, StreamName)
	if err != nil {
		return fmt.Errorf("look at the JetStream stream %s: %w", StreamName, err)
	}
	info := stream.CachedInfo()
	if d.last != 0 && info.State.LastSeq >= d.last {
		return nil
	}
	d.last = 0
	within := min(refillWindow, info.Config.Duplicates/2) // an owner's stream may recognise duplicates for less
	after := int64(0)
	for {
		events, err := d.p.cfg.Log.Published(ctx, db, within, after, 0)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := d.send(ctx, e.Event); err != nil {
				return err
			}
			after = e.ID
		}
		if len(events) < progress.MaxLimit {
			d.last = max(d.last, 1) // begun: from now on only a shorter stream is refilled
			return nil
		}
	}
}

// drain publishes a batch, in order, and marks what was acknowledged, also if a later one failed.
func (d *drainer) drain(ctx context.Context, db progress.DB) (int, error) {
	events, err := d.p.cfg.Log.Unpublished(ctx, db, batch)
	if err != nil {
		return 0, err
	}
	var sent []int64
	var failed error
	for _, e := range events {
		if failed = d.send(ctx, e.Event); failed != nil {
			break
		}
		sent = append(sent, e.ID)
	}
	if err := d.mark(ctx, db, sent); err != nil {
		return 0, errors.Join(failed, err)
	}
	return len(sent), failed
}

// send publishes one event and waits for the acknowledgement. One that JetStream has already is acknowledged too.
func (d *drainer) send(ctx context.Context, e progress.Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("marshal event %s: %w", e.ID, err)
	}
	if limit := d.js.Conn().MaxPayload() - headerRoom; int64(len(body)) > limit { // or it would stop all that follow
		d.p.cfg.Logger.WarnContext(ctx, "event is too large for the message server and goes without its data", "event_id", e.ID, "bytes", len(body), "limit", limit)
		e.Data = json.RawMessage(`{"omitted":"too large for the message server; the API has it"}`)
		if body, err = json.Marshal(e); err != nil {
			return fmt.Errorf("marshal event %s: %w", e.ID, err)
		}
	}
	msg := nats.NewMsg(e.Subject)
	msg.Data = body
	msg.Header.Set("Content-Type", "application/cloudevents+json")
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	ack, err := d.js.PublishMsg(ctx, msg, jetstream.WithMsgID(e.ID), jetstream.WithExpectStream(StreamName))
	if err != nil {
		return fmt.Errorf("publish event %d of stream %s: %w", e.Sequence, e.Stream, err)
	}
	d.last = max(d.last, ack.Sequence)
	return nil
}

// idle waits for a notification, at most idlePoll.
func idle(ctx context.Context, conn *pgx.Conn) error {
	waitCtx, cancel := context.WithTimeout(ctx, idlePoll)
	defer cancel()
	_, err := conn.WaitForNotification(waitCtx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case waitCtx.Err() != nil:
		return nil
	}
	return fmt.Errorf("wait for events: %w", err)
}
