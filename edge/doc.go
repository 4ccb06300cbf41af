// Package edge is what only the public server needs: its certificates.
//
// It knows no config file and no ACME: certificates come in as GetCertificate functions.
package edge
