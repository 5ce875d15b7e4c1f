package opa

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/trace"
)

// attempts is how often a change is made anew because another came first.
const attempts = 10

// change makes the active revision, edited, the next one on every node. The
// edit may run several times, each time on a copy of what is active then. Rego
// that does not compile is refused with the code.
func (c *call) change(code string, edit func(*policy.Content) error) error {
	ctx := trace.WithRequest(c.r.Context(), c.id())
	select {
	case c.api.changing <- struct{}{}:
		defer func() { <-c.api.changing }()
	case <-ctx.Done():
		return fault.Wrap(fault.NotReady, ctx.Err(), "the change did not get its turn in time; nothing was changed")
	}
	var refused error
	for range attempts {
		// Changes that this node has not heard of yet would only be refused.
		if err := c.api.backend.ReadIndex(ctx); err != nil {
			return err
		}
		if refused != nil && active(c.api.backend.Policies()) == active(c.state) {
			return refused // and not because another change came first
		}
		refused = c.tryChange(ctx, code, edit)
		if !fault.Is(refused, fault.RevisionMismatch) && !fault.Is(refused, fault.Conflict) {
			return refused
		}
	}
	return fault.New(fault.Conflict, "other changes of the policies kept coming first; nothing was changed, try again")
}

func (c *call) tryChange(ctx context.Context, code string, edit func(*policy.Content) error) error {
	c.state = c.api.backend.Policies()
	next := policy.Content{Modules: map[string]string{}, Data: []byte("{}")}
	active := c.state.Policy.Active()
	digest := ""
	if active != nil {
		next = active.Content
		next.Modules, digest = maps.Clone(active.Modules), active.Digest
		if next.Modules == nil {
			next.Modules = map[string]string{}
		}
	}
	if err := edit(&next); err != nil {
		return err
	}
	next.Note = c.r.Method + " " + c.r.URL.Path
	if len(next.Note) > policy.MaxNote {
		next.Note = strings.ToValidUTF8(next.Note[:policy.MaxNote], "")
	}
	if err := next.Normalize(); err != nil {
		return err
	}
	if next.Digest() == digest {
		return nil
	}
	// What does not compile is found here, in OPA's own words.
	if err := c.api.engine.Compile(ctx, &next); err != nil {
		return unchanged(code, err)
	}
	rev, err := c.api.backend.StagePolicy(ctx, c.intent(c.revision()), &next, policy.Origin{}, true)
	if err != nil {
		return unchanged(code, err)
	}
	c.header(c.Header(), 2, "Muster-Revision", strconv.FormatUint(rev.ChangedAt, 10))
	c.state, c.age = c.api.backend.Policies(), 0
	return nil
}

// ofData stands for the code of a change of data: OPA lists no places then.
const ofData = ""

// unchanged is OPA's answer to a change that does not compile.
func unchanged(code string, err error) error {
	if code != ofData {
		return uncompiled(code, types.MsgCompileModuleError, err)
	}
	if errs, ok := errors.AsType[ast.Errors](err); ok {
		return invalid("%v", errs)
	}
	return err
}

// putData makes or replaces a document, and the objects above it.
func putData(c *call) error {
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	var value any
	m.Timer(metrics.RegoInputParse).Start()
	if err := c.decode(c.api.opt.MaxPolicy, &value, ""); err != nil {
		return err
	}
	m.Timer(metrics.RegoInputParse).Stop()
	path, err := dataPath(c.path())
	if err != nil {
		return err
	}
	onlyNew, there := c.r.Header.Get("If-None-Match") == "*", false
	err = c.edit(func(ctx context.Context, s storage.Store, txn storage.Transaction) error {
		_, err := s.Read(ctx, txn, path)
		there = err == nil
		switch {
		case there && onlyNew:
			return nil
		case err != nil && !storage.IsNotFound(err):
			return err
		case err != nil && len(path) > 0:
			if err := storage.MakeDir(ctx, s, txn, path[:len(path)-1]); err != nil {
				return err
			}
		}
		return s.Write(ctx, txn, storage.AddOp, path, value)
	})
	if err != nil {
		return err
	}
	if there && onlyNew {
		c.WriteHeader(http.StatusNotModified)
		return nil
	}
	return c.changed(m)
}

