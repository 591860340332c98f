package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/notify"
	"github.com/rehomedb/rehome/tenant"
)

// webhookOperations registers webhooks and the settings of mails. Who adds a webhook makes this server send requests to an
// address of their choice, so it takes an administrator's key; one that is bound to databases may have webhooks for those.
func (s *Server) webhookOperations(a huma.API) {
	const get, post, put, patch, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete
	add(s, a, operation{method: get, path: "/v1/webhooks", name: "list-webhooks", summary: "Webhooks and how they fare", scope: scopeOperate}, s.listWebhooks)
	add(s, a, operation{method: post, path: "/v1/webhooks", name: "add-webhook", summary: "Send events to an address; the signing secret is in the answer, once", scope: scopeAdmin, status: http.StatusCreated}, s.addWebhook)
	add(s, a, operation{method: get, path: "/v1/webhooks/{id}", name: "get-webhook", summary: "One webhook", scope: scopeOperate}, s.getWebhook)
	add(s, a, operation{method: patch, path: "/v1/webhooks/{id}", name: "update-webhook", summary: "Enable or disable a webhook", scope: scopeAdmin}, s.updateWebhook)
	add(s, a, operation{method: del, path: "/v1/webhooks/{id}", name: "remove-webhook", summary: "Remove a webhook and its deliveries", scope: scopeAdmin}, s.removeWebhook)
	add(s, a, operation{method: post, path: "/v1/webhooks/{id}/test", name: "test-webhook", summary: "Send a signed test event now", scope: scopeAdmin}, s.testWebhook)
	add(s, a, operation{method: post, path: "/v1/webhooks/{id}/rotate-secret", name: "rotate-webhook-secret", summary: "Make a new signing secret; the former one signs too for a time", scope: scopeAdmin}, s.rotateWebhook)
	add(s, a, operation{method: get, path: "/v1/webhook-deliveries", name: "list-webhook-deliveries", summary: "Deliveries, newest first", scope: scopeOperate}, s.listDeliveries)
	add(s, a, operation{method: post, path: "/v1/webhook-deliveries/{id}/redeliver", name: "redeliver-webhook", summary: "Send an event again", scope: scopeAdmin}, s.redeliver)
	add(s, a, operation{method: get, path: "/v1/notifications", name: "list-notification-settings", summary: "What addresses are not told of by e-mail", scope: scopeOperate, whole: true}, s.listNotifications)
	add(s, a, operation{method: put, path: "/v1/notifications/{email}", name: "set-notification-settings", summary: "Set what an address is not told of by e-mail", scope: scopeRead}, s.setNotifications)
}

type webhookOutput struct{ Body api.Webhook }

type webhooksOutput struct{ Body []api.Webhook }

type webhookSecretOutput struct{ Body api.WebhookSecret }

type webhookInput struct {
	ID string `path:"id"`
}

type addWebhookInput struct{ Body api.WebhookRequest }

type updateWebhookInput struct {
	ID   string `path:"id"`
	Body api.WebhookUpdate
}

type rotateWebhookInput struct {
	ID   string             `path:"id"`
	Body *api.WebhookRotate `required:"false"`
}

type webhookTestOutput struct{ Body api.WebhookTest }

type deliveriesInput struct {
	Webhook string `query:"webhook" doc:"of this one only"`
	Limit   int    `query:"limit" minimum:"1" maximum:"1000" default:"50"`
}

type deliveriesOutput struct{ Body []api.WebhookDelivery }

type redeliverInput struct {
	ID int64 `path:"id"`
}

type deliveryOutput struct{ Body api.WebhookDelivery }

type notificationsOutput struct {
	Body []api.NotificationSettings
}

type notificationInput struct {
	Email string `path:"email"`
	Body  api.NotificationUpdate
}

type notificationOutput struct{ Body api.NotificationSettings }

// reach is what of the webhooks the asker may see.
func reach(ctx context.Context) notify.Scope {
	p := requestOf(ctx).principal
	if p == nil {
		return notify.Scope{""} // nothing; permit has refused already
	}
	return p.databases
}

func (s *Server) listWebhooks(ctx context.Context, _ *struct{}) (*webhooksOutput, error) {
	list, err := s.notifier.Webhooks(ctx, reach(ctx))
	return &webhooksOutput{Body: orEmpty(list)}, err
}

