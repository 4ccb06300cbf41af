package options

import "strings"

// Setting is one option. A switch has an empty value, as has "key=".
type Setting struct {
	Key, Value string
}

// Split takes an option string apart. Its error is an *Error.
func Split(s string) ([]Setting, error) {
	var settings []Setting
	var key string
	var text []byte
	hasKey := false
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s) || s[i] == ';':
			p := Setting{Key: strings.TrimSpace(string(text))}
			if hasKey {
				p = Setting{key, p.Key}
			}
			if p.Key == "" && hasKey {
				return nil, mistake("", `nothing stands before "="`, `write key=value, and \; for a ";" inside a value`)
			}
			if p.Key != "" {
				settings = append(settings, p)
			}
			key, text, hasKey = "", nil, false
		case s[i] == '=' && !hasKey:
			key, text, hasKey = strings.TrimSpace(string(text)), nil, true
		case s[i] == '\\' && i+1 == len(s):
			return nil, mistake("", "a lone backslash ends it", `write \\ for a backslash`)
		case s[i] == '\\' && strings.IndexByte(`;=\`, s[i+1]) >= 0:
			i++
			text = append(text, s[i])
		default:
			text = append(text, s[i])
		}
	}
	return settings, nil
}

// nearest returns the key of side's options that someone who typed key most likely meant, empty if there is none.
func nearest(side Side, key string) string { return Nearest(key, Keys(side)) }

// Keys are those of side's options, in the order of its help.
func Keys(side Side) (keys []string) {
	for _, row := range table {
		if row.sides&only(side) != 0 {
			keys = append(keys, row.key)
		}
	}
	return keys
}

// IsSwitch tells whether side has an option of that key that takes no value.
func IsSwitch(side Side, key string) bool {
	row := lookup(side, key)
	return row != nil && row.arg == ""
}

// IsRepeated tells whether side's option of that key may be given several times.
func IsRepeated(side Side, key string) bool {
	row := lookup(side, key)
	return row != nil && row.repeated
}

// IsList tells whether side's option of that key may have several values, as its help shows, with commas between them.
func IsList(side Side, key string) bool {
	row := lookup(side, key)
	return row != nil && strings.Contains(row.arg, ",...")
}

// Needs is the key without which side's option of that key is refused: ws, tls or socks; empty: it stands alone.
func Needs(side Side, key string) string {
	if row := lookup(side, key); row != nil {
		return row.needs
	}
	return ""
}

// Nearest returns the one of known that someone who typed key most likely meant, empty if there is none.
func Nearest(key string, known []string) string {
	best := ""
	limit := max(1, len(key)/3)
	for _, k := range known {
		if len(k)-len(key) > limit || len(key)-len(k) > limit {
			continue
		}
		if d := distance(strings.ToLower(key), strings.ToLower(k)); d <= limit {
			best, limit = k, d-1
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b in bytes, where two neighbours that changed places count once.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
