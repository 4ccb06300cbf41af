//go:build interop

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const squidConf = `
http_port %[1]s %[2]s
pid_filename none
access_log none
cache_log none
cache_store_log none
cache deny all
cache_mem 8 MB
coredump_dir %[3]s
shutdown_lifetime 0 seconds
connect_timeout 2 seconds
pinger_enable off
visible_hostname proxy.test
%[4]s
`

// foreignFolder is one that servers can look into which, started by root, become another user.
func foreignFolder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startSquid starts a squid with what is in its folder. It takes rules, and more about its port.
func startSquid(t testing.TB, dir, port, rules string) (address string) {
	t.Helper()
	address = freePort()
	conf := filepath.Join(dir, "squid.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, squidConf, address, port, dir, rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		ran(t, "chown", "-R", "proxy", dir)
	}
	// The name is that of its shared memory.
	start(t, "squid", nil, "-N", "-n", "t"+newID(), "-f", conf).awaitPort(t, address)
	return address
}

// squidUser is the file of a squid that knows jo.
func squidUser(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "users")
	if err := os.WriteFile(path, []byte("jo:"+ran(t, "openssl", "passwd", "-apr1", "s3cr3t")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ran runs a program that prepares something.
func ran(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(minute(t), program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// failsWith runs a tunnel that does not come about, and wants all of these in what the client says, and no secret.
func failsWith(t testing.TB, env []string, remote, option string, want ...string) {
	t.Helper()
	cmd := exec.CommandContext(minute(t), program(t, "raimonc"), "stdio", remote, option+";wait=0")
	cmd.Env = append(append(os.Environ(), noProxy...), env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("%s: a tunnel came about", option)
	}
	for _, part := range want {
		if !strings.Contains(string(out), part) {
			t.Errorf("%s: %q is missing in\n%s", option, part, out)
		}
	}
	if strings.Contains(string(out), "s3cr3t") || strings.Contains(string(out), "wr0ng") {
		t.Errorf("%s: a password is in\n%s", option, out)
	}
}

// credentials are proxy-auth= in each of its forms, all of them right.
func credentials(t testing.TB) map[string]string {
	t.Helper()
	program := writeFile(t, "program", "#!/bin/sh\necho jo:s3cr3t\n")
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"itself":  "jo:s3cr3t",
		"file":    "file:" + writeFile(t, "login", "jo:s3cr3t\n"),
		"command": "command:" + program,
	}
}

// loginWorks goes through the proxy at address with its credentials in each place where they may stand.
func loginWorks(t *testing.T, scheme, address string) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, wsOption+";"+s.server())
	option := wsOption + ";" + s.client()
	clients := map[string]string{"url": option + ";proxy=" + scheme + "://jo:s3cr3t@" + address}
	for name, value := range credentials(t) {
		clients[name] = option + ";proxy=" + scheme + "://" + address + ";proxy-auth=" + value
	}
	for name, option := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, client := startRaimonc(t, edge, option)
			if name == "file" {
				attempts := g.streams(client)
				delete(attempts, "lockstep") // tinyproxy and microsocks leave Nagle's algorithm on: 40 ms a round
				all(t, attempts)
			} else if err := tryIdle(t, client, time.Millisecond); err != nil {
				t.Error(err)
			}
			if log := p.log.String(); strings.Contains(log, "s3cr3t") {
				t.Errorf("the password is in the log:\n%s", log)
			}
		})
	}
}

