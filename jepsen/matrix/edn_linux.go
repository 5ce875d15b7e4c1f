package matrix

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/muster-registry/muster/jepsen"
)

// writeEDN writes a history as Jepsen's own tools read it: each operation as an
// invocation and, unless nobody knows what became of it, a completion, in the
// order of time.
func writeEDN(path string, ops []jepsen.Op) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(f)
	type line struct {
		at     int64
		op     *jepsen.Op
		invoke bool
	}
	var lines []line
	for i := range ops {
		op := &ops[i]
		if op.Kind != jepsen.Fault {
			lines = append(lines, line{op.Invoke, op, true})
		}
		lines = append(lines, line{op.Return, op, false})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	for i, l := range lines {
		process, kind := fmt.Sprint(l.op.Worker), ":invoke"
		switch {
		case l.op.Kind == jepsen.Fault:
			process, kind = ":nemesis", ":info"
		case l.invoke:
		case l.op.Outcome == jepsen.OK:
			kind = ":ok"
		case l.op.Outcome == jepsen.Failed:
			kind = ":fail"
		default:
			kind = ":info"
		}
		value := "nil"
		switch {
		case l.op.Kind == jepsen.Fault:
			value = quote(l.op.Detail)
		case l.op.Kind == jepsen.CAS:
			value = "[" + quote(l.op.Key) + " [" + quote(l.op.Expect) + " " + quote(l.op.Value) + "]]"
		case l.invoke && (l.op.Kind == jepsen.Read || l.op.Kind == jepsen.Local):
			value = "[" + quote(l.op.Key) + " nil]"
		default:
			value = "[" + quote(l.op.Key) + " " + quote(l.op.Value) + "]"
		}
		fmt.Fprintf(out, "{:index %d, :time %d, :process %s, :type %s, :f :%s, :value %s, :node %s", i, l.at, process, kind, l.op.Kind, value, quote(l.op.Node))
		if !l.invoke && l.op.Code != "" {
			fmt.Fprintf(out, ", :error :%s", l.op.Code)
		}
		if !l.invoke && l.op.Revision > 0 {
			fmt.Fprintf(out, ", :revision %d", l.op.Revision)
		}
		fmt.Fprintln(out, "}")
	}
	return errors.Join(out.Flush(), f.Close())
}
