package rest

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
)

// The headers by which a Git host vouches for its call: an HMAC of the body, or
// the secret itself.
const (
	hubSignature = "X-Hub-Signature-256" // GitHub, Gitea, Forgejo
	gitlabToken  = "X-Gitlab-Token"
)

// syncName is the name of the one record of how far the Git source has come.
const syncName = "git"

func syncRoutes() []Route {
	const path = "/v1/policy/sync"
	return []Route{
		{Method: http.MethodPost, Path: path, ID: "syncPolicy", Summary: "Pull policies from Git now, and tell how it ended; a signed webhook gets 202 and does not wait",
			Action: policy.Manage, Kind: "policy", Webhook: true, Status: 200, Answer: Sync{}, Refusals: []fault.Code{fault.NotFound, fault.RateLimited}, handle: syncPolicy},
		{Method: http.MethodGet, Path: path, ID: "getSync", Summary: "Tell how far the Git source of policies has come",
			Action: policy.Read, Kind: "policy", Status: 200, Reads: true, Answer: Sync{}, Refusals: []fault.Code{fault.NotFound}, handle: getSync},
	}
}

// Sync tells how far the Git source of policies has come.
type Sync struct {
	Source   policy.Source `json:"source"`                   // its commit is the last accepted one
	Revision uint64        `json:"policy_revision,omitzero"` // made of that commit
	Refused  *SyncRefusal  `json:"refused,omitzero"`         // of the newest commit, if it was
	Outcome  string        `json:"outcome,omitempty"`
	History  []SyncEvent   `json:"history,omitempty"` // the newest last
}

// SyncRefusal says why the newest commit was not accepted.
type SyncRefusal struct {
	Commit  string `json:"commit"`
	Outcome string `json:"outcome"`
	Message string `json:"message"`
}

// SyncEvent is one step of a pull, or its failure.
type SyncEvent struct {
	At      time.Time `json:"at"`
	Commit  string    `json:"commit,omitempty"`
	Step    string    `json:"step"`
	Message string    `json:"message,omitempty"`
}

// fromWebhook says whether a Git host calls, with a signature in the place of
// a credential. It is verified where the body is read.
func fromWebhook(h http.Header) bool { return h[hubSignature] != nil || h[gitlabToken] != nil }

// syncPolicy has the leader pull.
func syncPolicy(c *call) error {
	if fromWebhook(c.R.Header) {
		if !c.api.webhooks.Allow() {
			return fault.New(fault.RateLimited, "webhooks call more often than a pull is worth; policies are pulled on their interval, too")
		}
		if err := c.verifyWebhook(); err != nil {
			return err
		}
		if _, err := c.api.backend.SyncPolicy(c.context(), false); err != nil {
			return err
		}
		c.WriteHeader(http.StatusAccepted)
		return nil
	}
	if err := c.hops(); err != nil {
		return err
	}
	status, err := c.api.backend.SyncPolicy(c.context(), true)
	if err != nil {
		return err
	}
	c.send(http.StatusOK, mediaJSON, status)
	return nil
}

// verifyWebhook believes who knows the secret.
func (c *call) verifyWebhook() error {
	secret := c.api.opt.WebhookSecret
	if len(secret) == 0 {
		return fault.New(fault.Unauthenticated, "no webhook is believed here; set policy.git.webhook_secret_file on every node")
	}
	body, err := c.read(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	if values := c.R.Header[hubSignature]; len(values) == 1 {
		sum := hmac.New(sha256.New, secret)
		sum.Write(body)
		given, err := hex.DecodeString(strings.TrimPrefix(values[0], "sha256="))
		if err == nil && hmac.Equal(given, sum.Sum(nil)) {
			return nil
		}
	} else if values := c.R.Header[gitlabToken]; c.R.Header[hubSignature] == nil && len(values) == 1 {
		if subtle.ConstantTimeCompare([]byte(values[0]), secret) == 1 {
			return nil
		}
	}
	return fault.New(fault.Unauthenticated, "the webhook is not signed with the secret in policy.git.webhook_secret_file")
}

func getSync(c *call) error {
	if err := c.view(nil); err != nil {
		return err
	}
	r, ok := c.State.Settings.Get(setting.Sync, "", syncName)
	if !ok {
		return fault.New(fault.NotFound, "no policies were taken from Git yet; policy.git in the configuration says from where")
	}
	return c.tagged(r.Revision, mediaJSON, r.Spec)
}
