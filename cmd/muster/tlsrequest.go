package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/pki"
)

func (a *app) tlsRequest() *cobra.Command {
	var id, dir, base, algorithm, file, authority string
	var hosts []string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "request [--spiffe-id ID]", Short: "Have the cluster make a certificate for a workload", Args: cobra.NoArgs,
		Long: "Have the cluster make a certificate for a workload: makes a key, sends a signing request,\n" +
			"and writes NAME.crt and NAME.key. The key stays here. Roles and policy decide who gets\n" +
			"which id; with a client certificate of a workload's, its own is the default.",
		Example: "  muster tls request --spiffe-id spiffe://muster/ns/shop/svc/cart --host cart.shop.svc.muster\n  muster tls request --csr cart.csr --out cart",
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			var csr *pki.CSR
			made := &pki.Pair{}
			var err error
			if file != "" {
				if cmd.Flags().Changed("algorithm") || len(hosts) > 0 {
					return usage("the signing request brings its key and its hosts; leave --algorithm and --host out")
				}
				csr, err = pki.ReadCSR(file)
				if csr != nil && id == "" && len(csr.IDs()) > 0 {
					id = csr.IDs()[0].String()
				}
			} else {
				csr, made.Key, err = pki.NewCSR(nil, pki.Algorithm(algorithm), id, hosts)
			}
			if err != nil {
				return err
			}
			name := cmp.Or(base, id[strings.LastIndexByte(id, '/')+1:], "workload")
			crt, key := pair(dir, name)
			for _, f := range []string{crt, key} {
				if _, err := os.Lstat(f); err == nil && (f == crt || file == "") {
					return fmt.Errorf("%s exists and is not replaced; move it away, choose another --out, or use muster tls renew: %w", f, fs.ErrExist)
				}
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			got, err := c.RequestCertificate(cmd.Context(), csr.PEM(), id, ttl)
			if err != nil {
				return err
			}
			if err := given(made, got); err != nil {
				return err
			}
			if authority != "" {
				cas, err := pki.DecodeCertificates([]byte(got.Authority))
				if err != nil {
					return fmt.Errorf("the answer's authority cannot be used: %w", err)
				}
				if err := (&pki.Pair{Certificate: cas[0]}).Replace(authority); err != nil {
					return err
				}
			}
			return a.store(made, crt, key)
		}),
	}
	f := c.Flags()
	f.StringVar(&id, "spiffe-id", "", "SPIFFE id of the workload; else that of the signing request, or of the client certificate")
	f.StringArrayVar(&hosts, "host", nil, "name or address of the workload; may be repeated")
	f.StringVar(&file, "csr", "", "signing request (PKCS #10, PEM) whose key is certified; no key is made then")
	f.StringVar(&dir, "dir", ".", "folder to write to, unless --out is an absolute path")
	f.StringVar(&base, "out", "", "name of the files, without .crt and .key; the last part of the id unless set")
	f.StringVar(&authority, "authority", "", "file to write the authority to, by which others verify the certificate")
	f.StringVar(&algorithm, "algorithm", string(pki.ECDSA), algorithms())
	f.DurationVar(&ttl, "ttl", 0, "how long it is valid, such as 1h; as long as the cluster allows unless set")
	return c
}

// given takes over the certificate of an answer.
func given(p *pki.Pair, c *client.Certificate) error {
	chain, err := pki.DecodeCertificates([]byte(c.PEM))
	if err != nil {
		return fmt.Errorf("the answer's certificate cannot be used: %w", err)
	}
	p.Certificate, p.Chain = chain[0], chain[1:]
	return nil
}

func (a *app) tlsRenew() *cobra.Command {
	var ttl, left time.Duration
	c := &cobra.Command{
		Use: "renew CERT [KEY]", Short: "Have the cluster renew a workload's certificate, which proves who asks", Args: cobra.RangeArgs(1, 2),
		Long: "Have the cluster renew a workload's certificate, which proves who asks. The new one, with\n" +
			"the same id, hosts and key, takes the place of the file in one step; where more than a third\n" +
			"of its time is left, or more than --left, nothing is done. So it can be run by a timer.",
		Example: "  muster tls renew cart.crt    # and cart.key beside it",
		RunE: a.do(func(cmd *cobra.Command, args []string) error {
			crt, key := args[0], strings.TrimSuffix(args[0], filepath.Ext(args[0]))+".key"
			if len(args) == 2 {
				key = args[1]
			}
			old, err := pki.Read(crt, key)
			if err != nil {
				return err
			}
			cert := old.Certificate
			if left == 0 {
				left = cert.NotAfter.Sub(cert.NotBefore) / 3
			}
			if rest := time.Until(cert.NotAfter); rest > left {
				a.say("%s is good until %s; nothing was done", crt, cert.NotAfter.Local().Format(time.DateTime))
				return nil
			} else if rest <= 0 {
				return errors.New("the certificate has ended, and proves nothing any more: get a new one with muster tls request and another credential")
			}
			if len(cert.URIs) != 1 {
				return errors.New("the certificate is not a workload's: it has no SPIFFE id, or several")
			}
			hosts := append([]string(nil), cert.DNSNames...)
			for _, ip := range cert.IPAddresses {
				hosts = append(hosts, ip.String())
			}
			csr, _, err := pki.NewCSR(old.Key, "", cert.URIs[0].String(), hosts)
			if err != nil {
				return err
			}
			c, err := a.dialAs(crt, key)
			if err != nil {
				return err
			}
			got, err := c.RequestCertificate(cmd.Context(), csr.PEM(), "", ttl)
			if err != nil {
				return err
			}
			renewed := &pki.Pair{}
			if err := given(renewed, got); err != nil {
				return err
			}
			if err := renewed.Replace(crt); err != nil {
				return err
			}
			fmt.Fprintln(a.out, crt)
			a.say("%s", pki.Describe(renewed.Certificate))
			return nil
		}),
	}
	f := c.Flags()
	f.DurationVar(&ttl, "ttl", 0, "how long the new one is valid, such as 1h; as long as the cluster allows unless set")
	f.DurationVar(&left, "left", 0, "renew when no more than this is left, such as 8h; a third of its time unless set")
	return c
}
