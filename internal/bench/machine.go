package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is what measured numbers depend on.
type machine struct {
	hardware, system string
	versions         []string // of the programs
}

func (l *lab) machine(subjects []subject) machine {
	return machine{
		hardware: fmt.Sprintf("%s, %d cores, %s GB of memory", fileMatch("/proc/cpuinfo", `model name\s*: (.*)`), runtime.NumCPU(), memoryGB()),
		system:   fmt.Sprintf("%s, Linux %s, %s", fileMatch("/etc/os-release", `PRETTY_NAME="(.*)"`), kernel(), runtime.Version()),
		versions: l.versions(subjects),
	}
}

// versionOf says how a program tells its version.
var versionOf = []struct {
	program, name string
	args          []string
	pattern       string
}{
	{"raimons", "raimon", []string{"-version"}, `^raimons (\S+)`},
	{"kaminaris", "kaminari", nil, ""}, // does not tell
	{"ss-v2ray-plugin", "v2ray-plugin", []string{"-version"}, `(?s)^v2ray-plugin (\S+).*(go\d\S*)`},
	{"wstunnel", "wstunnel", []string{"--version"}, `(\d\S*)`},
	{"chisel", "chisel", []string{"--version"}, `(\d\S*)`},
	{"stunnel4", "stunnel", []string{"-version"}, `stunnel (\d\S*)`},
	{"haproxy", "haproxy", []string{"-v"}, `version (\S+)`},
}

// versions asks the programs of subjects who they are.
func (l *lab) versions(subjects []subject) []string {
	used := map[string]bool{}
	for _, s := range subjects {
		if !s.bare() {
			used[s.server.words[0]] = true
		}
	}
	var all []string
	for _, v := range versionOf {
		path, err := l.find(v.program)
		if !used[v.program] || err != nil {
			continue
		}
		if v.args == nil {
			// install.sh names the folder after the version.
			all = append(all, strings.Replace(filepath.Base(filepath.Dir(filepath.Dir(path))), "-", " ", 1))
			continue
		}
		out, _ := exec.Command(path, v.args...).CombinedOutput() // some end with a status of their own
		version := "of an unknown version"
		if m := regexp.MustCompile(v.pattern).FindStringSubmatch(string(out)); m != nil {
			version = strings.Join(m[1:], ", ")
		}
		if commit := builtFrom(path); v.name == "raimon" && commit != "" {
			version += ", commit " + commit
		}
		all = append(all, v.name+" "+version)
	}
	return all
}

// builtFrom is the commit that a program of Go was built from, as far as it tells.
func builtFrom(path string) (commit string) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(12, len(s.Value))] + commit
		case s.Key == "vcs.modified" && s.Value == "true":
			commit += ", changed"
		}
	}
	return commit
}

// fileMatch returns the first submatch of pattern in a file.
func fileMatch(file, pattern string) string {
	data, err := os.ReadFile(file)
	if m := regexp.MustCompile(pattern).FindSubmatch(data); err == nil && m != nil {
		return string(m[1])
	}
	return "unknown"
}

func memoryGB() string {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%.0f", float64(info.Totalram)*float64(info.Unit)/1e9)
}

func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
