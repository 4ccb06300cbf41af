package edge

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	defaultWatchInterval = time.Second

	// Two writes may get one time stamp (FAT counts in steps of 2 s): a file younger than this is
	// read at every look, whatever its stat says.
	coarsestTimestamp = 3 * time.Second
)

// fileWatch takes up files that change, without a restart. A change is taken up at the second look
// that sees it, so that nothing half written is.
//
// It polls: notifications miss symlinks that are swapped (certbot, Kubernetes) and network file systems.
type fileWatch struct {
	paths  []string // to stat; an empty one is none
	read   func() fileContents
	inUse  func() (digest [sha256.Size]byte, ok bool) // of what is in use; not ok: nothing is
	takeUp func(fileContents) error                   // uses what the files hold, or says what is wrong
	again  func()                                     // logs that the files hold what is in use, after they did not
	refuse func(error)                                // logs why takeUp did not

	stats   []fs.FileInfo
	digest  [sha256.Size]byte // what the files held
	atRest  bool              // no need to read while the stats stay the same
	refused [sha256.Size]byte // what was found wanting and logged; zero if nothing is wrong
}

// run looks at the files until ctx ends, and calls after behind each look. Interval zero means 1 second.
func (w *fileWatch) run(ctx context.Context, interval time.Duration, after func()) {
	if interval <= 0 {
		interval = defaultWatchInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	w.digest, _ = w.inUse()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.look()
			after()
		}
	}
}

func (w *fileWatch) look() {
	// Stat before reading: a write in between shows at the next look. Reading every time would be
	// simpler, but fills the log of whoever audits reads of private keys.
	stats := statAll(w.paths)
	if w.atRest && sameStats(stats, w.stats) {
		return
	}
	files := w.read()
	digest := files.digest()
	settled := digest == w.digest
	w.stats, w.digest = stats, digest
	w.atRest = settled && files.readable() && allOlder(stats, coarsestTimestamp)
	if !settled {
		return // perhaps half a renewal
	}

	used, ok := w.inUse()
	healthy := w.refused == [sha256.Size]byte{}
	switch {
	case ok && digest == used && healthy:
	case ok && digest == used:
		w.refused = [sha256.Size]byte{}
		w.again()
	case digest == w.refused:
	default:
		if err := w.takeUp(files); err != nil {
			w.refused = digest
			w.refuse(err)
			return
		}
		w.refused = [sha256.Size]byte{}
	}
}

// fileContent is the content of one file, or the reason why there is none.
type fileContent struct {
	name string // kind and path, for errors
	data []byte
	err  error
}

// readFile reads a regular file of at most limit bytes.
func readFile(kind, path string, limit int) fileContent {
	f := fileContent{name: kind + " " + path}
	if path == "" {
		f.name = kind
	}
	var data []byte
	data, f.err = readRegularFile(path, limit)
	if pathErr, ok := errors.AsType[*fs.PathError](f.err); ok {
		f.err = pathErr.Err // the name already says which file
	}
	if f.err == nil {
		f.data = data
	}
	return f
}

func readRegularFile(path string, limit int) ([]byte, error) {
	if path == "" {
		return nil, errors.New("no file is given")
	}
	// Opening a pipe would wait for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("a directory, not a file")
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file, so it could not be read again when it changes")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return data, nil
}

func parseContent[T any](f fileContent, parse func([]byte) (T, error)) (T, error) {
	var none T
	if f.err != nil {
		return none, fmt.Errorf("%s: %w", f.name, f.err)
	}
	v, err := parse(f.data)
	if err != nil {
		return none, fmt.Errorf("%s: %w", f.name, err)
	}
	return v, nil
}

// fileContents is what files that belong together held at one look.
type fileContents []fileContent

// digest is the same for the same content, and for the same trouble in reading it.
func (all fileContents) digest() [sha256.Size]byte {
	h := sha256.New()
	for _, file := range all {
		text := ""
		if file.err != nil {
			text = file.err.Error()
		}
		h.Write(binary.AppendUvarint(nil, uint64(len(text))))
		io.WriteString(h, text)
		h.Write(binary.AppendUvarint(nil, uint64(len(file.data))))
		h.Write(file.data)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (all fileContents) readable() bool {
	for _, file := range all {
		if file.err != nil {
			return false
		}
	}
	return true
}

// statAll follows symlinks. A file that has no stat is nil.
func statAll(paths []string) []fs.FileInfo {
	stats := make([]fs.FileInfo, len(paths))
	for i, path := range paths {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil {
			stats[i] = info
		}
	}
	return stats
}

func sameStats(a, b []fs.FileInfo) bool {
	for i := range a {
		if a[i] == nil && b[i] == nil {
			continue
		}
		if a[i] == nil || b[i] == nil || !os.SameFile(a[i], b[i]) ||
			a[i].Size() != b[i].Size() || a[i].Mode() != b[i].Mode() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
}

func allOlder(stats []fs.FileInfo, age time.Duration) bool {
	for _, info := range stats {
		if info != nil && time.Since(info.ModTime()) < age {
			return false
		}
	}
	return true
}