func TestSquidWithPassword(t *testing.T) {
	dir := foreignFolder(t)
	proxy := startSquid(t, dir, "", `
auth_param basic program /usr/lib/squid/basic_ncsa_auth `+squidUser(t, dir)+`
auth_param basic realm office
acl users proxy_auth REQUIRED
acl blocked dstdomain blocked.test
http_access deny !users
http_access deny blocked
http_access allow all
`)
	at := "proxy " + proxy + ": CONNECT edge.test:443: "
	failsWith(t, nil, "edge.test:443", "proxy=http://"+proxy,
		at+"407 Proxy Authentication Required (it takes Basic)", "hint: the proxy asks for a user and a password: proxy-auth=file:")
	failsWith(t, nil, "edge.test:443", "proxy=http://"+proxy+";proxy-auth=jo:wr0ng",
		at+"407 Proxy Authentication Required (it takes Basic)", "hint: the proxy does not take this user and password")
	failsWith(t, nil, "blocked.test:443", "proxy=http://"+proxy+";proxy-auth=jo:s3cr3t",
		`403 Forbidden (its page: "ERROR: The requested URL could not be retrieved")`, "hint: the proxy does not let this through")
	failsWith(t, nil, "127.0.0.1:1", "proxy=http://"+proxy+";proxy-auth=jo:s3cr3t",
		"503 Service Unavailable", "hint: the proxy could not reach the edge")
	failsWith(t, nil, "edge.test.invalid:443", "proxy=http://"+proxy+";proxy-auth=jo:s3cr3t",
		"(its page: ", "hint: the proxy could not reach the edge")
	// The environment names the proxy, the option says who we are.
	failsWith(t, []string{"https_proxy=http://" + proxy}, "blocked.test:443", "proxy-auth=jo:s3cr3t", "403 Forbidden")
	failsWith(t, []string{"https_proxy=http://jo:s3cr3t@" + proxy}, "blocked.test:443", "", "403 Forbidden")
	loginWorks(t, "http", proxy)
}

// A password that changes is taken up with the next connection.
func TestSquidWithNewPassword(t *testing.T) {
	g := newTarget(t)
	dir := foreignFolder(t)
	proxy := startSquid(t, dir, "", `
auth_param basic program /usr/lib/squid/basic_ncsa_auth `+squidUser(t, dir)+`
acl users proxy_auth REQUIRED
http_access allow users
`)
	_, edge := startRaimons(t, g.address, "")
	login := writeFile(t, "login", "jo:old")
	p, client := startRaimonc(t, edge, "proxy=http://"+proxy+";proxy-auth=file:"+login)
	if err := tryIdle(t, client, time.Millisecond); err == nil {
		t.Error("the old password was taken")
	}
	p.await(t, "does not take this user and password")
	if err := os.WriteFile(login, []byte("jo:s3cr3t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tryIdle(t, client, time.Millisecond); err != nil {
		t.Errorf("with the new password: %v", err)
	}
}

func TestSquidWithNTLM(t *testing.T) {
	proxy := startSquid(t, foreignFolder(t), "", `
auth_param ntlm program /usr/lib/squid/ntlm_fake_auth
acl users proxy_auth REQUIRED
http_access allow users
`)
	for _, auth := range []string{"", ";proxy-auth=jo:s3cr3t"} {
		failsWith(t, nil, "edge.test:443", "proxy=http://"+proxy+auth,
			"407 Proxy Authentication Required (it takes NTLM)", "hint: of these none is spoken here", "cntlm or px")
	}
}

// A squid that opens TLS: the client names it, and works through it once it trusts its root.
func TestSquidOpensTLS(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, wsOption+";"+s.server())
	_, port, _ := strings.Cut(edge, ":")
	dir := foreignFolder(t)
	root, key, certificates := filepath.Join(dir, "root.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "certificates")
	ran(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", root, "-days", "2",
		"-subj", "/O=ACME Inc/CN=ACME Web Gateway", "-addext", "keyUsage=critical,keyCertSign")
	ran(t, "/usr/lib/squid/security_file_certgen", "-c", "-s", certificates, "-M", "4MB")
	proxy := startSquid(t, dir, "ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=4MB tls-cert="+root+" tls-key="+key, `
sslcrtd_program /usr/lib/squid/security_file_certgen -s `+certificates+` -M 4MB
ssl_bump bump all
tls_outgoing_options cafile=`+s.CA+`
http_upgrade_request_protocols websocket allow all
http_access allow all
`)
	// What is in Host is where squid goes.
	option := strings.Replace(wsOption, "host=localhost", "host=localhost:"+port, 1) + ";tls;sni=localhost;proxy=http://" + proxy
	failsWith(t, nil, "localhost:"+port, option, "through proxy "+proxy+": tls handshake: the certificate was issued by "+
		`"ACME Web Gateway" (ACME Inc), not by a public CA or one that this machine trusts`, "hint: ", "may open TLS and read along")
	failsWith(t, nil, "localhost:"+port, option+";ca="+s.CA, `issued by "ACME Web Gateway" (ACME Inc), not by a CA that is trusted here`)
	failsWith(t, nil, "localhost:"+port, option+";pin=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		`in a certificate issued by "ACME Web Gateway" (ACME Inc)`)
	for name, c := range map[string]struct {
		env    []string
		option string
	}{
		"ca":           {nil, option + ";ca=" + root},
		"system store": {[]string{"SSL_CERT_FILE=" + root}, option},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "raimonc", append(noProxy, c.env...), "-v", "127.0.0.1:0", "localhost:"+port, c.option)
			if err := tryIdle(t, p.await(t, listening)[1], time.Millisecond); err != nil {
				t.Error(err)
			}
		})
	}
}

