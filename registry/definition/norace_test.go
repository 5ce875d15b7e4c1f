//go:build !race

package definition_test

// slowness is how much longer things may take in this build.
const slowness = 1
