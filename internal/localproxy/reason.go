package localproxy

import (
	"errors"
	"net"
	"net/http"

	"raimon/tunnel"
)

// reason is what a program is told of a connection that did not come about. The error itself stays in the log: it may
// hold the address of the edge, and a browser shows the page that asked for a plain http:// URL what it is answered.
type reason struct {
	socks  byte
	status int
	text   string // for people
}

// reasons go by the words of TargetReason.
var reasons = map[string]reason{
	"refused":     {replyRefused, http.StatusBadGateway, "nobody listens there"},
	"unreachable": {replyHost, http.StatusBadGateway, "no way leads there"},
	"timeout":     {replyExpired, http.StatusGatewayTimeout, "no answer came in time"},
	"name":        {replyHost, http.StatusBadGateway, "there is no such name"},
	"forbidden":   {replyForbidden, http.StatusForbidden, "the tunnel does not lead there: that is not allowed"},
	"busy":        {replyFailure, http.StatusServiceUnavailable, "too many connections are open; try again in a while"},
}

// reasonOf finds out why there is no connection: from what the other end has said, or else from errors of the system.
func reasonOf(err error) reason {
	if told, ok := errors.AsType[interface {
		error
		TargetReason() string
	}](err); ok {
		if r, ok := reasons[told.TargetReason()]; ok {
			return r
		}
	}
	network, isNetwork := errors.AsType[net.Error](err)
	_, isLookup := errors.AsType[*net.DNSError](err)
	switch {
	case tunnel.IsRefused(err):
		return reasons["refused"]
	case errors.Is(err, errNetworkUnreachable):
		return reason{replyNetwork, http.StatusBadGateway, "no way leads to that network"}
	case errors.Is(err, errHostUnreachable):
		return reasons["unreachable"]
	case errors.Is(err, tunnel.ErrTimeout), isNetwork && network.Timeout():
		return reasons["timeout"]
	case isLookup:
		return reasons["name"]
	}
	return reason{replyFailure, http.StatusBadGateway, "the connection did not come about; the log of raimonc says why"}
}
