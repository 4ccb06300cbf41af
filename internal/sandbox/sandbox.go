// Package sandbox takes from this process, for good, what it does not need: with Landlock, on Linux, all files but
// those that it is told of. It is a second wall, for the day on which the first has a hole.
//
//	s, err := sandbox.Restrict(sandbox.Paths{Read: []string{"cert.pem"}, Write: []string{"/var/lib/raimon"}})
//	log.Info("sandbox", "state", s.State)
//	…                                  // on a reload, with what the new config needs
//	if missing := s.Missing(paths); len(missing) > 0 {
//		return fmt.Errorf("%s lies outside of the sandbox: restart", missing[0])
//	}
//
// What is open already stays open, listeners and logs for instance. TCP, UDP and connections to Unix sockets are not
// restricted: targets may be anywhere. Programs that we start have the same walls around them.
package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Paths are what has to stay within reach: files, or folders with all that is in them. Relative paths start at the
// working folder. They need not exist, but the folder that they are in has to.
//
// Of a file, it is the folder that stays within reach, because a renewed file is a new one. Where the path is a
// symbolic link, that holds for the link and for what it leads to, as in certbot's live and archive.
type Paths struct {
	// Read are read, but not written: certificates, keys, the config, websites.
	Read []string
	// Write are read, written, made and removed: the storage, Unix sockets that are listened on.
	Write []string
	// Run are programs that are started. With one, the programs and libraries of the system may be read and run as
	// well. What a program writes has to be in Write.
	Run []string
}

// Sandbox is what is around this process. Nil has no walls.
type Sandbox struct {
	// State says what is enforced, for the log: "landlock abi 7", or "off: " and why.
	State string

	reach reach // nil: everything
}

// Missing are those of paths that lie outside of the sandbox, which cannot be opened up: the process has to be
// started anew. None are missing where nothing is enforced.
func (s *Sandbox) Missing(paths Paths) []string {
	if s == nil || s.reach == nil {
		return nil
	}
	var missing []string
	for _, group := range paths.groups() {
		for _, path := range group.paths {
			needed := make(reach)
			if !needed.add(path, group.right) {
				needed.add(existing(path), group.right)
			}
			if !s.reach.covers(needed) && !slices.Contains(missing, path) {
				missing = append(missing, path)
			}
		}
	}
	return missing
}

// existing is the nearest folder above path that is there.
func existing(path string) string {
	for !isRoot(path) {
		path = filepath.Dir(path)
		if _, err := os.Stat(path); err == nil {
			break
		}
	}
	return path
}

type group struct {
	paths []string
	right right
}

func (p Paths) groups() []group {
	return []group{{p.Read, read}, {p.Write, read | write}, {p.Run, read | run}}
}

// right is what may be done with files.
type right uint8

const (
	read right = 1 << iota
	write
	run
)

// reach are the folders, and files where there is no folder to name, that may be used, and how. Paths are absolute
// and without symbolic links.
type reach map[string]right

// newReach is what p needs, beside what every process does.
func newReach(p Paths) reach {
	r := make(reach)
	for _, path := range systemRead() {
		r.addExisting(path, read)
	}
	for _, path := range systemDevices {
		r.put(path, read|write)
	}
	if len(p.Run) > 0 {
		for _, path := range systemRun {
			r.addExisting(path, read|run)
		}
	}
	for _, group := range p.groups() {
		for _, path := range group.paths {
			r.add(path, group.right)
		}
	}
	return r
}

const maxLinks = 40 // as Linux has it

// addExisting is add for what this system may not have.
func (r reach) addExisting(path string, right right) {
	if _, err := os.Stat(path); err == nil {
		r.add(path, right)
	}
}

// add lets path be used, wherever links lead from there. It tells whether there is a folder for it.
func (r reach) add(path string, right right) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false // there is no working folder to start at
	}
	for links := range maxLinks {
		folder, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return false
		}
		path = filepath.Join(folder, filepath.Base(path))
		info, err := os.Lstat(path)
		switch {
		case err == nil && info.Mode().Type() == os.ModeSymlink:
			r.put(folder, right) // where the next link will be
			next, err := os.Readlink(path)
			if err != nil {
				return false
			}
			if !filepath.IsAbs(next) {
				next = filepath.Join(folder, next)
			}
			path = filepath.Clean(next)
		case err == nil && info.IsDir():
			r.put(path, right)
			if links > 0 {
				r.put(folder, right) // where the next folder will be
			}
			return !isRoot(path)
		case isRoot(folder):
			if err == nil {
				r.put(path, right) // the file alone: the folder is everything
			}
			return err == nil
		default:
			r.put(folder, right)
			return true
		}
	}
	return false
}

// put lets path be used, but never everything for the sake of a link.
func (r reach) put(path string, right right) {
	if !isRoot(path) {
		r[path] |= right
	}
}

func isRoot(path string) bool { return filepath.Dir(path) == path }

// covers tells whether all of needed is within reach.
func (r reach) covers(needed reach) bool {
	for path, right := range needed {
		have := r[path]
		for p := path; !isRoot(p) && have&right != right; {
			p = filepath.Dir(p)
			have |= r[p]
		}
		if have&right != right {
			return false
		}
	}
	return true
}

// systemRead are files that the Go runtime and its packages read: names and addresses, roots of CAs, time zones, types of
// files, limits. All of /etc is among them: resolv.conf and hosts are renewed there.
func systemRead() []string {
	paths := []string{
		"/etc", "/proc", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/sys/kernel/mm",
		"/etc/resolv.conf", "/etc/hosts", "/etc/localtime", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager",
		"/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki/tls/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
		"/usr/local/share/certs", "/var/lib/ca-certificates",
		"/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/local/share/mime", "/usr/share/mime",
		"/lib", "/lib64", "/usr/lib", "/usr/lib64", // glibc looks names up with libraries
	}
	for _, variable := range []string{"SSL_CERT_FILE", "ZONEINFO"} {
		if path := os.Getenv(variable); path != "" {
			paths = append(paths, path)
		}
	}
	for path := range strings.SplitSeq(os.Getenv("SSL_CERT_DIR"), ":") {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// systemDevices are files that everybody may write as well.
var systemDevices = []string{"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"}

// systemRun are folders of programs and their libraries.
var systemRun = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/opt", "/nix/store"}
