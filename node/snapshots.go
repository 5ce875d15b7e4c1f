package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/snapshot"
	"github.com/muster-registry/muster/snapshot/store"
)

// SnapshotSettings say when the node that leads saves the whole state, and
// where. They should be the same on all nodes.
type SnapshotSettings struct {
	Interval   time.Duration `yaml:"interval"`   // between two; 0: none are saved
	Keep       int           `yaml:"keep"`       // of this cluster
	Folder     string        `yaml:"folder"`     // this, or a bucket
	S3         S3Settings    `yaml:"s3"`         // S3-compatible storage
	Recipients []string      `yaml:"recipients"` // public keys of age; none: not encrypted
}

// S3Settings name a bucket.
type S3Settings struct {
	Endpoint      string `yaml:"endpoint"` // https://host:port
	Bucket        string `yaml:"bucket"`
	Prefix        string `yaml:"prefix"`
	Region        string `yaml:"region"`
	AccessKey     string `yaml:"access_key"`
	SecretKeyFile string `yaml:"secret_key_file"`
	CAFile        string `yaml:"ca_file"`
}

func snapshotDefaults() SnapshotSettings { return SnapshotSettings{Keep: 24} }

// place is where they go; nil without any.
func (c *Config) place() (store.Place, error) {
	s := c.Snapshots
	switch {
	case s.Folder != "" && s.S3.Endpoint != "":
		return nil, errors.New("snapshots.folder and snapshots.s3 are both set; keep one of the two")
	case s.Folder != "":
		return store.Folder(s.Folder), nil
	case s.S3.Endpoint == "":
		return nil, nil
	}
	p, err := store.S3(store.S3Config{
		Endpoint: s.S3.Endpoint, Bucket: s.S3.Bucket, Prefix: s.S3.Prefix, Region: s.S3.Region,
		AccessKey: s.S3.AccessKey, SecretKey: c.Secrets.SnapshotSecretKey, CAFile: s.S3.CAFile,
	})
	if err != nil {
		return nil, fmt.Errorf("snapshots.s3: %w", err)
	}
	return p, nil
}

func (c *Config) validateSnapshots() (errs []error) {
	s := c.Snapshots
	place, err := c.place()
	if err != nil {
		errs = append(errs, err)
	}
	if s.Interval != 0 && s.Interval < time.Minute {
		errs = append(errs, fmt.Errorf("snapshots.interval: %s is too short; at least 1m, or 0 for none", s.Interval))
	}
	if s.Interval != 0 && place == nil && err == nil {
		errs = append(errs, errors.New("snapshots.interval: say where the snapshots go, with snapshots.folder or snapshots.s3"))
	}
	if u, err := url.Parse(s.S3.Endpoint); err == nil && u.Scheme == "http" && len(s.Recipients) == 0 && !net.ParseIP(u.Hostname()).IsLoopback() {
		errs = append(errs, errors.New("snapshots.s3.endpoint: over plain HTTP everybody on the way can read the snapshots; use https, or set snapshots.recipients"))
	}
	if s.Keep < 1 {
		errs = append(errs, errors.New("snapshots.keep: at least 1"))
	}
	if _, err := snapshot.ParseRecipients(s.Recipients); err != nil {
		errs = append(errs, fmt.Errorf("snapshots.recipients: %w", err))
	}
	return errs
}

// scheduled saves snapshots while this node leads.
type scheduled struct {
	place store.Place
	to    []snapshot.Recipient

	mu      sync.Mutex // guards what follows
	leading bool
	looked  bool      // this node has looked at the place, or heard of a leader that has
	newest  time.Time // of the snapshots that are kept; zero: none is known
	bytes   int64     // of the last that this node saved
	failed  error     // of the last attempt

	saved *prometheus.CounterVec
	age   *prometheus.Desc
	last  *prometheus.Desc
	size  *prometheus.Desc
}

// openSnapshots prepares the schedule; n.saves is nil without one.
func (n *Node) openSnapshots(reg prometheus.Registerer) (err error) {
	if n.cfg.Snapshots.Interval == 0 {
		return nil
	}
	s := &scheduled{
		saved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_snapshots_total", Help: "Scheduled snapshots that this node tried to save while it led, by outcome.",
		}, []string{"outcome"}),
		age:  prometheus.NewDesc("muster_snapshot_age_seconds", "Age of the newest scheduled snapshot, as this node last heard from the one that leads.", nil, nil),
		last: prometheus.NewDesc("muster_snapshot_last_success_timestamp_seconds", "When the newest scheduled snapshot was taken, in seconds since 1970; 0: there is none.", nil, nil),
		size: prometheus.NewDesc("muster_snapshot_last_bytes", "Size of the last scheduled snapshot that this node saved; 0: none since its start.", nil, nil),
	}
	if s.place, err = n.cfg.place(); err != nil {
		return err
	}
	if s.to, err = snapshot.ParseRecipients(n.cfg.Snapshots.Recipients); err != nil {
		return err
	}
	for _, o := range []string{"saved", "failed"} {
		s.saved.WithLabelValues(o)
	}
	reg.MustRegister(s.saved, s)
	n.saves = s
	return nil
}

