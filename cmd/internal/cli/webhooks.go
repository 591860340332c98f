package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehomedb/rehome/cmd/internal/output"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// exitTestFailed: a receiver that does not take a test event is out of reach, as the server sees it.
const exitTestFailed = tenant.KindUnavailable

func newWebhooksCommand(a *App) *cobra.Command {
	parent := &cobra.Command{
		Use: "webhooks", Short: "Send what happens to programs of yours: signed HTTP requests",
		Long: "Webhooks after the Standard Webhooks specification: a signed POST of the CloudEvents object that `rehome events` shows, tried\n" +
			"again for a day and a half. Without a further word it lists them.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runWebhooks(cmd.Context(), a) },
	}
	list := &cobra.Command{
		Use: "list", Short: "List the webhooks and how they fare", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runWebhooks(cmd.Context(), a) },
	}
	test := &cobra.Command{
		Use: "test ID", Short: "Send a signed test event now, and show the answer", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error { return runTestWebhook(cmd.Context(), a, args[0]) },
	}
	enable := &cobra.Command{
		Use: "enable ID", Short: "Send to a webhook again that was disabled", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEnableWebhook(cmd.Context(), a, args[0], true)
		},
	}
	disable := &cobra.Command{
		Use: "disable ID", Short: "Send nothing until it is enabled; what happens meanwhile is not kept for it", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEnableWebhook(cmd.Context(), a, args[0], false)
		},
	}
	redeliver := &cobra.Command{
		Use: "redeliver DELIVERY", Short: "Send an event again, with the webhook-id that it had", Args: exactArgs("DELIVERY"),
		RunE: func(cmd *cobra.Command, args []string) error { return runRedeliver(cmd.Context(), a, args[0]) },
	}
	parent.AddCommand(newAddWebhookCommand(a), list, newRemoveWebhookCommand(a), test, newRotateWebhookCommand(a), newDeliveriesCommand(a), redeliver, enable, disable)
	return parent
}

func newAddWebhookCommand(a *App) *cobra.Command {
	var o api.WebhookRequest
	cmd := &cobra.Command{
		Use: "add [URL]", Short: "Add a webhook; its signing secret is shown once",
		Long: "Add a webhook. Write - for the URL to read it from stdin, or leave it out and set REHOME_WEBHOOK_URL, if its path is a secret.\n" +
			"Without --events it gets all of: in-sync, verification-failed, cutover-done, cutover-taken-back, rolled-back,\n" +
			"rollback-taken-back, slot-in-danger, way-back-broken, replication-paused, alarm, completed, cancelled, delete-confirmed.",
		Example: "  rehome webhooks add https://ops.example/hooks/rehome --events cutover-done,rolled-back,slot-in-danger\n  rehome webhooks add http://127.0.0.1:9000/ --db acme",
		Args:    rangeArgs(0, "URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.URL = args[0]
			}
			return runAddWebhook(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Events, "events", nil, "only these (default all)")
	f.StringSliceVar(&o.Databases, "db", nil, "of these databases only (default all)")
	f.StringVar(&o.Description, "description", "", "what it is for, shown in the list")
	f.BoolVar(&o.Insecure, "insecure", false, "accept http:// to another machine")
	return cmd
}

func runAddWebhook(ctx context.Context, a *App, o api.WebhookRequest) error {
	var err error
	if o.URL, err = a.secretArgument(ctx, o.URL, "REHOME_WEBHOOK_URL", "the webhook's URL"); err != nil {
		return err
	}
	for i, db := range o.Databases {
		if u, err := tenant.ParseDatabaseURL(db); err == nil {
			o.Databases[i] = u.Name
		}
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	w, err := c.AddWebhook(ctx, o)
	if err != nil {
		return err
	}
	return a.Print.Answer(w, func() { a.webhookSecretText(w, "webhook "+w.ID+" added: "+w.URL) })
}

func (a *App) webhookSecretText(w api.WebhookSecret, what string) {
	a.Print.Textf("%s", what)
	a.Print.Textf("secret: %s", w.Secret)
	a.Print.Notef("the secret is not shown again; the receiver checks the signature with it. Try it: rehome webhooks test %s", w.ID)
}

func runWebhooks(ctx context.Context, a *App) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	hooks, err := c.Webhooks(ctx)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(hooks), func() {
		rows := make([][]string, len(hooks))
		for i, w := range hooks {
			state := a.Print.Paint(output.Green, "on")
			switch {
			case !w.Enabled:
				state = a.Print.Paint(output.Red, "off: "+w.DisabledReason)
			case w.Pending > 0 && w.LastError != "":
				state = a.Print.Paint(output.Yellow, "failing: "+beginning(w.LastError, 50))
			}
			rows[i] = []string{w.ID, w.URL, anyOf(w.Events), anyOf(w.Databases), state, strconv.Itoa(w.Pending), strconv.Itoa(w.Dead), output.Ago(w.LastAt, a.Now()), w.Description}
		}
		a.Print.Table([]string{"webhook", "url", "events", "databases", "state", ">pending", ">dead", "last try", "description"}, rows)
	})
}

