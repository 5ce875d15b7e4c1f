package jepsen

import "testing"

// What the tests outside of the package need of those inside.
const BinaryEnv = binaryEnv

var (
	NeedWorld = needWorld
	Folder    = folder
	Slack     = slack
)

// LeftOut leaves a cell out where it cannot run, and says so; where everything
// must run that is a failure.
func LeftOut(t *testing.T, why error) {
	t.Helper()
	leftOut(t, why)
}
