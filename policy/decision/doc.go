// Package decision owns what happens to a decision after it was made: it is
// kept, masked, logged, and found again. It never decides, never changes a
// decision, and never makes the caller wait for a disk or a network unless the
// alternative is to lose a refusal.
package decision
