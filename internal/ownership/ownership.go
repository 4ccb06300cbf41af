// Package ownership keeps what the superuser creates usable for the user whose folder it is in: an edge, or
// a command, that is run as root for once does not lock the others out.
package ownership
