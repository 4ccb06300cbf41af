package edge

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// ticketDay is how long a secret encrypts new tickets.
	ticketDay = 24 * time.Hour

	// ticketLife is how long a ticket may be used (RFC 8446, section 4.6.1; crypto/tls refuses older
	// ones of TLS 1.2 too). A secret is kept for the tickets of its last second.
	ticketLife = 7 * 24 * time.Hour

	// ticketAhead is how long before its time a secret is stored. All edges have read it long before
	// then, and a storage may be away for two days before each edge goes its own way.
	ticketAhead = 2 * ticketDay

	// ticketBackdate is for edges whose clock is behind that of the one which made the first secret.
	ticketBackdate = time.Hour

	// There are twelve when all goes well: eight that are past, today's and those to come.
	maxTicketSecrets = 24
)

// ticketSecret is what the keys of one day are derived from.
type ticketSecret struct {
	from   int64 // Unix seconds
	secret [32]byte
}

func newTicketSecret(from time.Time) ticketSecret {
	s := ticketSecret{from: from.Unix()}
	rand.Read(s.secret[:]) // it never fails
	return s
}

func (s ticketSecret) begin() time.Time  { return time.Unix(s.from, 0) }
func (s ticketSecret) end() time.Time    { return s.begin().Add(ticketDay) }
func (s ticketSecret) expiry() time.Time { return s.end().Add(ticketLife) }

// ticketSecrets are in the order of their time, two of the same second in any.
type ticketSecrets []ticketSecret

// current returns the newest secret that has begun, if its day is not over.
func (l ticketSecrets) current(now time.Time) (s ticketSecret, ok bool) {
	for _, s := range slices.Backward(l) {
		if !s.begin().After(now) {
			return s, s.end().After(now)
		}
	}
	return ticketSecret{}, false
}

// kept returns the secrets that may still be needed.
func (l ticketSecrets) kept(now time.Time) ticketSecrets {
	return slices.DeleteFunc(slices.Clone(l), func(s ticketSecret) bool { return !s.expiry().After(now) })
}

// with returns the secrets and s. Clocks that jump could make them too many: the farthest from s goes then.
func (l ticketSecrets) with(s ticketSecret) ticketSecrets {
	l = append(slices.Clone(l), s)
	slices.SortStableFunc(l, func(a, b ticketSecret) int { return cmp.Compare(a.from, b.from) })
	first, last := l[0], l[len(l)-1]
	switch {
	case len(l) <= maxTicketSecrets:
		return l
	case s.from-first.from > last.from-s.from:
		return l[1:]
	default:
		return l[:len(l)-1]
	}
}

// planned returns the secrets that the storage should hold: none that has expired, and one for every
// moment from now to ticketAhead. It returns l itself, and false, if that is so already.
//
// Secrets that are further ahead stay, for it may be our clock that is wrong.
func (l ticketSecrets) planned(now time.Time) (next ticketSecrets, changed bool) {
	next = l.kept(now)
	for t := now; !t.After(now.Add(ticketAhead)); {
		s, ok := next.current(t)
		if !ok {
			from := t
			if t.Equal(now) {
				from = now.Add(-ticketBackdate)
			}
			s = newTicketSecret(from)
			next = next.with(s)
		}
		t = s.end()
	}
	if slices.Equal(next, l) {
		return l, false
	}
	return next, true
}

// The value in the storage: a line that names the version, for each secret its first second (8 bytes,
// big endian) and its 32 bytes, and the SHA-256 of all that. The line and the sum are the same in every version.
const (
	ticketFormat  = "raimon session ticket keys "
	ticketVersion = "1"
	ticketEntry   = 8 + 32

	maxTicketTime = 253402300799 // the end of the year 9999, in Unix seconds
)

// errTicketsDamaged is wrapped by what parseTicketSecrets says of a value that nobody can use.
var errTicketsDamaged = errors.New("the value is damaged")

func (l ticketSecrets) marshal() []byte {
	b := []byte(ticketFormat + ticketVersion + "\n")
	for _, s := range l {
		b = binary.BigEndian.AppendUint64(b, uint64(s.from))
		b = append(b, s.secret[:]...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// parseTicketSecrets is the reverse of marshal. Its errors hold nothing of the value.
func parseTicketSecrets(value []byte) (ticketSecrets, error) {
	damaged := func(how string) (ticketSecrets, error) { return nil, fmt.Errorf("%w: %s", errTicketsDamaged, how) }
	if !bytes.HasPrefix(value, []byte(ticketFormat)) {
		return damaged("it does not hold session ticket keys")
	}
	at := max(0, len(value)-sha256.Size)
	body, sum := value[:at], value[at:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return damaged("its checksum does not fit")
	}
	version, entries, ok := bytes.Cut(bytes.TrimPrefix(body, []byte(ticketFormat)), []byte("\n"))
	switch {
	case !ok:
		return damaged("its version is missing")
	case string(version) != ticketVersion:
		return nil, errors.New("the value was written by a newer version of this program")
	case len(entries) == 0 || len(entries)%ticketEntry != 0 || len(entries) > maxTicketSecrets*ticketEntry:
		return damaged("its length does not fit")
	}
	var l ticketSecrets
	for entry := range slices.Chunk(entries, ticketEntry) {
		s := ticketSecret{from: int64(binary.BigEndian.Uint64(entry)), secret: [32]byte(entry[8:])}
		if s.from < 0 || s.from > maxTicketTime || len(l) > 0 && s.from < l[len(l)-1].from {
			return damaged("its times do not fit")
		}
		l = append(l, s)
	}
	return l, nil
}
