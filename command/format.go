//go:build !muster_next

package command

// Format is the newest replicated format that this build knows: a batch of a
// newer one must not be applied. Since 2, a command may name the conditions it
// was admitted under; since 3, members are known by their disks too.
const Format = 3
