//go:build race

package definition_test

// slowness is how much longer things may take under the race detector.
const slowness = 10