// beginning is what a table has room for.
func beginning(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func anyOf(s []string) string {
	if len(s) == 0 {
		return "all"
	}
	return strings.Join(s, " ")
}

func newRemoveWebhookCommand(a *App) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "remove ID", Short: "Remove a webhook and its deliveries", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRemoveWebhook(cmd.Context(), a, args[0], yes)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func runRemoveWebhook(ctx context.Context, a *App, id string, yes bool) error {
	if err := a.confirm(ctx, yes, "Remove webhook %s?", id); err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if err := c.RemoveWebhook(ctx, id); err != nil {
		return err
	}
	return a.Print.Answer(done{Done: "webhook-removed", Name: id}, func() { a.Print.Textf("webhook %s removed", id) })
}

func runTestWebhook(ctx context.Context, a *App, id string) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	t, err := c.TestWebhook(ctx, id)
	if err != nil {
		return err
	}
	if err := a.Print.Answer(t, func() {
		if t.Status != 0 {
			a.Print.Textf("the receiver answered %d in %s", t.Status, output.Millis(t.Millis))
		}
		if t.Answer != "" {
			a.Print.Textf("%s", t.Answer)
		}
	}); err != nil || t.OK {
		return err
	}
	return tenant.Errorf(exitTestFailed, "webhook-test-failed", "the server sends from where it runs: look at the URL, its certificate, and firewalls between them", "the test event was not taken: %s", t.Error)
}

func runEnableWebhook(ctx context.Context, a *App, id string, on bool) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	w, err := c.UpdateWebhook(ctx, id, api.WebhookUpdate{Enabled: &on})
	if err != nil {
		return err
	}
	return a.Print.Answer(w, func() {
		a.Print.Textf("webhook %s is %s", w.ID, map[bool]string{true: "enabled", false: "disabled"}[w.Enabled])
	})
}

func newRotateWebhookCommand(a *App) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use: "rotate-secret ID", Short: "Make a new signing secret; the former one signs too until --overlap is over", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRotateWebhook(cmd.Context(), a, args[0], overlap)
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long both sign; 0: the former one counts no more")
	return cmd
}

func runRotateWebhook(ctx context.Context, a *App, id string, overlap time.Duration) error {
	if overlap < 0 {
		return usage("bad-overlap", "write a duration such as 24h", "--overlap is negative")
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	seconds := int64(overlap.Seconds())
	w, err := c.RotateWebhook(ctx, id, api.WebhookRotate{OverlapSeconds: &seconds})
	if err != nil {
		return err
	}
	what := "webhook " + w.ID + " has a new secret; the former one counts no more"
	if w.FormerUntil != nil {
		what = fmt.Sprintf("webhook %s has a new secret; the former one signs too until %s", w.ID, output.When(*w.FormerUntil))
	}
	return a.Print.Answer(w, func() { a.webhookSecretText(w, what) })
}

func newDeliveriesCommand(a *App) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "deliveries [ID]", Short: "Show the last deliveries: answers, tries, and when the next one is", Args: rangeArgs(0, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return runDeliveries(cmd.Context(), a, id, limit)
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "at most so many")
	return cmd
}