// maxPatch is how many operations one patch may have: each may move all members
// of an array, while other changes wait.
const maxPatch = 10_000

// patchData applies a list of operations in the manner of JSON Patch.
func patchData(c *call) error {
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	var ops []types.PatchV1
	m.Timer(metrics.RegoInputParse).Start()
	if err := c.decode(c.api.opt.MaxPolicy, &ops, ""); err != nil {
		return err
	}
	m.Timer(metrics.RegoInputParse).Stop()
	if len(ops) > maxPatch {
		return fault.New(fault.TooLarge, "a patch may have %d operations; put the whole document instead", maxPatch)
	}
	root := "/" + strings.Trim(c.path(), "/")
	kinds := map[string]storage.PatchOp{"add": storage.AddOp, "remove": storage.RemoveOp, "replace": storage.ReplaceOp}
	paths := make([]storage.Path, len(ops))
	for i, op := range ops {
		if _, ok := kinds[op.Op]; !ok {
			return types.BadPatchOperationErr(op.Op)
		}
		path, ok := storage.ParsePathEscaped(strings.TrimSuffix(strings.TrimSuffix(root, "/")+"/"+strings.Trim(op.Path, "/"), "/"))
		if root == "/" && strings.Trim(op.Path, "/") == "" {
			path, ok = storage.Path{}, true
		}
		if !ok {
			return types.BadPatchPathErr(op.Path)
		}
		for j := range path { // RFC 6901, in this order
			path[j] = strings.ReplaceAll(strings.ReplaceAll(path[j], "~1", "/"), "~0", "~")
		}
		paths[i] = path
	}
	err := c.edit(func(ctx context.Context, s storage.Store, txn storage.Transaction) error {
		for i, op := range ops {
			if err := ctx.Err(); err != nil {
				return fault.Wrap(fault.NotReady, err, "the patch was not done in time; nothing was changed")
			}
			if err := s.Write(ctx, txn, kinds[op.Op], paths[i], op.Value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.changed(m)
}

// deleteData removes a document.
func deleteData(c *call) error {
	m := metrics.New()
	m.Timer(metrics.ServerHandler).Start()
	path, err := dataPath(c.path())
	if err != nil {
		return err
	}
	err = c.edit(func(ctx context.Context, s storage.Store, txn storage.Transaction) error {
		if _, err := s.Read(ctx, txn, path); err != nil {
			return err
		}
		return s.Write(ctx, txn, storage.RemoveOp, path, nil)
	})
	if err != nil {
		return err
	}
	return c.changed(m)
}

// changed answers a change of data.
func (c *call) changed(m metrics.Metrics) error {
	m.Timer(metrics.ServerHandler).Stop()
	if p := c.params(); p.metrics {
		return c.ok(types.DataResponseV1{Metrics: m.All()}, false)
	}
	c.WriteHeader(http.StatusNoContent)
	return nil
}

func dataPath(escaped string) (storage.Path, error) {
	path, ok := storage.ParsePathEscaped("/" + strings.Trim(escaped, "/"))
	if !ok {
		return nil, invalid("bad path: %v", escaped)
	}
	return path, nil
}

// edit changes the data of the active revision in a store of OPA's, which
// knows what may be written where.
func (c *call) edit(write func(context.Context, storage.Store, storage.Transaction) error) error {
	return c.change(ofData, func(content *policy.Content) error {
		ctx := c.r.Context()
		var before map[string]any
		if err := util.NewJSONDecoder(bytes.NewReader(content.Data)).Decode(&before); err != nil {
			return err
		}
		own, err := json.Marshal(before["system"])
		if err != nil {
			return err
		}
		store := inmem.NewFromObject(before)
		txn, err := store.NewTransaction(ctx, storage.WriteParams)
		if err != nil {
			return err
		}
		defer store.Abort(ctx, txn)
		if err := write(ctx, store, txn); err != nil {
			return err
		}
		after, err := store.Read(ctx, txn, storage.RootPath)
		if err != nil {
			return err
		}
		all, ok := after.(map[string]any)
		if !ok {
			return invalid("the data of a policy must be an object")
		}
		if now, err := json.Marshal(all["system"]); err != nil || !bytes.Equal(now, own) {
			return errSystem
		}
		content.Data, err = json.Marshal(all)
		return err
	})
}
