package options

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"raimon/internal/resolve"
)

var (
	pinA, pinB = sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	pinStd     = base64.StdEncoding.EncodeToString(pinA[:]) // ends in "="
	pinURL     = base64.RawURLEncoding.EncodeToString(pinB[:])
)

// parseTests say, for one side and one string, how the result differs from the defaults.
var parseTests = []struct {
	side     Side
	s        string
	want     func(*Options)
	warnings []string // a part of each
}{
	// what may be given several times
	{Client, `ws;host=example.com;path=/ws;header=X-One: a, b\; c=d;header = X-Two:file:/a b ;header=X-Three: command:pass show x`, func(o *Options) {
		ws(o)
		o.Header = []Header{{"X-One", "a, b; c=d"}, {"X-Two", "file:/a b"}, {"X-Three", "command:pass show x"}}
	}, nil},
	{Client, "ws;host=example.com;path=/ws;header=Authorization: Basic x;user-agent=Mozilla/5.0 (X11\\; Linux)", func(o *Options) {
		ws(o)
		o.Header, o.UserAgent = []Header{{"Authorization", "Basic x"}}, "Mozilla/5.0 (X11; Linux)"
	}, nil},
	{Client, "user-agent=;proxy-auth=", nil, nil},
	{Client, "proxy-auth=jo:a:b c", func(o *Options) { o.ProxyAuth = "jo:a:b c" }, nil},
	{Client, "proxy=http://a:1;proxy-auth=file:x", func(o *Options) { o.Proxy, o.ProxyAuth = "http://a:1", "file:x" }, nil},
	{Client, "proxy=off;proxy-auth=file:x", func(o *Options) { o.Proxy = "off" }, []string{"proxy-auth"}},
	{Server, "header=X: y;header=Y: z", nil, []string{"has no effect in raimons", "repeated"}},

	// grammar
	{Client, "", nil, nil},
	{Client, " ;; ; ", nil, nil},
	{Client, "ws;host=example.com;path=/ws", ws, nil},
	{Client, " ws ; host = example.com ;\tpath = /ws ;", ws, nil},
	{Client, "ws;host=example.com;path=/ws?a=b&c=d", func(o *Options) { ws(o); o.Path = "/ws?a=b&c=d" }, nil},
	{Client, `ws;host=example.com;path=/a\;b\=c`, func(o *Options) { ws(o); o.Path = "/a;b=c" }, nil},
	{Client, `tls;sni=a;ca=C:\x\y.pem`, func(o *Options) { tls(o); o.CA = `C:\x\y.pem` }, nil},
	{Client, `tls;sni=a;ca=\\\\host\x`, func(o *Options) { tls(o); o.CA = `\\host\x` }, nil},
	{Client, `tls;sni=a;ca=x\\`, func(o *Options) { tls(o); o.CA = `x\` }, nil},
	{Client, `tls;sni=a;ca=x\ `, func(o *Options) { tls(o); o.CA = `x\` }, nil},
	{Client, "ws=1;host=example.com;path=/ws", ws, nil},
	{Client, "ws=true;host=example.com;path=/ws", ws, nil},
	{Client, "ws=;host=example.com;path=/ws", ws, nil},

	{Client, "ws;host=example.com;path=/ws;token=a-b_c~.+/==", func(o *Options) { ws(o); o.Token = "a-b_c~.+/==" }, nil},
	{Client, "ws;host=example.com;path=/ws;token=file:/a b", func(o *Options) { ws(o); o.Token = "file:/a b" }, nil},
	{Client, `ws;host=example.com;path=/ws;token=command:"/a b" c`, func(o *Options) { ws(o); o.Token = `command:"/a b" c` }, nil},

	{Client, "dns=[2620:fe::fe]:53", func(o *Options) { o.Resolver = nameServer("[2620:fe::fe]:53") }, nil},
	{Client, "dns=https://dns.quad9.net/dns-query?a=b;fastOpen", func(o *Options) {
		o.Resolver, o.FastOpen = nameServer("https://dns.quad9.net/dns-query?a=b"), true
	}, nil},
	{Client, "dns=", nil, nil},

	// what is ignored
	{Server, "token=x", nil, []string{`"token" has no effect in raimons: it is for raimonc`}},
	{Client, "tls;sni=a;sni=b", tls, []string{`"sni" is repeated`}},
	{Client, "tls;sni=a;key=k;key=k", tls, []string{`"key" has no effect in raimonc: it is for raimons`, `"key" is repeated`}},
	{Server, "sni=a;insecure", nil, []string{`"sni" has no effect in raimons: it is for raimonc`, `"insecure" has no effect`}},
	{Client, "tsl", nil, []string{`"tsl" is unknown and ignored: did you mean "tls"?`}},
	{Client, "fastopen", nil, []string{`did you mean "fastOpen"?`}},
	{Client, "TLS", nil, []string{`did you mean "tls"?`}},
	{Client, "clientcert=x", nil, []string{`did you mean "client-cert"?`}},
	{Server, "srvername=x", nil, []string{`did you mean "servername"?`}},
	{Server, "email=a@b", func(o *Options) { o.Email = "a@b" }, []string{`"email" has no effect without acme`}},
	{Client, "quux=1;x", nil, []string{`"quux" is unknown and ignored`, `"x" is unknown and ignored`}},
	{Client, "ping=5", func(o *Options) { o.Ping = 5 * time.Second }, []string{`"ping" has no effect without ws`}},
	{Server, "server", nil, []string{`"server": v2ray-plugin means mode=websocket`}},

	// WebSocket
	{Client, "ws;host=example.com;path=/ws;mask=fixed", func(o *Options) { ws(o); o.Mask = "fixed" }, nil},
	{Client, "ws;host=example.com;path=/ws;socks;pool=3;wait=1m", func(o *Options) { ws(o); o.Socks, o.Pool, o.Wait = true, 3, time.Minute }, nil},
	{Client, "ws;host=example.com;path=/ws;socks;socks-auth=jo:a:b", func(o *Options) { ws(o); o.Socks, o.SocksAuth = true, "jo:a:b" }, nil},
	{Client, "wait=0", func(o *Options) { o.Wait = 0 }, nil},
	{Client, "ws;host=example.com;path=/ws;mask=standard", func(o *Options) { ws(o); o.Mask = "standard" }, nil},
	{Client, "ws;host=example.com;path=/ws;mask=skipped", ws, nil},
	{Server, "ws;host=example.com;path=/ws", ws, nil},
	{Server, "ws;host=[::1]:80;path=/%20", func(o *Options) { ws(o); o.Host, o.Path = "[::1]:80", "/%20" }, nil},
	{Client, "mode=websocket;host=example.com", func(o *Options) { ws(o); o.Path = "/" }, nil},
	{Client, "mode=websocket;host=example.com;path=/ws", ws, nil},
	{Server, "server;mode=websocket", func(o *Options) { ws(o); o.Host, o.Path = "", "/" }, nil},
	{Server, "server;mode=websocket;host=example.com;mux=0", func(o *Options) { ws(o); o.Path = "/" }, nil},
	{Client, "mode=websocket;host=example.com:8443;path=/ws;tls", func(o *Options) {
		ws(o)
		o.Host, o.TLS, o.SNI = "example.com:8443", true, "example.com"
	}, nil},
	{Client, "mode=websocket;host=[::1];path=/ws;tls", func(o *Options) { ws(o); o.Host, o.TLS, o.SNI = "[::1]", true, "::1" }, nil},
	{Client, "mode=websocket;host=example.com;path=/ws;tls;sni=a", func(o *Options) { ws(o); tls(o) }, nil},

	// TLS, client
	{Client, "tls;sni=a", tls, nil},
	{Client, "tls;sni=::1", func(o *Options) { tls(o); o.SNI = "::1" }, nil},
	{Client, "tls;sni=a;alpn= h2 ,,http/1.1,", func(o *Options) { tls(o); o.ALPN = []string{"h2", "http/1.1"} }, nil},
	{Client, "tls;sni=a;alpn=", tls, nil},
	{Client, "alpn=", nil, nil},
	{Client, "tls;sni=a;insecure", func(o *Options) { tls(o); o.Insecure = true }, nil},
	{Client, "tls;sni=a;0rtt", func(o *Options) { tls(o); o.ZeroRTT = true }, nil},
	{Client, "tls;sni=a;ca=ca.pem", func(o *Options) { tls(o); o.CA = "ca.pem" }, nil},
	{Client, "tls;sni=a;cert=ca.pem", func(o *Options) { tls(o); o.CA = "ca.pem" }, nil},
	{Client, "tls;sni=a;cert=x;ca=ca.pem", func(o *Options) { tls(o); o.CA = "ca.pem" }, []string{`"cert" has no effect`}},
	{Client, "tls;sni=a;ca=ca.pem;cert=x", func(o *Options) { tls(o); o.CA = "ca.pem" }, []string{`"cert" has no effect`}},
	{Client, "tls;sni=a;pin=" + pinStd, func(o *Options) { tls(o); o.Pins = [][]byte{pinA[:]} }, nil},
	{Client, "tls;sni=a;pin=" + pinStd + ", " + pinURL, func(o *Options) { tls(o); o.Pins = [][]byte{pinA[:], pinB[:]} }, nil},
	{Client, "tls;sni=a;client-cert=c;client-key=k", func(o *Options) { tls(o); o.ClientCert, o.ClientKey = "c", "k" }, nil},

	// TLS, server
	{Server, "tls;cert=c;key=k", certAndKey, nil},
	{Server, "tls;cert=c;key=k;ocsp=o;0rtt", func(o *Options) { certAndKey(o); o.OCSP, o.ZeroRTT = "o", true }, nil},
	{Server, "tls;cert=c;key=k;servername=;ocsp=", certAndKey, nil},
	{Server, "tls;servername=a", selfSigned, nil},
	{Server, "tls;cert=c;key=k;servername=a", func(o *Options) { certAndKey(o); selfSigned(o) }, nil},
	{Server, "tls;acme=a.test, b.test", func(o *Options) { o.TLS, o.ACME = true, []string{"a.test", "b.test"} }, nil},
	{Server, "tls;acme=a.test;cert=c;key=k;servername=a", func(o *Options) {
		certAndKey(o)
		selfSigned(o)
		o.ACME = []string{"a.test"}
	}, nil},
	{Server, "tls;acme=a.test;cert=c", func(o *Options) { o.TLS, o.ACME = true, []string{"a.test"} }, []string{`"cert" has no effect without key: acme is used`}},
	{Server, "tls;on-demand=/bin/true;key=k", func(o *Options) { o.TLS, o.OnDemand = true, "/bin/true" }, []string{`"key" has no effect without cert: on-demand is used`}},
	{Server, "tls;acme=a.test;acme-ca=zerossl,letsencrypt;eab=k:s,;email=a@b;profile=p;key-type=p384;http=:8080;dns=exec:/x;acme-root=r", func(o *Options) {
		o.TLS, o.ACME, o.ACMECAs, o.EAB = true, []string{"a.test"}, []string{"zerossl", "letsencrypt"}, []string{"k:s", ""}
		o.Email, o.Profile, o.KeyType, o.HTTP, o.DNS, o.ACMERoot = "a@b", "p", "p384", ":8080", "exec:/x", "r"
	}, nil},
	{Server, "tls;servername=a;http=off;dns=x", func(o *Options) { selfSigned(o); o.HTTP, o.DNS = "off", "x" }, []string{`"http" has no effect without acme`, `"dns" has no effect without acme`}},
	{Server, "tls;cert=c;servername=a", selfSigned, []string{`"cert" has no effect without key`}},
	{Server, "tls;key=k;servername=a", selfSigned, []string{`"key" has no effect without cert`}},
	{Server, "tls;servername=a;ocsp=o", selfSigned, []string{`"ocsp" has no effect`}},

	// network, limits, v2ray-plugin
	{Client, "proxy=off", func(o *Options) { o.Proxy = "off" }, nil},
	{Client, "proxy=", nil, nil},
	{Client, "proxy=http://127.0.0.1:3128/", func(o *Options) { o.Proxy = "http://127.0.0.1:3128/" }, nil},
	{Client, "proxy=https://proxy", func(o *Options) { o.Proxy = "https://proxy" }, nil},
	{Client, "proxy=socks5://u:p@[::1]:1080", func(o *Options) { o.Proxy = "socks5://u:p@[::1]:1080" }, nil},
	{Client, "proxy=socks5h://localhost", func(o *Options) { o.Proxy = "socks5h://localhost" }, nil},
	{Client, "timeout=3", func(o *Options) { o.Timeout = 3 * time.Second }, nil},
	{Client, "timeout=1.5", func(o *Options) { o.Timeout = 1500 * time.Millisecond }, nil},
	{Client, "timeout=1m30s", func(o *Options) { o.Timeout = 90 * time.Second }, nil},
	{Server, "drain=0", func(o *Options) { o.Drain = 0 }, nil},
	{Server, "drain=off", func(o *Options) { o.Drain = 0 }, nil},
	{Server, "linger=off", func(o *Options) { o.Linger = Off }, nil},
	{Server, "linger=0s", func(o *Options) { o.Linger = Off }, nil},
	{Client, "reuse=5", func(o *Options) { o.Reuse = 5 * time.Second }, []string{`"reuse" has no effect without ws`}},
	{Client, "ws;host=example.com;path=/ws;reuse=off", func(o *Options) { ws(o); o.Reuse = 0 }, nil},
	{Server, "ws;host=example.com;path=/ws;ping=off", func(o *Options) { ws(o); o.Ping = Off }, nil},
	{Server, "ws;host=example.com;path=/ws;ping=0", func(o *Options) { ws(o); o.Ping = Off }, nil},
	{Client, "fastOpen;fwmark=255;loglevel=DEBUG;mux=0;__android_vpn", func(o *Options) {
		o.FastOpen, o.Fwmark, o.LogLevel, o.AndroidVPN = true, 255, "debug", true
	}, nil},
	{Server, "fwmark=0xffffffff;loglevel=none;fastOpen=1", func(o *Options) {
		o.FastOpen, o.Fwmark, o.LogLevel = true, 1<<32-1, "none"
	}, nil},
	{Server, "__android_vpn", nil, []string{`"__android_vpn" has no effect in raimons: it is for raimonc`}},
}

func nameServer(text string) *resolve.Server {
	s, err := resolve.Parse(text)
	if err != nil {
		panic(err)
	}
	return s
}

func ws(o *Options)         { o.WS, o.Host, o.Path = true, "example.com", "/ws" }
func tls(o *Options)        { o.TLS, o.SNI = true, "a" }
func certAndKey(o *Options) { o.TLS, o.Cert, o.Key = true, "c", "k" }
func selfSigned(o *Options) { o.TLS, o.ServerName = true, "a" }

func TestParse(t *testing.T) {
	for _, test := range parseTests {
		t.Run(test.side.String()+" "+test.s, func(t *testing.T) {
			want := &Options{Timeout: 10 * time.Second, Drain: 10 * time.Second, Linger: time.Minute, Ping: 30 * time.Second}
			if test.side == Client {
				want.Mask, want.Reuse, want.Wait = "skip", 30*time.Second, 15*time.Second
			}
			if test.want != nil {
				test.want(want)
			}

			got, err := Parse(test.side, test.s)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got.Warnings, test.warnings, strings.Contains) {
				t.Errorf("warnings %q, want %q", got.Warnings, test.warnings)
			}
			got.Warnings = nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// errorTests say which option is refused and give a part of the problem and of the hint.
var errorTests = []struct {
	side                  Side
	s                     string
	option, problem, hint string
}{
	// headers and the login at a proxy
	{Client, "header=X: y", "header", "ws is not given", "add ws"},
	{Client, "ws;host=a;path=/;header=", "header", "no value", "<name: value>"},
	{Client, "ws;host=a;path=/;header=X", "header", "not a name", "header=Name: value"},
	{Client, "ws;host=a;path=/;header=: y", "header", "the name", "header=Name: value"},
	{Client, "ws;host=a;path=/;header=X : y", "header", "the name", "header=Name: value"},
	{Client, "ws;host=a;path=/;header=X: a\rb", "header", "control character", "header=Name: value"},
	{Client, "ws;host=a;path=/;header=X: file: ", "header", "nothing stands behind file:", "file:/path"},
	{Client, "ws;host=a;path=/;header=hOST: y", "header", "option of its own", "host="},
	{Client, "ws;host=a;path=/;header=Proxy-Authorization: y", "header", "option of its own", "proxy-auth="},
	{Client, "ws;host=a;path=/;header=upgrade: y", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=Connection: y", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=Content-Length: 1", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=Transfer-Encoding: chunked", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=Sec-WebSocket-Key: y", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=Raimon-Target: y", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=RAIMON: y", "header", "part of the upgrade", "remove"},
	{Client, "ws;host=a;path=/;header=X: y;header=x: z", "header", "given twice", "once"},
	{Client, "ws;host=a;path=/;header=X: " + strings.Repeat("y", 40<<10) + ";header=Y: " + strings.Repeat("y", 40<<10), "header", "64 KiB", "shorter"},
	{Client, "ws;host=a;path=/;header=Authorization: y;token=t", "header", "contradicts token", "remove one"},
	{Client, "user-agent=a\x01b", "user-agent", "control character", "Mozilla"},
	{Client, "proxy-auth=jo", "proxy-auth", "not user:password", "file:/path"},
	{Client, "proxy-auth=:x", "proxy-auth", "not user:password", "file:/path"},
	{Client, "proxy-auth=jo:a\nb", "proxy-auth", "control character", "file:/path"},
	{Client, "proxy-auth=command:", "proxy-auth", "nothing stands behind command:", "file:/path"},
	{Client, "proxy=http://jo@a:1;proxy-auth=jo:x", "proxy-auth", "contradicts the user in proxy", "remove user and password"},

	// grammar
	{Client, `ws\`, "", "lone backslash", `\\`},
	{Client, `host=a\\\`, "", "lone backslash", `\\`},
	{Client, "=x", "", `before "="`, "key=value"},
	{Client, "tls; =x", "", `before "="`, "key=value"},
	{Client, "=", "", `before "="`, "key=value"},
	{Client, "tls=no", "tls", "switch", "leave it out"},
	{Client, "ws=example.com", "ws", "switch", "leave it out"},
	{Client, "ws;host", "host", "no value", "host=<name>"},
	{Client, "ws;host=;path=/", "host", "no value", "host=<name>"},
	{Client, "ws;host=a;path= ", "path", "no value", "path=</path>"},
	{Server, "tls;cert;key=k", "cert", "no value", "cert=<file>"},
	{Client, "tls;sni=a;ca=", "ca", "no value", "ca=<file>"},
	{Client, "tls;sni=a;pin", "pin", "no value", "pin="},
	{Client, "mode", "mode", "no value", "mode=websocket"},
	{Client, "mux", "mux", "no value", "mux=0"},

	// WebSocket
	{Client, "ws", "ws", "neither host nor path", "add host=example.com;path=/ws"},
	{Server, "ws;host=a", "ws", "path is not given", "add path=/ws"},
	{Server, "ws;path=/", "ws", "host is not given", "add host="},
	{Client, "mode=websocket", "mode", "host is not given", "add host="},
	{Client, "host=a", "host", "ws is not given", "add ws"},
	{Server, "path=/", "path", "ws is not given", "add ws"},
	{Client, "mask=fixed", "mask", "ws is not given", "add ws"},
	{Client, "tls;sni=a;host=a;path=/", "host", "ws is not given", "mode=websocket"},
	{Client, "ws;host=a;path=ws", "path", `start with "/"`, "path=/ws"},
	{Client, "ws;host=a;path=/a b", "path", "blank", "%20"},
	{Client, "ws;host=a;path=/a\r\nX: y", "path", "control", "%20"},
	{Client, "ws;host=a;path=/\x00", "path", "control", "%20"},
	{Client, "ws;host=a;path=/\u2028x", "path", "blank", "%20"},
	{Client, "ws;host=a;path=/%zz", "path", "not the path of a URL", "%25"},
	{Client, "ws;host=a b;path=/", "host", "blank", "host=example.com"},
	{Client, "ws;host=a\r\nX:y;path=/", "host", "control", "host=example.com"},
	{Client, "ws;host=a/ws;path=/", "host", "holds '/'", "path=/ws"},
	{Client, "ws;host=bücher.example;path=/", "host", "ASCII", "xn--"},
	{Client, "ws;host=a;path=/;mask=none", "mask", "no such value", "skip, fixed, standard"},

	{Client, "token=x", "token", "ws is not given", "add ws"},
	{Client, "ws;host=a;path=/;token=", "token", "no value", "file:<path>"},
	{Client, "ws;host=a;path=/;token=file: ", "token", "nothing stands behind file:", "raimons token"},
	{Client, "ws;host=a;path=/;token=command:", "token", "nothing stands behind command:", "raimons token"},
	{Client, "ws;host=a;path=/;token=a b", "token", "blank", "file:/path"},
	{Client, "ws;host=a;path=/;token=a\r\nX: y", "token", "printable", "file:/path"},
	{Client, "ws;host=a;path=/;token=ü", "token", "ASCII", "file:/path"},
	{Client, "ws;host=a;path=/;token=" + strings.Repeat("x", 4097), "token", "4096", "file:/path"},

	// TLS, client
	{Client, "tls", "tls", "sni is not given", "add sni="},
	{Client, "tls;ws;host=a;path=/", "tls", "sni is not given", "add sni="},
	{Client, "tls;mode=websocket;host=:80", "tls", "sni is not given", "add sni="},
	{Client, "tls;mode=websocket;host=a:b:c", "tls", "host cannot stand in", "add sni="},
	{Client, "sni=a", "sni", "nothing would be encrypted", "add tls"},
	{Client, "alpn=h2", "alpn", "nothing would be encrypted", "add tls"},
	{Client, "ca=x", "ca", "nothing would be encrypted", "add tls"},
	{Client, "cert=x", "cert", "nothing would be encrypted", "add tls"},
	{Client, "pin=" + pinStd, "pin", "nothing would be encrypted", "add tls"},
	{Client, "insecure", "insecure", "nothing would be encrypted", "add tls"},
	{Client, "0rtt", "0rtt", "nothing would be encrypted", "add tls"},
	{Client, "client-cert=x;client-key=x", "client-cert", "nothing would be encrypted", "add tls"},
	{Client, "tls;sni=a:443", "sni", "without a port", "only the name"},
	{Client, "tls;sni=a\nb", "sni", "control", "example.com"},
	{Client, "tls;sni=fe80::1%a\nb", "sni", "control", "example.com"},
	{Client, "tls;sni=a;alpn=" + strings.Repeat("x", 256), "alpn", "255", "http/1.1"},
	{Client, "tls;sni=a;client-cert=x", "client-cert", "client-key is not given", "client-key="},
	{Client, "tls;sni=a;client-key=x", "client-key", "client-cert is not given", "client-cert="},
	{Client, "tls;sni=a;insecure;pin=" + pinStd, "insecure", "contradicts pin", "remove insecure"},
	{Client, "tls;sni=a;insecure;ca=x", "insecure", "contradicts ca", "remove insecure"},
	{Client, "tls;sni=a;pin=,", "pin", "names no key", "SHA-256"},
	{Client, "tls;sni=a;pin=AAAA", "pin", "3 bytes", "SHA-256"},
	{Client, "tls;sni=a;pin=" + pinStd + ",!", "pin", "not base64", "SHA-256"},

	// TLS, server
	{Server, "tls", "tls", "neither acme, cert+key nor servername", "servername=example.com"},
	{Server, "tls;servername=", "tls", "neither acme, cert+key nor servername", "servername=example.com"},
	{Server, "tls;email=a@b", "tls", "neither acme, cert+key nor servername", "cert=cert.pem;key=key.pem"},
	{Server, "acme=a.test", "acme", "nothing would be encrypted", "add tls"},
	{Server, "on-demand=/bin/true", "on-demand", "nothing would be encrypted", "add tls"},
	{Server, "tls;acme=a.test;storage=off", "storage", "contradicts acme", "name a folder"},
	{Server, "tls;acme=a.test;must-staple", "must-staple", "no certificates with must-staple", "remove must-staple"},
	{Server, "tls;acme=a.test;eab=a:b,c:d", "eab", "more values than acme-ca", "one for each CA"},
	{Server, "tls;acme=a.test;key-type=dsa", "key-type", "no such value", "p256"},
	{Server, "tls;cert=c", "cert", "key is not given", "add key="},
	{Server, "tls;key=k", "key", "cert is not given", "add cert="},
	{Server, "cert=c;key=k", "cert", "nothing would be encrypted", "add tls"},
	{Server, "servername=a", "servername", "nothing would be encrypted", "add tls"},
	{Server, "ocsp=o", "ocsp", "nothing would be encrypted", "add tls"},
	{Server, "0rtt", "0rtt", "nothing would be encrypted", "add tls"},
	{Server, "tls;servername=a,b", "servername", "not one name", "example.com"},

	// network, limits, v2ray-plugin
	{Client, "proxy=127.0.0.1:1080", "proxy", "not a URL", "socks5://127.0.0.1:1080"},
	{Client, "proxy=localhost:1080", "proxy", "not a URL", "socks5://127.0.0.1:1080"},
	{Client, "dns=dns.quad9.net", "dns", "not an IP address", "dns=9.9.9.9"},
	{Client, "dns=quic://9.9.9.9", "dns", "no such way", "dns=tls://9.9.9.9"},
	{Client, "proxy=socks4://a", "proxy", "no such kind", "socks5"},
	{Client, "proxy=http://", "proxy", "not a URL with a host", "socks5"},
	{Client, "proxy=http://a:0", "proxy", "65535", "socks5"},
	{Client, "proxy=http://a:99999", "proxy", "65535", "socks5"},
	{Client, "proxy=http://a/b", "proxy", "follows", "socks5"},
	{Client, "timeout=0", "timeout", "cannot be off", "10s"},
	{Client, "timeout=off", "timeout", "cannot be off", "10s"},
	{Client, "timeout=soon", "timeout", "not a time", "30s"},
	{Client, "linger=-1s", "linger", "negative", "30s"},
	{Client, "ping=1x", "ping", "not a time", "30s"},
	{Client, "drain=.", "drain", "not a time", "30s"},
	{Client, "drain=99999999999999999999", "drain", "not a time", "30s"},
	{Client, "mode=quic", "mode", "QUIC", "mode=websocket"},
	{Server, "mode=grpc", "mode", "no such mode", "mode=websocket"},
	{Client, "server", "server", "raimonc is the client", "run raimons"},
	{Client, "mux=1", "mux", "not supported", "mux=0"},
	{Server, "mux=99999999999999999999", "mux", "not supported", "mux=0"},
	{Server, "mux=x", "mux", "not a number", "mux=0"},
	{Client, "fwmark=-1", "fwmark", "number", "255"},
	{Client, "fwmark=4294967296", "fwmark", "number", "255"},
	{Client, "loglevel=trace", "loglevel", "no such value", "debug, info"},
	{Client, "fastOpen=false", "fastOpen", "switch", "leave it out"},
	{Client, "tls;sni=a;certRaw=!", "certRaw", "not base64", "PEM"},
	{Client, "tls;sni=a;certRaw=AAAA", "certRaw", "not a certificate", "PEM"},
	{Server, "tls;certRaw=-----BEGIN PRIVATE KEY-----", "certRaw", "without a certificate", "not the key"},
	{Server, "tls;certRaw=-----BEGIN CERTIFICATE-----", "certRaw", "END line", "PEM"},
}

func TestParseErrors(t *testing.T) {
	for _, test := range errorTests {
		t.Run(test.side.String()+" "+test.s, func(t *testing.T) {
			_, err := Parse(test.side, test.s)
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if got.Option != test.option || !strings.Contains(got.Problem, test.problem) || !strings.Contains(got.Hint, test.hint) {
				t.Errorf("got %q, hint %q\nwant option %q, %q, hint %q", got, got.Hint, test.option, test.problem, test.hint)
			}
		})
	}
}

func TestErrorNamesTheOption(t *testing.T) {
	_, err := Parse(Server, "tls")
	if want := `option "tls": neither acme, cert+key nor servername is given`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = Parse(Server, "=x")
	if want := `option string: nothing stands before "="`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestErrorsKeepSecrets(t *testing.T) {
	for _, s := range []string{
		"proxy=socks4://user:s3cret@host", "proxy=http://user:s3cret@host:x", "proxy=http://user:s3cret@ho st/%zz",
		"ws;host=a;path=/;token=s3cret s3cret", "token=s3cret", "tls;sni=a;certRaw=s3cret", "tls;sni=a;pin=s3cret", "=s3cret", `proxy=s3cret\`,
	} {
		_, err := Parse(Client, s)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: got %v, want an *Error", s, err)
		} else if strings.Contains(e.Error()+e.Hint, "s3cret") {
			t.Errorf("%s: the error repeats the secret: %v", s, err)
		}
	}
}

func TestCertRaw(t *testing.T) {
	der := certificate(t)
	file := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	body := base64.StdEncoding.EncodeToString(der)
	for name, test := range map[string]struct {
		value string
		want  string
	}{
		"body":                {body, file},
		"body without =":      {strings.TrimRight(body, "="), file},
		"PEM":                 {file, file},
		"PEM on one line":     {strings.ReplaceAll(file, "\n", " "), file},
		"two certificates":    {file + file, file + file},
		"text around the PEM": {"subject: -----\n" + file + "\n", file},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Parse(Client, "tls;sni=a;certRaw="+quote(test.value))
			if err != nil {
				t.Fatal(err)
			}
			if string(o.CAPEM) != test.want || o.CertPEM != nil {
				t.Errorf("got root %q and certificate %q, want root %q", o.CAPEM, o.CertPEM, test.want)
			}

			o, err = Parse(Server, "tls;key=k;certRaw="+quote(test.value))
			if err != nil {
				t.Fatal(err)
			}
			if string(o.CertPEM) != test.want || o.CAPEM != nil {
				t.Errorf("got certificate %q and root %q, want certificate %q", o.CertPEM, o.CAPEM, test.want)
			}
		})
	}

	raw := ";certRaw=" + body
	o, err := Parse(Server, "tls;cert=c;key=k"+raw)
	if err != nil || o.Cert != "c" || o.CertPEM != nil || len(o.Warnings) != 1 {
		t.Errorf("cert and certRaw: got %+v, %v; want cert alone and a warning", o, err)
	}
	o, err = Parse(Server, "tls;servername=a"+raw)
	if err != nil || o.ServerName != "a" || o.CertPEM != nil || len(o.Warnings) != 1 {
		t.Errorf("certRaw without key: got %+v, %v; want servername alone and a warning", o, err)
	}
	for side, s := range map[Side]string{Server: "tls", Client: "tls;sni=a;insecure"} {
		if o, err := Parse(side, s+raw); err == nil {
			t.Errorf("%s%s: got %+v, want an error", s, ";certRaw=…", o)
		}
	}
}

// certificate returns the DER of a throw-away certificate.
func certificate(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestSplit(t *testing.T) {
	for _, test := range []struct {
		s    string
		want []Setting
	}{
		{"", nil},
		{";", nil},
		{"a", []Setting{{"a", ""}}},
		{"a=", []Setting{{"a", ""}}},
		{"a==b", []Setting{{"a", "=b"}}},
		{"a=b=c", []Setting{{"a", "b=c"}}},
		{`a\=b=c`, []Setting{{"a=b", "c"}}},
		{`\;=\;`, []Setting{{";", ";"}}},
		{`a=\\\;b;c`, []Setting{{"a", `\;b`}, {"c", ""}}},
		{`a=\\;b`, []Setting{{"a", `\`}, {"b", ""}}},
		{`a=\x\ y`, []Setting{{"a", `\x\ y`}}},
		{"a = b c ; d", []Setting{{"a", "b c"}, {"d", ""}}},
		{`a= \= `, []Setting{{"a", "="}}},
	} {
		got, err := Split(test.s)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, %v; want %q", test.s, got, err, test.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"tsl", "tls", 1}, {"snii", "sni", 1}, {"kitten", "sitting", 3},
	} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("%s, %s: got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

func TestTable(t *testing.T) {
	seen := make(map[string]sides)
	var groups []string
	for _, row := range table {
		if row.key == "" || row.help == "" || row.group == "" || row.sides == 0 || row.set == nil {
			t.Errorf("row %+v is incomplete", row)
		}
		if seen[row.key]&row.sides != 0 {
			t.Errorf("%s: two rows for the same side", row.key)
		}
		seen[row.key] |= row.sides
		if row.needs != "" && row.needs != "ws" && row.needs != "tls" && row.needs != "socks" {
			t.Errorf("%s: needs %q", row.key, row.needs)
		}
		if row.optional && row.arg == "" {
			t.Errorf("%s: a switch has no value that could be optional", row.key)
		}
		if len(groups) == 0 || groups[len(groups)-1] != row.group {
			groups = append(groups, row.group)
		}
	}
	slices.Sort(groups)
	if len(slices.Compact(slices.Clone(groups))) != len(groups) {
		t.Errorf("rows of one group do not stand together: %q", groups)
	}
}

func TestHelp(t *testing.T) {
	for _, side := range []Side{Client, Server} {
		var b bytes.Buffer
		Help(&b, side)
		for line := range strings.Lines(b.String()) {
			if line = strings.TrimSuffix(line, "\n"); len(line) > helpWidth || line != strings.TrimRight(line, " ") {
				t.Errorf("%v: line too long or with blanks at its end: %q", side, line)
			}
		}
		for _, row := range table {
			shown := strings.Contains(b.String(), "\n  "+row.usage())
			want := slices.ContainsFunc(table, func(other option) bool {
				return other.sides&only(side) != 0 && other.usage() == row.usage()
			})
			if shown != want {
				t.Errorf("%v: %s shown: %v, want %v", side, row.usage(), shown, want)
			}
		}
	}
}

func TestMarkdown(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(Markdown(), "\n"), "\n")
	if want := len(table) + 2; len(lines) != want {
		t.Errorf("got %d lines, want %d", len(lines), want)
	}
	for _, line := range lines {
		if n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|"); n != 4 {
			t.Errorf("got %d bars, want 4: %s", n, line)
		}
	}
	if want := "| `mask=skip\\|fixed\\|standard` | client | "; !strings.Contains(Markdown(), want) {
		t.Errorf("%q is missing", want)
	}
	if want := "(default 60s) |\n"; !strings.Contains(Markdown(), want) {
		t.Errorf("%q is missing", want)
	}
}

func FuzzParse(f *testing.F) {
	for _, test := range parseTests {
		f.Add(test.s)
	}
	for _, test := range errorTests {
		f.Add(test.s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, side := range []Side{Client, Server} {
			o, err := Parse(side, s)
			if err != nil {
				if e, ok := err.(*Error); !ok || e.Problem == "" || e.Hint == "" {
					t.Errorf("%v: got %#v, want an *Error with a hint", side, err)
				}
				continue
			}
			checkInvariants(t, side, o)
		}

		pairs, err := Split(s)
		if err != nil {
			return
		}
		again, err := Split(join(pairs))
		if err != nil || !slices.Equal(again, pairs) {
			t.Errorf("%q became %q, %v", pairs, again, err)
		}
	})
}

// checkInvariants checks what Options promises, whatever was parsed.
func checkInvariants(t *testing.T, side Side, o *Options) {
	t.Helper()
	switch {
	case o.WS && (o.Host == "" && side == Client || !strings.HasPrefix(o.Path, "/")):
		t.Error("WebSocket without host or path")
	case !o.WS && o.Host+o.Path != "":
		t.Error("host or path without WebSocket")
	case strings.ContainsFunc(o.Host+o.Path+o.SNI+o.ServerName, unicode.IsControl):
		t.Error("control character in a name")
	case o.TLS && side == Client && o.SNI == "":
		t.Error("TLS without SNI")
	case o.TLS && side == Server && o.ServerName+o.Key+o.OnDemand == "" && o.ACME == nil:
		t.Error("TLS with no source of a certificate")
	case o.Key != "" && (o.Cert == "") == (o.CertPEM == nil):
		t.Error("a key with no certificate, or two")
	case !o.TLS && (o.SNI+o.CA+o.Cert+o.Key+o.ServerName+o.OCSP+o.ClientCert+o.OnDemand != "" || o.ACME != nil):
		t.Error("TLS options without TLS")
	case strings.ContainsFunc(o.UserAgent+o.ProxyAuth+fmt.Sprint(o.Header), func(r rune) bool { return unicode.IsControl(r) && r != '\t' && r < 0x80 }):
		t.Error("control character in a header")
	case slices.ContainsFunc(o.Header, func(h Header) bool { return h.Name == "" || h.Value == "" || strings.ContainsAny(h.Name, " :") }):
		t.Error("a header with no name, or no value")
	case o.Insecure && o.Pins != nil:
		t.Error("insecure with a pin")
	case o.Timeout <= 0 || o.Drain < 0 || o.Linger < 0 && o.Linger != Off || o.Ping < 0 && o.Ping != Off || o.Linger == 0 || o.Ping == 0:
		t.Error("time limit out of range")
	}
	if t.Failed() {
		t.Logf("%v: %+v", side, o)
	}
}

// join is the inverse of split.
func join(pairs []Setting) string {
	var texts []string
	for _, p := range pairs {
		texts = append(texts, quote(p.Key)+"="+quote(p.Value))
	}
	return strings.Join(texts, ";")
}

func quote(s string) string {
	return strings.NewReplacer(`\`, `\\`, ";", `\;`, "=", `\=`).Replace(s)
}
