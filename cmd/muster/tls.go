package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/pki"
)

func (a *app) tls() *cobra.Command {
	return group("tls", "Make certificates, and look at those of others", a.tlsCA(), a.tlsIssue(), a.tlsRequest(), a.tlsRenew(), a.tlsVerify())
}

// pair names the files of a certificate and its key: those of an absolute name
// are where it says, whatever the folder.
func pair(dir, name string) (crt, key string) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	return name + ".crt", name + ".key"
}

func (a *app) tlsCA() *cobra.Command {
	var dir, base, domain, algorithm, parent, parentKey, public string
	var days int
	c := &cobra.Command{
		Use: "ca", Short: "Make a certificate authority: ca.crt and ca.key", Args: cobra.NoArgs,
		Example: "  muster tls ca\n  muster tls ca --parent ca.crt --out issuing    # an intermediate: issuing.crt, issuing.key\n" +
			"  muster tls ca --parent ca.crt --public-key hsm.pem --out issuing    # for a key in a hardware module: issuing.crt",
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			crt, key := pair(dir, base)
			validity := time.Duration(days) * 24 * time.Hour
			if public != "" && (parent == "" || cmd.Flags().Changed("algorithm")) {
				return usage("--public-key takes a --parent that certifies it, and no --algorithm")
			}
			if parent == "" {
				ca, err := pki.NewCA(cmp.Or(domain, "muster"), pki.Algorithm(algorithm), validity, time.Now())
				if err != nil {
					return err
				}
				return a.store(ca, crt, key)
			}
			above, domain, err := authority(parent, parentKey, domain)
			if err != nil {
				return err
			}
			if public != "" {
				key, err := pki.ReadPublicKey(public)
				if err != nil {
					return err
				}
				ca, err := above.NewIntermediateFor(domain, key, validity, time.Now())
				if err != nil {
					return err
				}
				return a.store(ca, crt, "")
			}
			ca, err := above.NewIntermediate(domain, pki.Algorithm(algorithm), validity, time.Now())
			if err != nil {
				return err
			}
			return a.store(ca, crt, key)
		}),
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", ".", "folder to write to, unless --out is an absolute path")
	f.StringVar(&base, "out", "ca", "name of the files, without .crt and .key")
	f.StringVar(&domain, "trust-domain", "", "trust domain of all ids the CA signs; muster, or that of the parent, unless set")
	f.StringVar(&algorithm, "algorithm", string(pki.ECDSA), algorithms())
	f.IntVar(&days, "days", 3650, "how long it is valid")
	f.StringVar(&parent, "parent", "", "certificate of the CA to make an intermediate of; without it, a root")
	f.StringVar(&public, "public-key", "", "public key (PEM) of the intermediate, whose private key stays where it is")
	f.StringVar(&parentKey, "parent-key", "", "its key; beside its certificate unless set")
	return c
}

func algorithms() string {
	var names []string
	for _, a := range pki.Algorithms() {
		names = append(names, string(a))
	}
	return "of the key: " + strings.Join(names, ", ")
}

// authority reads a CA, and the trust domain that it is for unless one is given.
func authority(crt, key, domain string) (*pki.Pair, string, error) {
	ca, err := pki.Read(crt, cmp.Or(key, strings.TrimSuffix(crt, ".crt")+".key"))
	if err != nil || domain != "" {
		return ca, domain, err
	}
	domain, err = ca.TrustDomain()
	return ca, domain, err
}

func (a *app) store(p *pki.Pair, crt, key string) error {
	if err := p.Write(crt, key); err != nil {
		return err
	}
	fmt.Fprintln(a.out, crt)
	if p.Key != nil {
		fmt.Fprintln(a.out, key)
	}
	a.say("%s", pki.Describe(p.Certificate))
	return nil
}

