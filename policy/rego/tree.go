package rego

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A tree of rules that differs from another in a few rules shares all else
// with it, the indices of the rules as well: only the nodes on the way to those
// that differ are made anew. What is shared is never changed.

// replaced gives the tree with the rules of a module in place of those that it
// had before. Both have their rules at the same places.
func replaced(root *ast.TreeNode, was, is *ast.Module, fresh map[*ast.TreeNode]bool) *ast.TreeNode {
	old := map[*ast.Rule]bool{}
	for _, r := range was.Rules {
		old[r] = true
	}
	rules := map[string][]*ast.Rule{}
	var places []ast.Ref
	for _, r := range is.Rules {
		place := r.Ref().GroundPrefix()
		key := place.String()
		if rules[key] == nil {
			places = append(places, place)
		}
		rules[key] = append(rules[key], r)
	}
	own := func(n *ast.TreeNode) *ast.TreeNode {
		if fresh[n] {
			return n
		}
		node := *n
		node.Children, node.Index = maps.Clone(n.Children), nil
		fresh[&node] = true
		return &node
	}
	root = own(root)
	for _, place := range places {
		node := root
		for _, t := range place {
			child := own(node.Children[t.Value])
			node.Children[t.Value] = child
			node = child
		}
		at := slices.IndexFunc(node.Values, func(r *ast.Rule) bool { return old[r] })
		others := slices.DeleteFunc(slices.Clone(node.Values), func(r *ast.Rule) bool { return old[r] })
		node.Values = slices.Insert(others, at, rules[place.String()]...)
	}
	return root
}

// reindex builds the indices of the fresh nodes of a tree.
func reindex(root *ast.TreeNode, fresh map[*ast.TreeNode]bool) {
	whole := root
	// An index keeps the compiler that made it: this one holds nothing else.
	c := ast.NewCompiler().WithCapabilities(&ast.Capabilities{}).
		WithSkipStages(without(ast.StageBuildRuleIndices)...).
		WithVirtual(func(ref ast.Ref) bool { return virtual(whole, ref.GroundPrefix()) })
	part := freshPart(root, fresh)
	c.RuleTree = part
	c.Compile(nil)
	c.RuleTree, whole = &ast.TreeNode{}, nil
	takeIndices(root, part, fresh)
}

// freshPart is the part of a tree whose indices are to be built. Those of
// general rules are built of all that is below them.
func freshPart(n *ast.TreeNode, fresh map[*ast.TreeNode]bool) *ast.TreeNode {
	part := &ast.TreeNode{Key: n.Key, Values: n.Values, Hide: n.Hide, Children: n.Children}
	if general(n) {
		return part
	}
	part.Children = map[ast.Value]*ast.TreeNode{}
	for key, child := range n.Children {
		if fresh[child] {
			part.Children[key] = freshPart(child, fresh)
		}
	}
	return part
}

func takeIndices(n, part *ast.TreeNode, fresh map[*ast.TreeNode]bool) {
	n.Index = part.Index
	if general(n) {
		return
	}
	for key, child := range part.Children {
		takeIndices(n.Children[key], child, fresh)
	}
}

func general(n *ast.TreeNode) bool {
	return slices.ContainsFunc(n.Values, func(r *ast.Rule) bool { return !r.Ref().IsGround() })
}

// virtual says whether rules, and not only data, may be at the place.
func virtual(n *ast.TreeNode, place ast.Ref) bool {
	for _, t := range place {
		if n = n.Child(t.Value); n == nil {
			return false
		}
		if len(n.Values) > 0 {
			return true
		}
	}
	return true
}

// without gives all stages of the compiler but these.
func without(stages ...ast.StageID) []ast.StageID {
	return slices.DeleteFunc(ast.AllStages(), func(id ast.StageID) bool { return slices.Contains(stages, id) })
}

// comprehensions says whether the compiler has an index of a comprehension of
// the module.
func comprehensions(c *ast.Compiler, m *ast.Module) (has bool) {
	ast.WalkTerms(m, func(t *ast.Term) bool {
		has = has || c.ComprehensionIndex(t) != nil
		return has
	})
	return has
}
