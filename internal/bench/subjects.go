package main

import "strings"

// subject is one way to carry a connection: a client near the load generator, a server near the target.
type subject struct {
	name           string
	server, client program // a subject without both is the bare loopback
	pools          bool    // the client makes connections before there is a use for them

	// only are the groups of measures that there are to take; empty: all.
	only []string
}

// program is how to start one end. In words, env and config these are replaced:
//
//	{listen} {listen-host} {listen-port}   where it accepts
//	{to} {to-host} {to-port}               where it connects: the client to the server, the server to the target
//	{target} {target-host} {target-port}   the target, for clients that name it
//	{cert} {key} {both} {ca}               PEM files for the name localhost; both is certificate and key
//	{config}                               a file with the text config
type program struct {
	words  []string
	env    []string
	config string
}

func (s subject) bare() bool { return s.server.words == nil }

// secure tells whether TLS is between client and server, so that sessions may resume.
func (s subject) secure() bool {
	return strings.Contains(s.name, "tls") || strings.Contains(s.name, "wss") || strings.HasPrefix(s.name, "stunnel")
}

const (
	ws        = "ws;host=localhost;path=/tunnel"
	serverTLS = "tls;cert={cert};key={key}"
	clientTLS = "tls;sni=localhost;ca={ca}"
	stapled   = serverTLS + ";ocsp={cert}" // kaminari sends an empty staple else, of which Go says that it is no TLS
)

// subjects are in the order of the tables: by transport, ours first. Others run at the best settings
// that they document.
var subjects = []subject{
	{name: "loopback"},
	// Two hops of the plainest relay there is: what goals are ratios to.
	{name: "relay", server: ourRole("relay"), client: ourRole("relay")},
	{name: "raimon tcp", server: raimons(""), client: raimonc("")},
	{name: "haproxy tcp", server: haproxy("{listen}", "{to}"), client: haproxy("{listen}", "{to}")},

	{name: "raimon ws", server: raimons(ws), client: raimonc(ws)},
	{name: "raimon ws reuse=off", only: []string{"connections", "firstbyte"}, server: raimons(ws), client: raimonc(ws + ";reuse=off")},
	{name: "raimon ws copied", // without splice(2), as on systems other than Linux
		server: program{words: []string{"portable/raimons", "{listen}", "{to}", ws}},
		client: program{words: []string{"portable/raimonc", "{listen}", "{to}", ws}}},
	{name: "raimon ws mask=standard", server: raimons(ws), client: raimonc(ws + ";mask=standard")},
	{name: "kaminari ws", server: kaminaris(ws), client: kaminaric(ws)},
	{name: "v2ray-plugin ws", server: v2rayServer("mux=0"), client: v2rayClient("mux=0")},
	{name: "v2ray-plugin ws mux", only: []string{"connections", "firstbyte"}, server: v2rayServer(""), client: v2rayClient("")},
	{name: "wstunnel ws",
		server: wstunnel("server", "--restrict-to", "{target}", "ws://{listen}"),
		client: wstunnel("client", "--connection-min-idle", "8", "-L", "tcp://{listen}:{target}", "ws://{to}")},
	{name: "chisel ws", // always encrypted, by SSH inside the WebSocket
		server: program{words: []string{"chisel", "server", "--host", "{listen-host}", "--port", "{listen-port}"}},
		client: program{words: []string{"chisel", "client", "http://{to}", "{listen}:{target}"}}},

	{name: "raimon tls", server: raimons(serverTLS), client: raimonc(clientTLS)},
	{name: "raimon tls full", only: []string{"connections"}, server: raimons(serverTLS), client: ourRole("client", "tls", "{ca}")},
	{name: "kaminari tls", server: kaminaris(serverTLS), client: kaminaric("tls;sni=localhost;insecure")},
	{name: "kaminari tls full", only: []string{"connections"}, server: kaminaris(stapled), client: ourRole("client", "tls", "{ca}")},
	{name: "stunnel", server: stunnelServer, client: stunnel("client = yes\nsni = localhost\nCAfile = {ca}\nverifyChain = yes\n")},
	{name: "stunnel full", only: []string{"connections"}, server: stunnelServer, client: ourRole("client", "tls", "{ca}")},
	{name: "haproxy tls", server: haproxyServer, client: haproxy("{listen}", "{to} ssl verify required ca-file {ca} sni str(localhost)")},
	{name: "haproxy tls full", only: []string{"connections"}, server: haproxyServer, client: ourRole("client", "tls", "{ca}")},

	{name: "raimon wss", server: raimons(ws + ";" + serverTLS), client: raimonc(ws + ";" + clientTLS)},
	{name: "raimon wss full", only: []string{"connections"}, server: raimons(ws + ";" + serverTLS), client: ourRole("client", "wss", "{ca}")},
	{name: "raimon wss reuse=off", only: []string{"connections", "firstbyte"}, server: raimons(ws + ";" + serverTLS), client: raimonc(ws + ";" + clientTLS + ";reuse=off")},
	{name: "raimon wss pool", pools: true, only: []string{"firstbyte"}, server: raimons(ws + ";" + serverTLS), client: raimonc(ws + ";" + clientTLS + ";pool=4")},
	{name: "kaminari wss", server: kaminaris(ws + ";" + serverTLS), client: kaminaric(ws + ";tls;sni=localhost;insecure")},
	{name: "kaminari wss full", only: []string{"connections"}, server: kaminaris(ws + ";" + stapled), client: ourRole("client", "wss", "{ca}")},
	{name: "v2ray-plugin wss", server: v2rayServer("mux=0;tls;cert={cert};key={key}"), client: v2rayClient("mux=0;tls;cert={ca}")},
	{name: "v2ray-plugin wss mux", only: []string{"connections", "firstbyte"}, server: v2rayServer("tls;cert={cert};key={key}"), client: v2rayClient("tls;cert={ca}")},
	{name: "wstunnel wss",
		server: wstunnel("server", "--restrict-to", "{target}", "--tls-certificate", "{cert}", "--tls-private-key", "{key}", "wss://{listen}"),
		client: wstunnel("client", "--connection-min-idle", "8", "-L", "tcp://{listen}:{target}", "wss://{to}")},
	{name: "chisel wss",
		server: program{words: []string{"chisel", "server", "--host", "{listen-host}", "--port", "{listen-port}", "--tls-cert", "{cert}", "--tls-key", "{key}"}},
		client: program{words: []string{"chisel", "client", "--tls-ca", "{ca}", "--hostname", "localhost", "https://{to}", "{listen}:{target}"}}},
}