func (a *app) tlsIssue() *cobra.Command {
	var r pki.Request
	var caCert, caKey, domain, dir, base, algorithm, csr string
	var days int
	c := &cobra.Command{
		Use: "issue --node ID | --role ROLE | --spiffe-id ID", Short: "Make a certificate for a node, for a client with a role, or for a workload", Args: cobra.NoArgs,
		Example: "  muster tls issue --node n1 --host 10.0.0.1 --host n1.example.org\n  muster tls issue --role operator\n  muster tls issue --role publisher --for-namespace shop --name ci\n" +
			"  muster tls issue --spiffe-id spiffe://muster/ns/shop/svc/cart --host cart.shop --ttl 24h\n  muster tls issue --node n1 --csr n1.csr    # for a key that stays where it is",
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			given := 0
			for _, s := range []string{r.Node, r.Role, r.ID} {
				if s != "" {
					given++
				}
			}
			if given != 1 {
				return usage("say what the certificate is for: --node ID, --role ROLE or --spiffe-id ID")
			}
			ca, domain, err := authority(caCert, caKey, domain)
			if err != nil {
				return err
			}
			if csr != "" {
				if cmd.Flags().Changed("algorithm") {
					return usage("the signing request brings its key; leave --algorithm out")
				}
				if r.CSR, err = pki.ReadCSR(csr); err != nil {
					return err
				}
			}
			r.Algorithm = pki.Algorithm(algorithm)
			if r.Validity == 0 {
				r.Validity = time.Duration(days) * 24 * time.Hour
			}
			if r.Validity <= 0 {
				return usage("a certificate must be valid for some time")
			}
			p, err := ca.Issue(domain, r, time.Now())
			if err != nil {
				return err
			}
			base := cmp.Or(base, r.Node, r.Name, r.Role, p.Certificate.Subject.CommonName)
			crt, key := pair(dir, base)
			return a.store(p, crt, key)
		}),
	}
	f := c.Flags()
	f.StringVar(&r.Node, "node", "", "id of the node the certificate is for")
	f.StringArrayVar(&r.Hosts, "host", nil, "further name or address of the node or workload; may be repeated")
	f.StringVar(&r.Role, "role", "", "role of the client the certificate is for: "+strings.Join(pki.Roles, ", "))
	f.StringVar(&r.Namespace, "for-namespace", "", "limit the role to a namespace")
	f.StringVar(&r.Name, "name", "", "tell holders of the same role apart")
	f.StringVar(&r.ID, "spiffe-id", "", "SPIFFE id of the workload the certificate is for")
	f.StringVar(&csr, "csr", "", "signing request (PKCS #10, PEM) whose key is certified; no key is made then")
	f.StringVar(&caCert, "ca", "ca.crt", "the CA's certificate; with its chain where it is an intermediate")
	f.StringVar(&caKey, "ca-key", "", "the CA's key; beside its certificate unless set")
	f.StringVar(&domain, "trust-domain", "", "trust domain; that of the CA unless set")
	f.StringVar(&dir, "dir", ".", "folder to write to, unless --out is an absolute path")
	f.StringVar(&base, "out", "", "name of the files, without .crt and .key")
	f.StringVar(&algorithm, "algorithm", string(pki.ECDSA), algorithms())
	f.IntVar(&days, "days", 365, "how long it is valid")
	f.DurationVar(&r.Validity, "ttl", 0, "how long it is valid, such as 24h; instead of --days")
	return c
}

func (a *app) tlsVerify() *cobra.Command {
	var server string
	c := &cobra.Command{
		Use: "verify HOST:PORT|FILE", Short: "Print the certificates a listener presents or a file holds, and what is wrong with them, in words", Args: cobra.ExactArgs(1),
		Example: "  muster tls verify n1.example.org:8443 --cacert ca.crt\n  muster tls verify n1.crt --cacert ca.crt",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			s, err := a.settings.resolve(a.env)
			if err != nil {
				return err
			}
			if s.CACert == "" {
				return usage("name the CA to trust, with --cacert or MUSTER_CACERT")
			}
			roots, err := pki.Roots(s.CACert)
			if err != nil {
				return err
			}
			if _, err := os.Stat(args[0]); err == nil {
				chain, err := pki.ReadCertificates(args[0])
				if err != nil {
					return err
				}
				return a.verdict(args[0]+" holds:", cmp.Or(server, args[0]), s.CACert, pki.VerifyChain(chain, server, roots, time.Now()))
			}
			address := strings.TrimSuffix(strings.TrimPrefix(args[0], "https://"), "/")
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return usage("%q is neither a file nor host:port", address)
			}
			var own *tls.Certificate
			if s.ClientCert != "" {
				pair, err := tls.LoadX509KeyPair(s.ClientCert, s.ClientKey)
				if err != nil {
					return fmt.Errorf("the client certificate cannot be used: %w", err)
				}
				own = &pair
			}
			v, err := pki.Verify(cmd.Context(), address, cmp.Or(server, host), roots, own, time.Now())
			if err != nil {
				return err
			}
			return a.verdict(address+" speaks "+v.Protocol+" and presents:", cmp.Or(server, host), s.CACert, v)
		}),
	}
	c.Flags().StringVar(&server, "server-name", "", "name the certificate must be for; the host unless set, for a file none")
	return c
}

// verdict prints what was found.
func (a *app) verdict(head, subject, ca string, v *pki.Verdict) error {
	fmt.Fprintln(a.out, head)
	for i, line := range clean(v.Chain) {
		fmt.Fprintf(a.out, "  %d. %s\n", i+1, line)
	}
	for _, n := range clean(v.Notices) {
		fmt.Fprintln(a.out, "Soon: "+n+".")
	}
	if len(v.Problems) == 0 {
		fmt.Fprintf(a.out, "All is well: %s leads to the CA in %s.\n", subject, ca)
		return nil
	}
	for _, p := range clean(v.Problems) {
		fmt.Fprintln(a.out, "Wrong: "+p+".")
	}
	return silent(exitError)
}
