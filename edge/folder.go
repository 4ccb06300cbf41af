package edge

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// maxRanges is how many ranges of a file one answer has; requests for more get the whole file.
const maxRanges = 16

// Folder serves the files in dir to GET and HEAD. A folder is its index.html, and is never listed. What is
// not there is answered with 404.html, if that is. Names that begin with a dot are hidden, all but
// /.well-known (RFC 8615); neither .. nor a symbolic link leads out of dir. A file.br or file.gz that is no
// older than its file goes to those who accept it.
//
// Each request opens dir anew, so another folder may be moved into its place. The error is that of a dir
// that cannot be opened now.
func Folder(dir string) (http.Handler, error) {
	full, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("site folder %s: %w", dir, err)
	}
	root, err := os.OpenRoot(full)
	if err != nil {
		return nil, fmt.Errorf("site folder: %w", err)
	}
	return folder(full), root.Close()
}

type folder string

// ServeHTTP implements http.Handler.
func (f folder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	root, err := os.OpenRoot(string(f))
	if err != nil {
		serveFailure(w, err)
		return
	}
	defer root.Close()
	page := &page{root: root, w: w, r: r}
	if err := page.serve(); err != nil {
		page.serveError(err)
	}
}

// page is the answer to one request.
type page struct {
	root *os.Root
	w    http.ResponseWriter
	r    *http.Request
}

// serve answers with the file that was asked for. Nothing has been written where it returns an error.
func (p *page) serve() error {
	asked := p.r.URL.Path
	clean := path.Clean("/" + asked)
	name, err := localName(clean)
	if err != nil {
		return err
	}
	info, err := p.root.Stat(name)
	if err != nil {
		return err
	}
	isFolder := strings.HasSuffix(asked, "/")
	if !info.IsDir() {
		if isFolder {
			return fs.ErrNotExist
		}
		return p.serveFile(name, info)
	}
	name = filepath.Join(name, "index.html")
	if info, err = p.root.Stat(name); err != nil {
		return err
	}
	if !isFolder && clean != "/" {
		// One slash at the beginning, for two would name another host (RFC 3986, section 4.2).
		target := url.URL{Path: clean + "/", RawQuery: p.r.URL.RawQuery}
		p.w.Header().Set("Location", target.String())
		p.w.WriteHeader(http.StatusMovedPermanently)
		return nil
	}
	return p.serveFile(name, info)
}

// localName is the name below the root for a clean path of a URL.
func localName(clean string) (string, error) {
	name := strings.TrimPrefix(clean, "/")
	for n, part := range strings.Split(name, "/") {
		if strings.HasPrefix(part, ".") && (n > 0 || part != ".well-known") {
			return "", fs.ErrNotExist
		}
	}
	if name == "" {
		return ".", nil
	}
	name, err := filepath.Localize(name) // no NUL and, on Windows, neither \ nor : nor names of devices
	if err != nil {
		return "", fs.ErrNotExist
	}
	return name, nil
}

func (p *page) serveFile(name string, info fs.FileInfo) error {
	file, info, encoding, err := p.open(name, info)
	if err != nil {
		return err
	}
	defer file.Close()
	header := p.w.Header()
	header.Set("Content-Type", contentType(name))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Vary", "Accept-Encoding")
	if encoding != "" {
		header.Set("Content-Encoding", encoding)
	}
	header.Set("ETag", fmt.Sprintf(`"%x-%x%s"`, info.ModTime().UnixNano(), info.Size(), encoding))
	r := p.r
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
	}
	http.ServeContent(p.w, r, name, info.ModTime(), file)
	return nil
}

// open opens the file, or what stands beside it for those who accept a compressed one.
func (p *page) open(name string, info fs.FileInfo) (*os.File, fs.FileInfo, string, error) {
	accepted := p.r.Header.Values("Accept-Encoding")
	for _, c := range []struct{ coding, suffix string }{{"br", ".br"}, {"gzip", ".gz"}} {
		if !acceptsCoding(accepted, c.coding) {
			continue
		}
		packed, err := p.root.Stat(name + c.suffix)
		if err != nil || packed.ModTime().Before(info.ModTime()) {
			continue // the file itself will do
		}
		if file, packed, err := p.openRegular(name+c.suffix, packed); err == nil {
			return file, packed, c.coding, nil
		}
	}
	file, info, err := p.openRegular(name, info)
	return file, info, "", err
}