func (s *Server) addWebhook(ctx context.Context, in *addWebhookInput) (*webhookSecretOutput, error) {
	w, err := s.notifier.Add(ctx, reach(ctx), in.Body, requestOf(ctx).actor())
	if err != nil {
		return nil, err
	}
	about(ctx, w.ID)
	note(ctx, "url", w.URL)
	note(ctx, "events", w.Events)
	note(ctx, "databases", w.Databases)
	return &webhookSecretOutput{Body: w}, nil
}

func (s *Server) getWebhook(ctx context.Context, in *webhookInput) (*webhookOutput, error) {
	w, err := s.notifier.Webhook(ctx, reach(ctx), in.ID)
	return &webhookOutput{Body: w}, err
}

func (s *Server) updateWebhook(ctx context.Context, in *updateWebhookInput) (*webhookOutput, error) {
	about(ctx, in.ID)
	if in.Body.Enabled != nil {
		note(ctx, "enabled", *in.Body.Enabled)
	}
	w, err := s.notifier.Update(ctx, reach(ctx), in.ID, in.Body, requestOf(ctx).actor())
	return &webhookOutput{Body: w}, err
}

func (s *Server) removeWebhook(ctx context.Context, in *webhookInput) (*none, error) {
	about(ctx, in.ID)
	return nil, s.notifier.Remove(ctx, reach(ctx), in.ID)
}

func (s *Server) testWebhook(ctx context.Context, in *webhookInput) (*webhookTestOutput, error) {
	about(ctx, in.ID)
	t, err := s.notifier.SendTest(ctx, reach(ctx), in.ID)
	note(ctx, "status", t.Status)
	return &webhookTestOutput{Body: t}, err
}

func (s *Server) rotateWebhook(ctx context.Context, in *rotateWebhookInput) (*webhookSecretOutput, error) {
	about(ctx, in.ID)
	overlap := notify.Overlap
	if in.Body != nil && in.Body.OverlapSeconds != nil {
		overlap = time.Duration(*in.Body.OverlapSeconds) * time.Second
	}
	note(ctx, "overlap_seconds", int64(overlap.Seconds()))
	w, err := s.notifier.Rotate(ctx, reach(ctx), in.ID, overlap)
	return &webhookSecretOutput{Body: w}, err
}

func (s *Server) listDeliveries(ctx context.Context, in *deliveriesInput) (*deliveriesOutput, error) {
	list, err := s.notifier.Deliveries(ctx, reach(ctx), in.Webhook, in.Limit)
	return &deliveriesOutput{Body: orEmpty(list)}, err
}

func (s *Server) redeliver(ctx context.Context, in *redeliverInput) (*deliveryOutput, error) {
	d, err := s.notifier.Redeliver(ctx, reach(ctx), in.ID)
	about(ctx, d.Webhook)
	note(ctx, "delivery", in.ID)
	return &deliveryOutput{Body: d}, err
}

func (s *Server) listNotifications(ctx context.Context, _ *struct{}) (*notificationsOutput, error) {
	list, err := s.notifier.Settings(ctx)
	return &notificationsOutput{Body: orEmpty(list)}, err
}

// setNotifications is for an address itself, or for administrators: nobody silences somebody else's alarms.
func (s *Server) setNotifications(ctx context.Context, in *notificationInput) (*notificationOutput, error) {
	about(ctx, in.Email)
	p := requestOf(ctx).principal
	if p == nil || (!p.may(scopeAdmin) && !strings.EqualFold(p.actor, in.Email)) || (!p.unbound() && !strings.EqualFold(p.actor, in.Email)) {
		return nil, tenant.Errorf(tenant.KindUnauthorised, "not-your-address", "use a key of that address, or an administrator's", "this key is not of that address")
	}
	note(ctx, "muted", orEmpty(in.Body.Muted))
	out, err := s.notifier.Mute(ctx, in.Email, in.Body.Muted)
	return &notificationOutput{Body: out}, err
}

// auditNotifier writes what a server did by itself into the audit log.
func (s *Server) auditNotifier(ctx context.Context, e notify.AuditEntry) error {
	return s.audit(ctx, auditRow{actor: "server " + s.name, action: e.Action, object: e.Object, outcome: e.Outcome, detail: e.Detail})
}
