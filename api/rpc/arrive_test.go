package rpc

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/stats"
)

type zeros struct{ given int }

func (z *zeros) Read(b []byte) (int, error) { z.given += len(b); return len(b), nil }
func (z *zeros) Close() error               { return nil }

// What comes of a body over net/http is as much as its call takes, and one
// message more, however fast its caller sends.
func TestNoMoreOfABodyThanItsCallTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 100_000
		from := &zeros{}
		p := &paced{body: from, most: most, more: make(chan struct{}, 1), gone: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { // as the library does
			_, err := io.Copy(io.Discard, struct{ io.Reader }{p})
			ended <- err
		}()
		synctest.Wait()
		if from.given != most {
			t.Errorf("%d bytes were read of a call that takes nothing", from.given)
		}
		ctx := context.WithValue(t.Context(), pacedKey{}, p)
		for i := range 10 {
			taken{}.HandleRPC(ctx, &stats.InPayload{WireLength: 30_000})
			synctest.Wait()
			if want := most + (i+1)*30_000; from.given != want {
				t.Errorf("%d bytes were read, want %d", from.given, want)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("a body that is closed does not end")
		}
	})
}