// openRegular opens no pipes, which would wait for a writer, and no devices.
func (p *page) openRegular(name string, info fs.FileInfo) (*os.File, fs.FileInfo, error) {
	if !info.Mode().IsRegular() {
		return nil, nil, fs.ErrNotExist
	}
	file, err := p.root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	if info, err = file.Stat(); err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// serveError answers for a file that cannot be served.
func (p *page) serveError(err error) {
	if !isMissing(err) || !p.serveMissing() {
		serveFailure(p.w, err)
	}
}

// serveMissing answers with 404.html, if there is one.
func (p *page) serveMissing() bool {
	const name = "404.html"
	info, err := p.root.Stat(name)
	if err != nil {
		return false
	}
	file, info, err := p.openRegular(name, info)
	if err != nil {
		return false
	}
	defer file.Close()
	p.w.Header().Set("Content-Type", contentType(name))
	p.w.Header().Set("Content-Length", fmt.Sprint(info.Size()))
	p.w.Header().Set("X-Content-Type-Options", "nosniff")
	p.w.WriteHeader(http.StatusNotFound)
	if p.r.Method == http.MethodHead {
		return true
	}
	if _, err := io.CopyN(p.w, file, info.Size()); err != nil {
		panic(http.ErrAbortHandler) // the connection is all that can still tell
	}
	return true
}

func serveFailure(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, fs.ErrPermission):
		status = http.StatusForbidden
	case isMissing(err):
		status = http.StatusNotFound
	}
	http.Error(w, http.StatusText(status), status)
}

// isMissing tells whether err means that there is nothing of that name, or nothing inside the root. All other
// errors are those of systems that have trouble.
func isMissing(err error) bool {
	var errno syscall.Errno
	if errors.Is(err, fs.ErrNotExist) || !errors.As(err, &errno) {
		return true // os.Root has an error of its own for what leads out
	}
	switch errno {
	case syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.ELOOP, syscall.EINVAL:
		return true
	}
	return false
}

// acceptsCoding tells whether an Accept-Encoding (RFC 9110, section 12.5.3) names coding and does not rule it out.
func acceptsCoding(fields []string, coding string) bool {
	for _, field := range fields {
		for element := range strings.SplitSeq(field, ",") {
			name, weight, _ := strings.Cut(element, ";")
			if !strings.EqualFold(strings.TrimSpace(name), coding) {
				continue
			}
			_, q, weighted := strings.Cut(weight, "=")
			return !weighted || strings.Trim(q, "0. \t") != ""
		}
	}
	return false
}

// contentType is the media type of a file; machines have different tables of their own.
func contentType(name string) string {
	return cmp.Or(contentTypes[strings.ToLower(filepath.Ext(name))], "application/octet-stream")
}

// contentTypes has them by the extension of the name.
var contentTypes = map[string]string{
	".html":        "text/html; charset=utf-8",
	".htm":         "text/html; charset=utf-8",
	".css":         "text/css; charset=utf-8",
	".js":          "text/javascript; charset=utf-8",
	".mjs":         "text/javascript; charset=utf-8",
	".txt":         "text/plain; charset=utf-8",
	".text":        "text/plain; charset=utf-8",
	".log":         "text/plain; charset=utf-8",
	"":             "text/plain; charset=utf-8",
	".md":          "text/markdown; charset=utf-8",
	".csv":         "text/csv; charset=utf-8",
	".ics":         "text/calendar; charset=utf-8",
	".vtt":         "text/vtt; charset=utf-8",
	".json":        "application/json",
	".map":         "application/json",
	".webmanifest": "application/manifest+json",
	".xml":         "text/xml; charset=utf-8",
	".rss":         "application/rss+xml",
	".atom":        "application/atom+xml",
	".xhtml":       "application/xhtml+xml",
	".svg":         "image/svg+xml",
	".png":         "image/png",
	".jpg":         "image/jpeg",
	".jpeg":        "image/jpeg",
	".gif":         "image/gif",
	".webp":        "image/webp",
	".avif":        "image/avif",
	".ico":         "image/x-icon",
	".bmp":         "image/bmp",
	".woff":        "font/woff",
	".woff2":       "font/woff2",
	".ttf":         "font/ttf",
	".otf":         "font/otf",
	".mp3":         "audio/mpeg",
	".ogg":         "audio/ogg",
	".oga":         "audio/ogg",
	".opus":        "audio/ogg",
	".wav":         "audio/wav",
	".flac":        "audio/flac",
	".m4a":         "audio/mp4",
	".mp4":         "video/mp4",
	".m4v":         "video/mp4",
	".webm":        "video/webm",
	".wasm":        "application/wasm",
	".pdf":         "application/pdf",
	".zip":         "application/zip",
	".gz":          "application/gzip",
	".tgz":         "application/gzip",
}
