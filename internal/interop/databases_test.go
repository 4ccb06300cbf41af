//go:build interop

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// startPostgres starts a server whose certificate and key are those of f. It knows the user me, without a password.
func startPostgres(t testing.TB, f tunneltest.Files) (address string) {
	t.Helper()
	dir := foreignFolder(t)
	for name, from := range map[string]string{"cert.pem": f.Cert, "key.pem": f.Key} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, filepath.Join(dir, name), data)
	}
	var become []string // it refuses to be root
	if os.Geteuid() == 0 {
		ran(t, "chown", "-R", "nobody:nogroup", dir)
		become = []string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"}
	}
	data := filepath.Join(dir, "data")
	initialize := append(become, program(t, "initdb"), "-D", data, "-N", "-A", "trust", "-U", "me", "-E", "UTF8", "--locale=C")
	ran(t, initialize[0], initialize[1:]...)
	address = freePort()
	serve := append(become, program(t, "postgres"), "-D", data, "-c", "listen_addresses="+host(address), "-c", "port="+port(address),
		"-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "ssl=on", "-c", "ssl_cert_file="+dir+"/cert.pem", "-c", "ssl_key_file="+dir+"/key.pem")
	start(t, serve[0], nil, serve[1:]...).await(t, "ready to accept connections")
	return address
}

// mariaDB is a server that greets whoever connects.
type mariaDB struct {
	address, socket string
}

// greetingPatience is how long it waits for an answer to its greeting, in seconds. It is the least that it takes.
const greetingPatience = 2

// startMariaDB starts a server that lets root in without a password.
func startMariaDB(t testing.TB) mariaDB {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	temporary := "TMPDIR=" + t.TempDir() // two of them at once do not get on in one
	ran(t, "env", temporary, program(t, "mariadb-install-db"), "--no-defaults", "--user="+me.Username, "--auth-root-authentication-method=normal", "--skip-test-db", "--datadir="+data)
	db := mariaDB{freePort(), filepath.Join(dir, "socket")}
	start(t, "mariadbd", []string{temporary}, "--no-defaults", "--user="+me.Username, "--datadir="+data, "--socket="+db.socket, "--pid-file="+filepath.Join(dir, "pid"),
		"--bind-address="+host(db.address), "--port="+port(db.address), "--skip-name-resolve",
		"--connect-timeout="+strconv.Itoa(greetingPatience), "--innodb-buffer-pool-size=8M").await(t, "ready for connections")
	return db
}

// count is a number of SHOW STATUS. To ask for it counts as one of Connections.
func (db mariaDB) count(t testing.TB, name string) int {
	t.Helper()
	out := ran(t, "mariadb", "--no-defaults", "-u", "root", "-S", db.socket, "-BNe", "show global status like '"+name+"'")
	n, err := strconv.Atoi(strings.TrimPrefix(out, name+"\t"))
	if err != nil {
		t.Fatalf("status %s: %q", name, out)
	}
	return n
}

// ask is a query by way of address.
func (db mariaDB) ask(t testing.TB, address string) {
	t.Helper()
	cmd := exec.CommandContext(minute(t), program(t, "mariadb"), "--no-defaults", "-u", "root", "-h", host(address), "-P", port(address), "-BNe", "select 6 * 7")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "42\n" {
		t.Errorf("mariadb: %v: %s", err, trim(string(out), 300))
	}
}

// A server that speaks first and hangs up on silence hears of no connection that waits in the pool, as long as the edge
// can be told to wait.
func TestPoolBeforeServerThatSpeaksFirst(t *testing.T) {
	t.Parallel()
	const pool = 2
	t.Run("an edge that waits", func(t *testing.T) {
		t.Parallel()
		db := startMariaDB(t)
		_, edge := startRaimons(t, db.address, wsOption)
		before := db.count(t, "Connections")
		_, client := startRaimonc(t, edge, fmt.Sprintf("%s;pool=%d", wsOption, pool))
		eventually(t, patience, "the pool is full", func() bool { return connections(t, edge) == pool })
		<-time.After((greetingPatience + 1) * time.Second) // in which a server that had been dialed hangs up
		if n := connections(t, edge); n != pool {
			t.Errorf("%d connections to the edge, want %d", n, pool)
		}
		if n := db.count(t, "Connections") - 1 - before; n != 0 {
			t.Errorf("the server has heard of %d connections before a program came", n)
		}
		const programs = 4 // more than the pool has
		for range programs {
			db.ask(t, client)
		}
		if n := db.count(t, "Connections") - 2 - before; n != programs {
			t.Errorf("the server has heard of %d connections of %d programs", n, programs)
		}
		if n := db.count(t, "Aborted_connects"); n != 0 {
			t.Errorf("the server has given up %d connections", n)
		}
	})
	// The counterproof, and that it does no harm beyond that: what the server has given up is handed to nobody.
	t.Run("an edge that cannot", func(t *testing.T) {
		t.Parallel()
		db := startMariaDB(t)
		_, edge := startRaimons(t, db.address, "")
		_, client := startRaimonc(t, edge, fmt.Sprintf("pool=%d", pool))
		eventually(t, patience, "the server gives up those that wait", func() bool { return db.count(t, "Aborted_connects") >= pool })
		for range 2 * pool {
			db.ask(t, client)
		}
	})
}

// connections counts those that address has accepted.
func connections(t testing.TB, address string) int {
	t.Helper()
	return strings.Count(ran(t, "ss", "-Htn", "state", "established", "src", address)+"\n", address+" ")
}
