//go:build muster_next

package command

// Format is that of the version after this one, for tests of rolling upgrades
// alone: it adds nothing but its number.
const Format = 4
