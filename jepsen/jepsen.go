// Package jepsen tries to break muster's promises on real processes: it starts
// the built binary in network namespaces, loads it through its public API, cuts
// links and kills processes meanwhile, records what every caller was told, and
// has checkers compare that with what the promises allow.
//
// It owns the network, the processes, the recorded history and the checkers. It
// refuses to know muster from inside: no other room is imported but pki, for
// certificates. Nothing here touches the machine's own network; see [Enter].
package jepsen
