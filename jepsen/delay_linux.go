package jepsen

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Relay holds packets up between hosts: the router hands those of the pairs to
// this process, which gives them back later.
type Relay struct {
	packets atomic.Uint64
	tun     *os.File
	rules   [][]string // to take away again
	queue   chan held
	passing sync.WaitGroup
}

type held struct {
	packet []byte
	due    time.Time
}

var relays atomic.Int32

// Delay holds all packets of the pairs up, each for a time between the two, in
// order. It is in addition to what [Network.Cut] loses.
func (n *Network) Delay(least, most time.Duration, pairs ...Pair) (*Relay, error) {
	id := int(relays.Add(1))
	name := fmt.Sprintf("delay%d", id)
	tun, err := openTun(name)
	if err != nil {
		return nil, fmt.Errorf("a network device of our own: %w", err)
	}
	r := &Relay{tun: tun, queue: make(chan held, 1<<14)}
	r.passing.Go(func() { r.take(least, most) })
	r.passing.Go(r.give)
	table := strconv.Itoa(1000 + id)
	err = run("ip", "link", "set", name, "up")
	for _, c := range []string{"all", name} {
		err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/conf/"+c+"/rp_filter", []byte("0"), 0))
	}
	err = errors.Join(err, run("ip", "route", "add", "default", "dev", name, "table", table))
	for _, p := range pairs {
		from, to := n.Hosts[p.From], n.Hosts[p.To]
		rule := []string{"from", from.Peer, "to", to.Peer, "iif", from.links[0], "lookup", table}
		r.rules = append(r.rules, rule)
		err = errors.Join(err, run("ip", append([]string{"rule", "add"}, rule...)...))
	}
	if err != nil {
		_, e := r.Close()
		return nil, errors.Join(err, e)
	}
	return r, nil
}

// openTun makes a device that hands IP packets to this process.
func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (r *Relay) take(least, most time.Duration) {
	defer close(r.queue)
	last := time.Time{}
	for {
		packet := make([]byte, 65536)
		n, err := r.tun.Read(packet)
		if err != nil {
			return // closed
		}
		r.packets.Add(1)
		due := time.Now().Add(least + time.Duration(rand.Int64N(int64(most-least)+1)))
		if due.Before(last) {
			due = last
		}
		last = due
		select {
		case r.queue <- held{packet[:n:n], due}:
		default: // as a router whose memory is full
		}
	}
}

func (r *Relay) give() {
	for h := range r.queue {
		time.Sleep(time.Until(h.due))
		_, _ = r.tun.Write(h.packet) // lost where it is closed, or the link is down
	}
}

// Close lets packets pass as before, loses those that are held, and says how
// many there were.
func (r *Relay) Close() (packets uint64, err error) {
	for _, rule := range r.rules {
		err = errors.Join(err, run("ip", append([]string{"rule", "del"}, rule...)...))
	}
	err = errors.Join(err, r.tun.Close())
	r.passing.Wait()
	return r.packets.Load(), err
}