// ourRole is this program again, in another role.
func ourRole(words ...string) program {
	return program{words: append([]string{"bench", words[0], "{listen}", "{to}"}, words[1:]...)}
}

func raimons(options string) program {
	return program{words: []string{"raimons", "{listen}", "{to}", options}}
}

func raimonc(options string) program {
	return program{words: []string{"raimonc", "{listen}", "{to}", options}}
}

func kaminaris(options string) program {
	return program{words: []string{"kaminaris", "{listen}", "{to}", options}}
}

// kaminaric trusts a list of its own and no file, hence insecure.
func kaminaric(options string) program {
	return program{words: []string{"kaminaric", "{listen}", "{to}", options}}
}

// v2rayServer and v2rayClient are v2ray-plugin as shadowsocks starts it.
func v2rayServer(options string) program {
	return program{words: []string{"ss-v2ray-plugin"}, env: []string{
		"SS_REMOTE_HOST={listen-host}", "SS_REMOTE_PORT={listen-port}", "SS_LOCAL_HOST={to-host}", "SS_LOCAL_PORT={to-port}",
		"SS_PLUGIN_OPTIONS=server;mode=websocket;host=localhost;path=/tunnel;loglevel=error;" + options}}
}

// v2rayClient has many connections share one unless mux=0: new ones cost less then, and bulk more.
func v2rayClient(options string) program {
	return program{words: []string{"ss-v2ray-plugin"}, env: []string{
		"SS_REMOTE_HOST={to-host}", "SS_REMOTE_PORT={to-port}", "SS_LOCAL_HOST={listen-host}", "SS_LOCAL_PORT={listen-port}",
		"SS_PLUGIN_OPTIONS=mode=websocket;host=localhost;path=/tunnel;loglevel=error;" + options}}
}

func wstunnel(words ...string) program {
	return program{words: append([]string{"wstunnel", "--log-lvl", "ERROR"}, words...)}
}

// cipherSuite is what raimon chooses; by themselves OpenSSL and kaminari, which has no option for it, choose AES with 256 bits.
const cipherSuite = "TLS_AES_128_GCM_SHA256"

var (
	stunnelServer = stunnel("cert = {cert}\nkey = {key}\n")
	haproxyServer = haproxy("{listen} ssl crt {both}", "{to}")
)

func stunnel(service string) program {
	return program{words: []string{"stunnel4", "{config}"}, config: `foreground = yes
pid =
syslog = no
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
ciphersuites = ` + cipherSuite + `
[tunnel]
accept = {listen}
connect = {to}
` + service}
}

func haproxy(bind, server string) program {
	return program{words: []string{"haproxy", "-db", "-q", "-f", "{config}"}, config: `global
	maxconn 6000
	log /dev/null local0
	tune.pipesize 1048576
	ssl-default-bind-ciphersuites ` + cipherSuite + `
	ssl-default-server-ciphersuites ` + cipherSuite + `
defaults
	mode tcp
	option splice-request
	option splice-response
	timeout connect 10s
	timeout client 10m
	timeout server 10m
listen tunnel
	bind ` + bind + `
	server next ` + server + `
`}
}