// Describe implements prometheus.Collector.
func (s *scheduled) Describe(to chan<- *prometheus.Desc) {
	to <- s.age
	to <- s.last
	to <- s.size
}

// Collect implements prometheus.Collector. A node that has not heard of the
// newest yet says nothing rather than something wrong.
func (s *scheduled) Collect(to chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to <- prometheus.MustNewConstMetric(s.size, prometheus.GaugeValue, float64(s.bytes))
	if !s.looked {
		return
	}
	at := 0.0
	if !s.newest.IsZero() {
		at = float64(s.newest.Unix())
		to <- prometheus.MustNewConstMetric(s.age, prometheus.GaugeValue, time.Since(s.newest).Seconds())
	}
	to <- prometheus.MustNewConstMetric(s.last, prometheus.GaugeValue, at)
}

// snapshotAlarm is a line for readyz: how old the newest snapshot is, and on the
// leader whether the last attempt has failed.
func (n *Node) snapshotAlarm() []string {
	s := n.saves
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch age := time.Since(s.newest).Round(time.Second); {
	case s.failed != nil && s.newest.IsZero():
		return []string{"[!] no scheduled snapshot could be saved: " + s.failed.Error()}
	case s.failed != nil:
		return []string{fmt.Sprintf("[!] the newest scheduled snapshot is %s old, and another could not be saved: %v", age, s.failed)}
	case !s.newest.IsZero() && age > 2*n.cfg.Snapshots.Interval:
		return []string{fmt.Sprintf("[!] the newest scheduled snapshot is %s old, and another one is due every %s", age, n.cfg.Snapshots.Interval)}
	case !s.newest.IsZero():
		return []string{fmt.Sprintf("[+] the newest scheduled snapshot is %s old", age)}
	}
	return nil
}

// saveOnSchedule runs while this node leads.
func (n *Node) saveOnSchedule(ctx context.Context) {
	s := n.saves
	if s == nil {
		return
	}
	s.set(func() { s.leading, s.failed = true, nil })
	defer s.set(func() { s.leading, s.failed = false, nil })
	const retry = 15 * time.Second
	for {
		wait, err := n.saveWhenDue(ctx)
		if ctx.Err() != nil {
			return
		}
		s.set(func() { s.failed = err })
		if err != nil {
			wait = retry
			s.saved.WithLabelValues("failed").Inc()
			n.logger.Error("a scheduled snapshot was not saved; it is tried again", "place", s.place.String(), "in", retry, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (s *scheduled) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// saveWhenDue saves a snapshot when the newest that is kept, by whichever node,
// is old enough, and says when to look again.
func (n *Node) saveWhenDue(ctx context.Context) (wait time.Duration, err error) {
	s, every := n.saves, n.cfg.Snapshots.Interval
	// What hangs must not hang for ever.
	ctx, cancel := context.WithTimeout(ctx, max(every, 10*time.Minute))
	defer cancel()
	id := n.machine.ClusterID()
	kept, err := store.List(ctx, s.place, id)
	if err != nil {
		return 0, err
	}
	if len(kept) > 0 {
		s.know(kept[len(kept)-1].Taken)
	}
	s.set(func() { s.looked = true })
	if newest, known := s.taken(); known {
		if due := newest.Add(every); time.Now().Before(due) {
			return time.Until(due), nil
		}
	}
	taken := time.Now()
	if err := n.saveScheduled(ctx, id, taken); err != nil {
		return 0, err
	}
	s.know(taken)
	s.saved.WithLabelValues("saved").Inc()
	if err := store.Prune(ctx, s.place, id, n.cfg.Snapshots.Keep); err != nil {
		n.logger.Warn("old snapshots could not be removed", "place", s.place.String(), "error", err)
	}
	return every, nil
}

func (n *Node) saveScheduled(ctx context.Context, clusterID string, taken time.Time) (err error) {
	s := n.saves
	file := filepath.Join(n.cfg.DataDir, "scheduled.snapshot")
	defer func() { err = errors.Join(err, remove(file), remove(file+".age")) }()
	sum, err := n.saveTo(file, new(atomic.Int64))
	if err != nil {
		return err
	}
	out := file
	if len(s.to) > 0 {
		out += ".age"
		if err := encryptFile(out, file, s.to); err != nil {
			return err
		}
	}
	name := store.Name(clusterID, taken, sum.Header.Revision, len(s.to) > 0)
	if err := s.place.Put(ctx, name, out); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	s.set(func() { s.bytes = sum.Size })
	n.logger.Info("saved a scheduled snapshot", "place", s.place.String(), "name", name, "revision", sum.Header.Revision, "bytes", sum.Size)
	return nil
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func encryptFile(to, from string, recipients []snapshot.Recipient) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sealed, err := snapshot.Encrypt(out, recipients)
	if err != nil {
		return err
	}
	_, err = io.Copy(sealed, in)
	return errors.Join(err, sealed.Close(), out.Sync())
}
