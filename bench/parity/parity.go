// Package parity holds muster's policy port beside Open Policy Agent's own
// server: its tests send the same requests to both and compare the answers. It
// lives in bench's module, so that the server's dependencies stay out of
// muster's.
package parity
