package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/pki"
)

func (a *app) tls() *cobra.Command {
	return group("tls", "Make certificates, and look at those of others", a.tlsCA(), a.tlsIssue(), a.tlsVerify())
}

func (a *app) tlsCA() *cobra.Command {
	var dir, domain, algorithm string
	var days int
	c := &cobra.Command{
		Use: "ca", Short: "Make a certificate authority: ca.crt and ca.key", Args: cobra.NoArgs,
		RunE: a.do(func(*cobra.Command, []string) error {
			ca, err := pki.NewCA(domain, pki.Algorithm(algorithm), time.Duration(days)*24*time.Hour, time.Now())
			if err != nil {
				return err
			}
			return a.store(ca, filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
		}),
	}
	c.Flags().StringVar(&dir, "dir", ".", "folder to write to")
	c.Flags().StringVar(&domain, "trust-domain", "muster", "trust domain of all ids the CA signs")
	c.Flags().StringVar(&algorithm, "algorithm", "ecdsa", "ecdsa (P-256) or ed25519")
	c.Flags().IntVar(&days, "days", 3650, "how long it is valid")
	return c
}

func (a *app) store(p *pki.Pair, crt, key string) error {
	if err := p.Write(crt, key); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s\n%s\n", crt, key)
	a.say("%s", pki.Describe(p.Certificate))
	return nil
}

func (a *app) tlsIssue() *cobra.Command {
	var r pki.Request
	var caCert, caKey, domain, dir, base, algorithm string
	var days int
	c := &cobra.Command{
		Use: "issue --node ID | --role ROLE", Short: "Make a certificate for a node or for a client with a role", Args: cobra.NoArgs,
		Example: "  muster tls issue --node n1 --host 10.0.0.1 --host n1.example.org\n  muster tls issue --role operator\n  muster tls issue --role publisher --for-namespace shop --name ci",
		RunE: a.do(func(*cobra.Command, []string) error {
			if (r.Node == "") == (r.Role == "") {
				return usage("say what the certificate is for: --node ID or --role ROLE")
			}
			ca, err := pki.Read(caCert, cmp.Or(caKey, strings.TrimSuffix(caCert, ".crt")+".key"))
			if err != nil {
				return err
			}
			if domain == "" {
				if domain, err = ca.TrustDomain(); err != nil {
					return err
				}
			}
			r.Algorithm, r.Validity = pki.Algorithm(algorithm), time.Duration(days)*24*time.Hour
			p, err := ca.Issue(domain, r, time.Now())
			if err != nil {
				return err
			}
			base := cmp.Or(base, r.Node, r.Name, r.Role)
			return a.store(p, filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key"))
		}),
	}
	f := c.Flags()
	f.StringVar(&r.Node, "node", "", "id of the node the certificate is for")
	f.StringArrayVar(&r.Hosts, "host", nil, "further name or address of the node; may be repeated")
	f.StringVar(&r.Role, "role", "", "role of the client the certificate is for: "+strings.Join(pki.Roles, ", "))
	f.StringVar(&r.Namespace, "for-namespace", "", "limit the role to a namespace")
	f.StringVar(&r.Name, "name", "", "tell holders of the same role apart")
	f.StringVar(&caCert, "ca", "ca.crt", "the CA's certificate")
	f.StringVar(&caKey, "ca-key", "", "the CA's key; beside its certificate unless set")
	f.StringVar(&domain, "trust-domain", "", "trust domain; that of the CA unless set")
	f.StringVar(&dir, "dir", ".", "folder to write to")
	f.StringVar(&base, "out", "", "name of the files, without .crt and .key")
	f.StringVar(&algorithm, "algorithm", "ecdsa", "ecdsa (P-256) or ed25519")
	f.IntVar(&days, "days", 365, "how long it is valid")
	return c
}

func (a *app) tlsVerify() *cobra.Command {
	var server string
	c := &cobra.Command{
		Use: "verify HOST:PORT", Short: "Print the certificates a listener presents and what is wrong with them, in words", Args: cobra.ExactArgs(1),
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			s, err := a.settings.resolve(a.env)
			if err != nil {
				return err
			}
			address := strings.TrimSuffix(strings.TrimPrefix(args[0], "https://"), "/")
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return usage("%q is not host:port", address)
			}
			if s.CACert == "" {
				return usage("name the CA to trust, with --cacert or MUSTER_CACERT")
			}
			roots, err := pki.Roots(s.CACert)
			if err != nil {
				return err
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
			fmt.Fprintf(a.out, "%s speaks %s and presents:\n", address, v.Protocol)
			for i, line := range clean(v.Chain) {
				fmt.Fprintf(a.out, "  %d. %s\n", i+1, line)
			}
			if len(v.Problems) == 0 {
				fmt.Fprintf(a.out, "All is well: %s leads to the CA in %s.\n", cmp.Or(server, host), s.CACert)
				return nil
			}
			for _, p := range clean(v.Problems) {
				fmt.Fprintln(a.out, "Wrong: "+p+".")
			}
			return silent(exitError)
		}),
	}
	c.Flags().StringVar(&server, "server-name", "", "name the certificate must be for; the host unless set")
	return c
}