// squid as an https proxy, whose certificate is of a CA that the system's store has.
func TestSquidOverTLS(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, "")
	address := "127.0.0.1:" + port(freePort()) // which the certificate has
	startSquid(t, foreignFolder(t), "", "https_port "+address+" tls-cert="+s.Cert+" tls-key="+s.Key+"\nhttp_access allow all")
	option := "proxy=https://" + address
	failsWith(t, nil, edge, option, "proxy "+address+": tls handshake: the certificate was issued by", "hint: the certificate of an https proxy")
	p := start(t, "raimonc", append(noProxy, "SSL_CERT_FILE="+s.CA), "-v", "127.0.0.1:0", edge, option)
	if err := tryIdle(t, p.await(t, listening)[1], time.Millisecond); err != nil {
		t.Error(err)
	}
}

func TestTinyproxy(t *testing.T) {
	g := newTarget(t)
	proxy := freePort()
	conf := writeFile(t, "tinyproxy.conf", fmt.Sprintf("Port %s\nListen %s\nTimeout 30\nMaxClients 100\nBasicAuth jo s3cr3t\n", port(proxy), host(proxy)))
	start(t, "tinyproxy", nil, "-d", "-c", conf).awaitPort(t, proxy)
	failsWith(t, nil, g.address, "proxy=http://"+proxy, "407 Proxy Authentication Required (it takes Basic)", "hint: the proxy asks for a user and a password")
	failsWith(t, nil, g.address, "proxy=http://"+proxy+";proxy-auth=jo:wr0ng", "401 Unauthorized", "hint: the proxy does not take this user and password")
	failsWith(t, nil, "127.0.0.1:1", "proxy=http://"+proxy+";proxy-auth=jo:s3cr3t", "500 Unable to connect", "hint: the proxy could not reach the edge")
	loginWorks(t, "http", proxy)
}

func TestMicrosocks(t *testing.T) {
	g := newTarget(t)
	proxy := freePort()
	start(t, "microsocks", nil, "-i", host(proxy), "-p", port(proxy), "-u", "jo", "-P", "s3cr3t").awaitPort(t, proxy)
	at := "proxy " + proxy + ": SOCKS5 "
	failsWith(t, nil, g.address, "proxy=socks5://"+proxy, at+g.address+": no acceptable authentication methods", "hint: the proxy asks for a user and a password")
	failsWith(t, nil, g.address, "proxy=socks5://"+proxy+";proxy-auth=jo:wr0ng", at+g.address+": username/password authentication failed", "hint: the proxy does not take this user")
	failsWith(t, nil, "127.0.0.1:1", "proxy=socks5://"+proxy+";proxy-auth=jo:s3cr3t", "connection refused", "hint: the proxy could not reach the edge")
	failsWith(t, nil, g.address, "proxy=http://"+proxy, "proxy "+proxy+": CONNECT ", "hint: the proxy is of another kind")
	loginWorks(t, "socks5", proxy)
}
