package localproxy

import (
	"net/http"

	"raimon/tunnel"
)

// reason is what a program is told of a connection that did not come about. The error itself stays in the log: it may
// hold the address of the edge, and a page whose plain http:// URL is asked for may read what it is answered.
type reason struct {
	socks  byte
	status int
	text   string // for people
}

// reasons go by the words of tunnel.Reason.
var reasons = map[string]reason{
	tunnel.ReasonRefused:     {replyRefused, http.StatusBadGateway, "nobody listens there"},
	tunnel.ReasonUnreachable: {replyHost, http.StatusBadGateway, "no way leads there"},
	tunnel.ReasonTimeout:     {replyExpired, http.StatusGatewayTimeout, "no answer came in time"},
	tunnel.ReasonName:        {replyHost, http.StatusBadGateway, "there is no such name"},
	tunnel.ReasonForbidden:   {replyForbidden, http.StatusForbidden, "the tunnel may not lead there"},
	tunnel.ReasonBusy:        {replyFailure, http.StatusServiceUnavailable, "too many connections are open; try again in a while"},
}

func reasonOf(err error) reason {
	if r, ok := reasons[tunnel.Reason(err)]; ok {
		return r
	}
	return reason{replyFailure, http.StatusBadGateway, "the connection did not come about; the log of raimonc says why"}
}
