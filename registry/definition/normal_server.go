package definition

import (
	"net/url"
	"slices"
	"strings"
)

// serverFacts are what a definition says of one server. Protocols and host are
// those of its URL, with the values that its variables may take.
type serverFacts struct {
	Name        string   `json:"name"`
	URL         string   `json:"url"`
	Protocols   []string `json:"protocols"`
	Host        string   `json:"host"`
	Credentials bool     `json:"credentials"` // in the URL
	Description string   `json:"description"`
	Extensions  []string `json:"extensions"` // x-…, where they are not null or false
	Access      bool     `json:"access"`     // it has x-internal, true or false
	Schemes     []string `json:"schemes"`    // that it asks for, in some alternative
	Secured     bool     `json:"secured"`    // there is an alternative, and none is empty
}

// hosts lists the servers of the document, a path or an operation: of Swagger,
// its host under each of its schemes.
func (z *normaliser) hosts(holder uint32) {
	z.each(holder, "servers", func(s uint32) { z.add(&z.servers, z.server(s), s) })
	if schemes, ok := z.tree.member(holder, "schemes"); ok {
		host := z.label(0, "host")
		z.children(schemes, func(s uint32) {
			protocol := strings.ToLower(clip(z.tree.text(s)))
			z.add(&z.servers, z.serverAt(serverFacts{URL: clip(protocol + "://" + host + z.label(0, "basePath"))}), s)
		})
	} else if host := z.label(0, "host"); holder == 0 && host != "" {
		at, _ := z.tree.member(0, "host")
		z.add(&z.servers, z.serverAt(serverFacts{URL: "//" + host}), at)
	}
}

func (z *normaliser) server(s uint32) serverFacts {
	f := serverFacts{URL: clip(z.label(s, "url")), Description: clip(z.label(s, "description")), Extensions: z.extensions(s), Access: z.has(s, "x-internal")}
	also := z.variables(s, &f.URL)
	f = z.serverAt(f)
	f.Protocols = slices.Compact(slices.Sorted(slices.Values(append(f.Protocols, also...))))
	return f
}

// variables puts the defaults of a server's variables into its URL, and gives
// the protocols that another choice would lead to.
func (z *normaliser) variables(s uint32, to *string) (also []string) {
	z.each(s, "variables", func(c uint32) {
		name := "{" + z.tree.key(c) + "}"
		v := z.follow(c)
		if enum, ok := z.tree.member(v, "enum"); ok {
			for _, choice := range z.texts(enum) {
				rest, leads := strings.CutPrefix(*to, name)
				if protocol, _, ok := strings.Cut(choice+rest, "://"); ok && leads {
					also = append(also, strings.ToLower(protocol))
				}
			}
		}
		*to = clip(strings.ReplaceAll(*to, name, clip(z.label(v, "default"))))
	})
	return also
}

// serverAt takes the URL of a server apart.
func (z *normaliser) serverAt(f serverFacts) serverFacts {
	f.URL = clip(f.URL)
	f.Protocols = []string{}
	if f.Extensions == nil {
		f.Extensions = []string{}
	}
	protocol, rest, ok := strings.Cut(f.URL, "://")
	if ok {
		f.Protocols = []string{strings.ToLower(protocol)}
	} else if rest, ok = strings.CutPrefix(f.URL, "//"); !ok {
		return f
	}
	authority, _, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		f.Credentials = true
		authority = authority[at+1:]
		f.URL = strings.Replace(f.URL, rest[:at], "…", 1)
	}
	if u, err := url.Parse("//" + authority); err == nil {
		f.Host = strings.ToLower(u.Hostname())
	} else {
		f.Host = strings.ToLower(authority)
	}
	return f
}
