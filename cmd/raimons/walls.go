package main

import (
	"slices"
	"strings"

	"raimon/acme/dns"
	"raimon/internal/sandbox"
)

// restrict takes all files from us that the config does not name.
func (d *deployment) restrict() error {
	switch {
	case d.job.NoSandbox:
		d.job.Log.Info("sandbox", "state", "off: -no-sandbox")
		return nil
	case d.file.runsPrograms():
		d.job.Log.Info("sandbox", "state", "off: the config names a program, which may need anything")
		return nil
	}
	s, err := sandbox.Restrict(d.reach(d.file))
	if err != nil {
		return err
	}
	d.sandbox = s
	d.job.Log.Info("sandbox", "state", s.State)
	return nil
}

// runsPrograms tells whether the config names programs.
func (c *configFile) runsPrograms() bool {
	return dns.Runs(c.ACME.DNS) || c.ACME.OnDemand != "" && !strings.Contains(c.ACME.OnDemand, "://")
}

// reach are the files that the config needs.
func (d *deployment) reach(c *configFile) sandbox.Paths {
	p := sandbox.Paths{Read: []string{c.from.Name, c.ACME.Root, c.Admin.Token}, Write: dns.Files(c.ACME.DNS)}
	for _, s := range c.Sites {
		p.Read = append(p.Read, s.Cert, s.Key, s.OCSP, s.Root, s.ClientCA, s.ClientCRL, s.Tokens)
		for _, r := range s.Routes {
			p.Read = append(p.Read, r.Tokens)
		}
		p.Write = append(p.Write, s.AccessLog)
	}
	for _, e := range c.ACME.EAB {
		name, _ := strings.CutPrefix(e, "file:")
		if name != e {
			p.Read = append(p.Read, name)
		}
	}
	addresses := append([]string{c.Admin.Listen, c.HTTP}, c.Listen...)
	for _, l := range c.Listeners {
		addresses = append(addresses, l.Address)
	}
	for _, a := range addresses {
		if path, found := strings.CutPrefix(a, "unix:"); found {
			p.Write = append(p.Write, path)
		}
	}
	p.Write = append(p.Write, storageRoot(d.job.Options.Storage))
	given := func(all []string) []string { return slices.DeleteFunc(all, func(s string) bool { return s == "" }) }
	p.Read, p.Write = given(p.Read), given(p.Write)
	return p
}
