package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// watchBlocking has watchers that ask again and again, each time for what is
// newer than what they have: 100 share a connection.
func (m *muster) watchBlocking(ctx context.Context, b *board) error {
	const each, callers = 100, 20 // one caller may have 1 000
	var tokens []string
	for range callers {
		token, err := m.token(ctx)
		if err != nil {
			return err
		}
		tokens = append(tokens, token)
	}
	var opening sync.WaitGroup
	for g := range watchers / each {
		token := tokens[g%callers]
		t := &http.Transport{TLSClientConfig: m.tls.Clone(), DisableCompression: true, ForceAttemptHTTP2: true}
		context.AfterFunc(ctx, t.CloseIdleConnections)
		opening.Go(func() {
			// The connection first, or each of them opens one.
			index := ""
			for ctx.Err() == nil && index == "" {
				if index = m.block(ctx, t, b, token, ""); index == "" {
					_ = pause(ctx, 100*time.Millisecond)
				}
			}
			for range each {
				go func() {
					b.begun.Add(1)
					for index := index; ctx.Err() == nil; {
						next := m.block(ctx, t, b, token, index)
						switch {
						case next == "":
							_ = pause(ctx, 100*time.Millisecond)
						case next != index:
							b.see(1)
							index = next
						}
					}
				}()
			}
		})
	}
	opening.Wait()
	return nil
}

// token makes one for a caller of its own.
func (m *muster) token(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", m.nodes[0].String()+"/v1/tokens", strings.NewReader(`{"role":"viewer"}`))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+m.cluster.Token)
	t := &http.Transport{TLSClientConfig: m.tls.Clone()}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var made struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || resp.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("a token: %s %w", resp.Status, err)
	}
	return made.Token, nil
}

// block asks once, and gives the revision of the answer; "" where there is none.
func (m *muster) block(ctx context.Context, t *http.Transport, b *board, token, index string) string {
	at := m.nodes[0].String() + "/v1/discovery/bench/one-0"
	if index != "" {
		at += "?wait=5m&index=" + index
	}
	req, err := http.NewRequestWithContext(ctx, "GET", at, nil)
	if err != nil {
		b.fail(err)
		return ""
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := t.RoundTrip(req)
	if err != nil {
		b.fail(err)
		return ""
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return resp.Header.Get("Muster-Revision")
}
