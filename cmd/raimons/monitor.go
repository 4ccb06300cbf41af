package main

import (
	"context"
	"net"
	"slices"
	"strings"

	"raimon/edge"
	"raimon/internal/command"
	"raimon/storage"
	"raimon/tunnel"
)

// healthy says whether this process still does something.
func (d *deployment) healthy(context.Context) error {
	d.server.Tunnels() // it would wait for ever if the server did
	return nil
}

// startAdmin opens the listener for metrics and status.
func (d *deployment) startAdmin(ctx context.Context) error {
	address := d.file.Admin.Listen
	if address == "" {
		return nil
	}
	listen := tunnel.ListenConfig{Log: d.job.Log, Have: func(address string) net.Listener { return d.have(adminKey + address) }}
	opened, err := listen.Listen(ctx, address)
	if err != nil {
		return d.file.wrong("admin.listen", err.Error(), command.Hint(d.inUse(err)))
	}
	d.adminListener, d.adminAddress = opened[0], address
	admin := &edge.Admin{
		Server: d.server, Metrics: d.server.Metrics, Certificates: d.certificateStatus, Storage: d.checkStorage,
		TokenFile: d.file.Admin.Token, Recent: d.recent, Log: d.job.Log, Version: command.Version(),
	}
	d.job.Log.Info("listening for metrics and status", "address", d.adminListener.Addr().String())
	d.running.Go(func() {
		if err := admin.Serve(ctx, d.adminListener); err != nil && ctx.Err() == nil {
			d.job.Log.Error("metrics and status", "error", err, "hint", command.Hint(err))
		}
	})
	return nil
}

// certificateStatus tells of all certificates, those from files too.
func (d *deployment) certificateStatus() (all []edge.CertificateStatus) {
	d.mu.Lock()
	parts, c := d.parts, d.certificates
	d.mu.Unlock()
	if c != nil && c.managed != nil {
		for _, s := range c.managed.Status() {
			all = append(all, edge.CertificateStatus(s))
		}
	}
	for _, p := range parts {
		switch c := p.value.(type) {
		case *edge.CertificateFiles:
			all = append(all, c.Status()...)
		case *selfSigned:
			leaf := c.cert.Leaf
			all = append(all, edge.CertificateStatus{Name: c.job.Options.ServerName, Issuer: "self-signed", NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter})
		}
	}
	slices.SortFunc(all, func(a, b edge.CertificateStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// checkStorage says why the storage cannot be written to.
func (d *deployment) checkStorage(ctx context.Context) error {
	root := storageRoot(d.job.Options.Storage)
	if root == "" {
		return nil
	}
	return storage.Check(ctx, &storage.File{Root: root})
}
