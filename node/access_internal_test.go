package node

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/identity"
)

// Who has no role and connects again and again is counted each time, and does
// not fill the log.
func TestCallersWithoutARoleDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		metrics, err := newMetrics(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		n := &Node{logger: slog.New(slog.NewTextHandler(&said, nil)), metrics: metrics}
		call := func() {
			n.unmapped(&identity.Principal{Kind: identity.KindSPIFFE, Credential: identity.Credential{Certificate: new(x509.Certificate)}}, true)
		}
		for range 1000 {
			call()
		}
		if lines := strings.Count(said.String(), "\n"); lines != 20 {
			t.Errorf("%d lines", lines)
		}
		if counted := testutil.ToFloat64(n.metrics.unmapped.WithLabelValues("certificate")); counted != 1000 {
			t.Errorf("%v are counted", counted)
		}
		time.Sleep(time.Second)
		call()
		if lines := strings.Count(said.String(), "\n"); lines != 21 {
			t.Errorf("%d lines after a while", lines)
		}
	})
}
