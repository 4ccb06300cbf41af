// Package edge is what only the public server needs: its certificates and its session-ticket keys.
//
// It knows no config file and no ACME: certificates come in as GetCertificate functions.
package edge
