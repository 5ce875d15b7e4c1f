// Package nemesis owns the faults of the matrix: each is a value that says how
// it makes trouble for a cluster of real processes, ends it, and shows that it
// happened. It refuses to know what callers do meanwhile, and judges nothing.
package nemesis
