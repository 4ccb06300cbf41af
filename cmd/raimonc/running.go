package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/sockets"
	"raimon/internal/text"
)

// report is what a client that runs with a config file tells of itself.
type report struct {
	File    string          `json:"file"` // absolute
	PID     int             `json:"pid"`
	Started time.Time       `json:"started"`
	Tunnels []client.Status `json:"tunnels"`
}

// taken is what a reload comes to.
type taken struct {
	Tunnels int `json:"tunnels"`
}

// runtimeFolder is where clients of this user are found that know of the runtime folder dir of its login.
func runtimeFolder(dir string) *sockets.Folder {
	return &sockets.Folder{Root: dir, Name: "raimon", Of: "client", OwnerFix: foreign, PlaceFix: "XDG_RUNTIME_DIR has to name a folder of this user, with a short path"}
}

// cacheFolder is where they are found otherwise; nil: nowhere, for want of a home.
func cacheFolder() *sockets.Folder {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return &sockets.Folder{Root: filepath.Join(dir, "raimon"), Name: "control", Of: "client", OwnerFix: foreign,
		PlaceFix: "set XDG_RUNTIME_DIR to a folder of this user, with a short path"}
}

const foreign = "XDG_RUNTIME_DIR and HOME have to be those of the user who runs raimonc"

// ownFolder is the one in which this process serves; nil: there is no place.
func ownFolder() *sockets.Folder {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return runtimeFolder(dir)
	}
	return cacheFolder()
}

// folders are all in which clients of this user may serve.
func folders() []*sockets.Folder {
	var all []*sockets.Folder
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		all = append(all, runtimeFolder(dir))
	} else if runtime.GOOS == "linux" {
		// A login without the variable, such as that of su, looks for clients of one that had it.
		all = append(all, runtimeFolder(fmt.Sprintf("/run/user/%d", os.Geteuid())))
	}
	if cache := cacheFolder(); cache != nil {
		all = append(all, cache)
	}
	return all
}

// answerCommands lets raimonc status and raimonc reload talk to us. Tunnels do not depend on it.
func (f *follower) answerCommands(ctx context.Context) {
	place := ownFolder()
	if place == nil {
		f.job.Log.Debug("raimonc status cannot talk to this client: neither XDG_RUNTIME_DIR nor a home folder is known")
		return
	}
	file, err := filepath.Abs(f.job.Config)
	if err == nil {
		err = place.Serve(ctx, f.commands(file), f.job.Log)
	}
	if err != nil {
		f.job.Log.Warn("raimonc status cannot talk to this client", "error", err, "hint", command.Hint(err))
	}
}

// commands are what can be asked of this client.
func (f *follower) commands(file string) http.Handler {
	about := report{File: file, PID: os.Getpid(), Started: time.Now()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		now := about
		now.Tunnels = f.client.Status()
		sockets.Answer(w, http.StatusOK, now)
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if err := f.reload(r.Context()); err != nil {
			sockets.Answer(w, http.StatusUnprocessableEntity, &sockets.Error{Text: err.Error(), Fix: command.Hint(err)})
			return
		}
		sockets.Answer(w, http.StatusOK, taken{len(f.client.Status())})
	})
	return mux
}

// running is a client that runs.
type running struct {
	report
	process *sockets.Process
}

// findRunning returns the clients of this user that run with the config file of that name, or with any if it is empty,
// in the order of their files. It fails where there is none, or none that answers.
func findRunning(ctx context.Context, file string, log *slog.Logger) ([]running, error) {
	var found []running
	for _, folder := range folders() {
		processes, err := folder.Find(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range processes {
			found = append(found, running{process: p})
		}
	}
	errs := make([]error, len(found))
	var all sync.WaitGroup
	for n := range found {
		all.Go(func() { errs[n] = found[n].process.Look(ctx, "/status", &found[n].report) })
	}
	all.Wait()
	found = slices.DeleteFunc(found, func(r running) bool { return r.File == "" || file != "" && !sameFile(r.File, file) })
	for _, err := range errs {
		if err != nil && (file == "" || len(found) == 0) { // it may be the one that is asked for
			log.Warn("a client does not say how it does", "error", err, "hint", cmp.Or(command.Hint(err), "is it stopped, or very busy?"))
		}
	}
	if err := errors.Join(errs...); err != nil && !slices.Contains(errs, nil) {
		return nil, err
	}
	slices.SortFunc(found, func(a, b running) int { return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.PID, b.PID)) })
	if len(found) > 0 {
		return found, nil
	}
	if file != "" {
		return nil, &sockets.Error{Text: "no client is running with " + file, Fix: "raimonc -config " + file + " starts one; raimonc status shows all that run"}
	}
	return nil, &sockets.Error{Text: "no client with a config file is running", Fix: "raimonc -config <file> starts one; a client with addresses on its command line has its log alone, and other users have their own"}
}

// sameFile tells whether two names mean one file, which may be gone.
func sameFile(a, b string) bool {
	if b, err := filepath.Abs(b); err == nil && a == b {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

const reloadHelp = `raimonc reload has running clients take up their config file anew. No tunnel is
touched that has not changed.

    raimonc reload                          all clients of this user
    raimonc reload -config <file>           those that run with the file

Where the file is wrong, reload says why, and the client goes on with what it
had. SIGHUP does the same, but says so in the log only.

Exit status: 0 when it is done, 1 when no client is running or one said no.
`

var reloadCommand = command.Command{Name: "reload", Help: reloadHelp, Actions: []command.Action{{}}, Run: reloadClients}

func reloadClients(ctx context.Context, job *command.Job) error {
	clients, err := findRunning(ctx, job.Config, job.Log)
	if err != nil {
		return err
	}
	var failed []error
	for _, c := range clients {
		var answer taken
		if err := c.process.Order(ctx, "/reload", &answer); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(job.Stdout, "%s: %s taken up by the client with process id %d\n", text.Printable(c.File), counted(answer.Tunnels), c.PID)
	}
	return errors.Join(failed...)
}
