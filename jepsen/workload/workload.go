// Package workload owns what callers do in a cell of the matrix, and the
// checkers that hold what they were told against muster's promises. It refuses
// to know which faults happen meanwhile: a checker that needs to be told is too
// weak for some promise, or the promise is not one.
package workload
