package policy

import "embed"

//go:embed builtin/roles.rego builtin/roles_test.rego
var builtin embed.FS

// Builtin is the published form of what the built-in roles may do: Rego modules
// by name, with their tests. [Permit] answers as they do; a test in policy/rego
// holds the two to each other.
func Builtin() map[string]string {
	modules := map[string]string{}
	for _, name := range []string{"roles.rego", "roles_test.rego"} {
		text, err := builtin.ReadFile("builtin/" + name)
		if err != nil {
			panic(err) // it is part of the program
		}
		modules[name] = string(text)
	}
	return modules
}