func runDeliveries(ctx context.Context, a *App, id string, limit int) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	all, err := c.WebhookDeliveries(ctx, id, limit)
	if err != nil {
		return err
	}
	return a.Print.Answer(list(all), func() {
		rows := make([][]string, len(all))
		for i, d := range all {
			rows[i] = a.deliveryRow(d)
		}
		a.Print.Table([]string{">delivery", "webhook", "event", "database", "state", ">tries", "answer", "at", "next try"}, rows)
	})
}

func (a *App) deliveryRow(d api.WebhookDelivery) []string {
	state := d.State
	switch d.State {
	case "delivered":
		state = a.Print.Paint(output.Green, state)
	case "dead":
		state = a.Print.Paint(output.Red, state)
	}
	reply := d.Error
	if reply == "" && d.Status != nil {
		reply = strconv.Itoa(*d.Status)
	}
	next := ""
	if d.NextAt != nil {
		next = output.When(*d.NextAt)
	}
	return []string{strconv.FormatInt(d.ID, 10), d.Webhook, d.Event, d.Database, state, strconv.Itoa(d.Attempts), beginning(reply, 60), output.When(d.CreatedAt), next}
}

func runRedeliver(ctx context.Context, a *App, delivery string) error {
	id, err := strconv.ParseInt(delivery, 10, 64)
	if err != nil || id <= 0 {
		return usage("bad-delivery", "see rehome webhooks deliveries", "a delivery has a number")
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	d, err := c.Redeliver(ctx, id)
	if err != nil {
		return err
	}
	return a.Print.Answer(d, func() {
		a.Print.Textf("delivery %d of %s to webhook %s is sent again; see: rehome webhooks deliveries %s", d.ID, d.Event, d.Webhook, d.Webhook)
	})
}

type notificationOptions struct {
	mute []string
	all  bool
}

func newNotificationsCommand(a *App) *cobra.Command {
	var o notificationOptions
	cmd := &cobra.Command{
		Use: "notifications [EMAIL]", Short: "Show or change what an address is told of by e-mail",
		Long: "A database's owner (else the installation's administrator) and who approved its move are told by e-mail of: in-sync,\n" +
			"verification-failed, cutover-done, rolled-back, slot-in-danger, way-back-broken, replication-paused, alarm, delete-confirmed.\n" +
			"Codes are sent whatever is set here.",
		Example: "  rehome notifications me@own.example --mute in-sync,alarm\n  rehome notifications me@own.example --mute all\n  rehome notifications me@own.example --unmute",
		Args:    rangeArgs(0, "EMAIL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNotifications(cmd.Context(), a, args, o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.mute, "mute", nil, "tell it nothing of these, and of all else; all: of nothing")
	f.BoolVar(&o.all, "unmute", false, "tell it of everything")
	return cmd
}

func runNotifications(ctx context.Context, a *App, args []string, o notificationOptions) error {
	change := len(o.mute) > 0 || o.all
	switch {
	case change && len(args) == 0:
		return usage("missing-argument", "usage: rehome notifications EMAIL --mute EVENT,…", "whose address is missing")
	case len(o.mute) > 0 && o.all:
		return usage("notification-flags", "say one of them", "--mute does not go with --unmute")
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	if change {
		s, err := c.SetNotifications(ctx, args[0], list(o.mute))
		if err != nil {
			return err
		}
		return a.Print.Answer(s, func() {
			if len(s.Muted) == 0 {
				a.Print.Textf("%s is told of everything", s.Email)
				return
			}
			a.Print.Textf("%s is not told of: %s", s.Email, strings.Join(s.Muted, " "))
		})
	}
	all, err := c.Notifications(ctx)
	if err != nil {
		return err
	}
	shown := []api.NotificationSettings{}
	for _, s := range all {
		if len(args) == 0 || strings.EqualFold(s.Email, args[0]) {
			shown = append(shown, s)
		}
	}
	return a.Print.Answer(shown, func() {
		rows := make([][]string, len(shown))
		for i, s := range shown {
			rows[i] = []string{s.Email, strings.Join(s.Muted, " ")}
		}
		a.Print.Table([]string{"email", "not told of"}, rows)
		if len(args) > 0 && len(shown) == 0 {
			a.Print.Notef("%s is told of everything", args[0])
		}
	})
}
