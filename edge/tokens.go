package edge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// tokenHash stands before the hash of a token in the file.
	tokenHash = "sha256:"

	maxTokenFile = 1 << 20
	maxTokens    = 10_000 // each costs some 10 ns of every request
	maxTokenName = 128    // bytes
)

// Tokens says whose token a client shows. It takes up a new file without a restart.
//
// Set the fields, call Load once, then run Watch beside the listeners. Until there was a file to load, no
// token is anybody's.
type Tokens struct {
	// File is the path of the list: a line a token, with the name of whose it is, blanks, and "sha256:"
	// followed by the SHA-256 of the token in hex or base64. Empty lines, and those that begin with #,
	// say nothing. A name may stand on several lines. At most 1 MiB and 10000 tokens.
	//
	// A plain hash is enough because tokens are random, with 128 bits at least: nobody finds one by trying.
	// It is not enough for passwords that people think up.
	File string
	// Log gets one line for each list taken up or refused; nil means slog.Default. Tokens and their hashes
	// are never in it.
	Log *slog.Logger
	// Interval is how often Watch looks at the file. A change is taken up at the second look that sees it.
	// Zero means 1 second.
	Interval time.Duration

	inUse atomic.Pointer[tokenList]
}

// tokenList is what the file held.
type tokenList struct {
	entries []tokenEntry
	digest  [sha256.Size]byte
}

type tokenEntry struct {
	name string
	hash [sha256.Size]byte
}

// Load reads the file, whose tokens are good from now on. The error names the file and the line; it holds
// nothing of what stands there. Fs.ErrNotExist and fs.ErrPermission are kept.
func (t *Tokens) Load() error { return t.takeUp(t.read()) }

// Watch looks at the file until ctx ends and takes up what has changed. A file that is wrong, or cannot
// be read, is refused with one line in the log, and the tokens in use stay.
func (t *Tokens) Watch(ctx context.Context) { t.watching().run(ctx, t.Interval, func() {}) }

// User tells whose token it is. How long that takes does not depend on which it is, nor on whether there is one.
func (t *Tokens) User(token string) (name string, ok bool) {
	return t.userOf(sha256.Sum256([]byte(token)))
}

// userOf is User for a token of which there is the hash.
func (t *Tokens) userOf(hash [sha256.Size]byte) (name string, ok bool) {
	found, at := 0, 0
	list := t.inUse.Load()
	if list == nil {
		return "", false
	}
	for n := range list.entries {
		same := subtle.ConstantTimeCompare(list.entries[n].hash[:], hash[:])
		at = subtle.ConstantTimeSelect(same, n, at)
		found |= same
	}
	if found == 0 {
		return "", false
	}
	return list.entries[at].name, true
}

func (t *Tokens) watching() *fileWatch {
	return &fileWatch{
		paths: []string{t.File},
		read:  t.read,
		inUse: func() (digest [sha256.Size]byte, ok bool) {
			if list := t.inUse.Load(); list != nil {
				return list.digest, true
			}
			return digest, false
		},
		takeUp: t.takeUp,
		again:  func() { t.log().Info("token file holds the tokens in use again", "file", t.File) },
		refuse: func(err error) {
			if t.inUse.Load() == nil {
				t.log().Error("tokens refused, none is good", "error", err)
				return
			}
			t.log().Error("tokens refused, those in use stay", "error", err)
		},
	}
}

func (t *Tokens) read() fileContents {
	return fileContents{readFile("token file", t.File, maxTokenFile)}
}

func (t *Tokens) takeUp(files fileContents) error {
	entries, err := parseContent(files[0], parseTokens)
	if err != nil {
		return err
	}
	t.inUse.Store(&tokenList{entries: entries, digest: files.digest()})
	t.log().Info("tokens taken up", "file", t.File, "count", len(entries))
	return nil
}

func (t *Tokens) log() *slog.Logger { return cmp.Or(t.Log, slog.Default()) }

// parseTokens reads a list. Its errors name lines and quote nothing: what stands in the wrong place may be
// a token.
func parseTokens(data []byte) ([]tokenEntry, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // written by Windows editors
	var entries []tokenEntry
	lines := make(map[[sha256.Size]byte]int) // where a hash stands
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		entry, err := parseToken(words)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if other := lines[entry.hash]; other != 0 {
			return nil, fmt.Errorf("line %d: %w", number, &hintedError{fmt.Errorf("the same token as in line %d", other), "give everybody a token of their own: raimons token makes one"})
		}
		if len(entries) == maxTokens {
			return nil, fmt.Errorf("more than %d tokens", maxTokens)
		}
		lines[entry.hash] = number
		entries = append(entries, entry)
	}
	return entries, nil
}

const tokenHint = "a line is a name, a blank, and sha256: with the SHA-256 of the token in hex: raimons token <name> prints one"

func parseToken(words []string) (entry tokenEntry, err error) {
	wrong := func(problem string) (tokenEntry, error) {
		return tokenEntry{}, &hintedError{errors.New(problem), tokenHint}
	}
	if strings.HasPrefix(words[0], tokenHash) {
		return wrong("the name is missing")
	}
	if !IsTokenName(words[0]) {
		return wrong(fmt.Sprintf("the name is longer than %d bytes, or holds what cannot be printed", maxTokenName))
	}
	if len(words) == 1 {
		return wrong("a single word, where a name and the hash of a token should be")
	}
	text, found := strings.CutPrefix(words[1], tokenHash)
	if !found {
		return wrong("no sha256: stands behind the name: tokens themselves do not belong into this file")
	}
	if len(words) > 2 {
		return wrong("something stands behind the hash")
	}
	hash := decodeHash(text)
	if hash == nil {
		return wrong("what stands behind sha256: is not 32 bytes in hex or base64")
	}
	entry = tokenEntry{name: words[0], hash: [sha256.Size]byte(hash)}
	if entry.hash == sha256.Sum256(nil) {
		return wrong("the hash of nothing, which would let in everybody without a token")
	}
	return entry, nil
}

// IsTokenName tells whether name can stand in the file of Tokens, and in a log: one printable word of at most 128 bytes.
func IsTokenName(name string) bool {
	return name != "" && len(name) <= maxTokenName && utf8.ValidString(name) &&
		!strings.HasPrefix(name, "#") && !strings.HasPrefix(name, tokenHash) &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' })
}

// decodeHash reads a SHA-256 in hex, or in base64 of either alphabet, padded or not. It is nil for anything else.
func decodeHash(text string) []byte {
	hash, err := hex.DecodeString(text)
	if err != nil || len(hash) != sha256.Size {
		text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
		hash, err = base64.RawStdEncoding.Strict().DecodeString(text)
	}
	if err != nil || len(hash) != sha256.Size {
		return nil
	}
	return hash
}

// HashToken is what stands for a token in the file of Tokens.
func HashToken(token string) string {
	hash := sha256.Sum256([]byte(token))
	return tokenHash + hex.EncodeToString(hash[:])
}
