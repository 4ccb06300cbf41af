package main

const (
	// maxConnections is how many are allowed where the limit of open files is higher or there is none.
	maxConnections = 1_000_000
	// reservedFiles are kept for all that is no tunnel: listeners, standard streams, files that are read anew, the
	// storage and the CA, and the 32 pipes through which bytes move.
	reservedFiles = 192
	// filesPerTunnel are its two ends.
	filesPerTunnel = 2
)

// fitting is how many connections fit into a limit of open files. Of a tiny one half is for tunnels; one connection
// always is allowed.
func fitting(files uint64) int {
	reserved := min(reservedFiles, files/2)
	return int(max(1, min((files-reserved)/filesPerTunnel, maxConnections)))
}
