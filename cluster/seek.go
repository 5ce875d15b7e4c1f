package cluster

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/muster-registry/muster/cluster/wire"
	"google.golang.org/protobuf/proto"
)

// Neighbour is a living node as gossip tells of it.
type Neighbour struct {
	ID      string
	Address string // of its peer port
}

// Seek asks for the living nodes by gossip at any of the addresses, with the
// cluster's gossip key, and from the host of bind, a gossip address of the
// configuration. It is no node meanwhile: those that are do not count it. A key
// that is not theirs finds nobody. The error is that nothing could be asked.
func Seek(key []byte, bind string, at []string) ([]Neighbour, error) {
	conf := memberlist.DefaultLANConfig()
	conf.Name = "seek/" + rand.Text()
	conf.SecretKey = key
	conf.LogOutput = io.Discard
	conf.TCPTimeout = 2 * time.Second
	conf.BindAddr, conf.BindPort, conf.AdvertisePort = "0.0.0.0", 0, 0
	if host, _, err := net.SplitHostPort(bind); err == nil && host != "" {
		conf.BindAddr = host
	}
	list, err := memberlist.Create(conf)
	if err != nil {
		return nil, fmt.Errorf("no gossip could be asked: %w", err)
	}
	defer func() { _ = list.Shutdown() }()
	if n, _ := list.Join(at); n == 0 {
		return nil, nil
	}
	var all []Neighbour
	for _, m := range list.Members() {
		card := new(wire.Card)
		if proto.Unmarshal(m.Meta, card) == nil && card.Id != "" {
			all = append(all, Neighbour{card.Id, card.Address})
		}
	}
	_ = list.Leave(leaveTimeout)
	return all, nil
}
