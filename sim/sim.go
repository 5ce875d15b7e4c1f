// Package sim runs whole clusters inside of one process and in virtual time:
// the project's own cluster, fsm, admit and lease, wired as node wires them, over
// a network and under disks that do what a schedule says. Where nothing happens
// time jumps, so hours of a cluster's life take seconds.
//
// It owns the network, the disks, the schedules and the workloads, and uses the
// checkers of package jepsen. It refuses to replace any part of a node whose
// behaviour it judges: what is simulated lies below [cluster.Network] and
// below the journal's file. Everything must run inside of a bubble of
// testing/synctest.
package sim
