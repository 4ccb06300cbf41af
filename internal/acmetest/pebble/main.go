// Pebble runs a certificate authority for tests on this machine until it is told to end. It prints one
// line of JSON that says where everything is.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"raimon/internal/acmetest"
)

// settings are what flags say beyond acmetest.Config.
type settings struct {
	config        acmetest.Config
	httpTo, tlsTo []string
	ocspValidity  time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	settings, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		os.Exit(2) // parse has said why
	}
	if err := run(ctx, settings, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pebble:", err)
		os.Exit(1)
	}
}

func parse(args []string, output io.Writer) (s settings, err error) {
	s.config.Profiles, s.config.ExternalAccounts = map[string]acmetest.Profile{}, map[string]string{}
	verbose := false
	flags := flag.NewFlagSet("pebble", flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&s.config.Address, "address", "", "listen here, host:`port`; default: a free port of 127.0.0.1")
	flags.StringVar(&s.config.Dir, "dir", "", "write root.pem and issuing-root.pem into this `folder`; default: a temporary one")
	flags.IntVar(&s.config.HTTPPort, "http-port", 0, "validate HTTP-01 on this `port` of the name's address")
	flags.IntVar(&s.config.TLSPort, "tls-port", 0, "validate TLS-ALPN-01 on this `port` of the name's address")
	flags.Func("http-to", "validate HTTP-01 at these `addresses`, host:port[,host:port...], in turn", list(&s.httpTo))
	flags.Func("tls-to", "validate TLS-ALPN-01 at these `addresses`, in turn", list(&s.tlsTo))
	flags.StringVar(&s.config.Resolver, "resolver", "", "ask this DNS server, `host:port`, over TCP; default: one of our own")
	flags.IntVar(&s.config.RejectNonces, "reject-nonces", 0, "refuse this many good nonces in a `hundred`; default 15, -1: none")
	flags.IntVar(&s.config.ReuseAuthorizations, "reuse", 0, "do not validate this many names in a `hundred` again")
	flags.Func("eab", "demand external accounts, and this is one: `id=key`, the key in base64url; repeatable", pair(func(id, key string) error {
		s.config.ExternalAccounts[id] = key
		return nil
	}))
	flags.Func("profile", "offer this profile: `name=validity`, such as shortlived=90s; repeatable", pair(func(name, validity string) error {
		d, err := time.ParseDuration(validity)
		s.config.Profiles[name] = acmetest.Profile{Description: "lives for " + validity, Validity: d}
		return err
	}))
	flags.Func("block", "refuse these `names` and all below them", list(&s.config.Blocked))
	flags.BoolVar(&s.config.OCSP, "ocsp", false, "run an OCSP responder and put its URL into certificates")
	flags.DurationVar(&s.ocspValidity, "ocsp-validity", time.Hour, "OCSP answers are good for this `long`")
	flags.DurationVar(&s.config.RenewalRetryAfter, "renewal-retry-after", 0, "renewal information is good for this `long`; default 6h")
	flags.BoolVar(&verbose, "v", false, "write Pebble's log to standard error")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if verbose {
		s.config.Log = os.Stderr
	}
	if len(s.config.Profiles) == 0 {
		s.config.Profiles = nil
	}
	return s, s.check(flags)
}

// check reports as flag does.
func (s *settings) check(flags *flag.FlagSet) error {
	problem := ""
	switch {
	case flags.NArg() > 0:
		problem = fmt.Sprintf("argument %q is not understood", flags.Arg(0))
	case s.config.HTTPPort != 0 && s.httpTo != nil:
		problem = "-http-port and -http-to exclude each other"
	case s.config.TLSPort != 0 && s.tlsTo != nil:
		problem = "-tls-port and -tls-to exclude each other"
	default:
		return nil
	}
	fmt.Fprintln(flags.Output(), problem)
	flags.Usage()
	return errors.New(problem)
}

func list(to *[]string) func(string) error {
	return func(text string) error {
		*to = append(*to, strings.Split(text, ",")...)
		return nil
	}
}

func pair(set func(name, value string) error) func(string) error {
	return func(text string) error {
		name, value, found := strings.Cut(text, "=")
		if !found || name == "" || value == "" {
			return fmt.Errorf("%q is not name=value", text)
		}
		return set(name, value)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, s settings, out io.Writer) (err error) {
	ca, err := acmetest.Start(s.config)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, ca.Close()) }()
	if s.httpTo != nil {
		ca.HTTP01.To(s.httpTo...)
	}
	if s.tlsTo != nil {
		ca.TLSALPN01.To(s.tlsTo...)
	}
	ocsp := ""
	if ca.OCSP != nil {
		ca.OCSP.SetValidity(s.ocspValidity)
		ocsp = ca.OCSP.URL
	}
	err = json.NewEncoder(out).Encode(struct {
		Directory   string `json:"directory"`
		Root        string `json:"root"`
		IssuingRoot string `json:"issuingRoot"`
		HTTPPort    int    `json:"httpPort"`
		TLSPort     int    `json:"tlsPort"`
		DNS         string `json:"dns"`
		OCSP        string `json:"ocsp,omitempty"`
		Management  string `json:"management"`
	}{
		ca.Directory, ca.Root.File, ca.IssuingRoot.File, ca.HTTP01.Port, ca.TLSALPN01.Port,
		ca.DNS.Address, ocsp, ca.Management,
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
