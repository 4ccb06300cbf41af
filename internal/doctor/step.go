package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"

	"raimon/internal/text"
)

// Verdict is how a step has gone.
type Verdict string

const (
	OK      Verdict = "ok"
	Warning Verdict = "warning"
	Failed  Verdict = "failed"
)

// Step is what was found at one point of the way. Its texts are printable, in one line each, and hold no secret.
type Step struct {
	Name    string  `json:"step"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Advice  string  `json:"advice,omitempty"` // what to do; not empty unless all is well
	// Milliseconds is how long it took; zero: it is nothing that takes time.
	Milliseconds float64 `json:"ms,omitempty"`
}

// Print writes s for people: one line, and what to do in another.
func (s Step) Print(w io.Writer) error {
	line := fmt.Sprintf("%-8s %-11s %s", s.Verdict, s.Name, s.Found)
	if s.Milliseconds > 0 {
		line += " (" + show(time.Duration(s.Milliseconds*float64(time.Millisecond))) + ")"
	}
	line += "\n"
	if s.Advice != "" {
		line += fmt.Sprintf("%-20s -> %s\n", "", s.Advice)
	}
	_, err := io.WriteString(w, line)
	return err
}

// ok reports that all is well. It is true, as what follows may go on.
func (e *examination) ok(step, found string, took time.Duration) bool {
	e.report(Step{Name: step, Verdict: OK, Found: found}, took)
	return true
}

// warn reports what works and should not stay as it is. It is true, as what follows may go on.
func (e *examination) warn(step, found, advice string, took time.Duration) bool {
	e.report(Step{Name: step, Verdict: Warning, Found: found, Advice: advice}, took)
	return true
}

// fail reports what does not work. It is false: what needs the step is left out.
func (e *examination) fail(step string, err error, took time.Duration) bool {
	return e.failWith(step, err.Error(), e.advice(err), took)
}

func (e *examination) failWith(step, found, advice string, took time.Duration) bool {
	e.failed = true
	e.report(Step{Name: step, Verdict: Failed, Found: found, Advice: advice}, took)
	return false
}

// failOpen reports what became of open.
func (e *examination) failOpen(err error) {
	var at *stepError
	if errors.As(err, &at) {
		e.fail(at.step, at.err, at.took)
		return
	}
	e.fail(e.reaching(), err, 0)
}

// advice is never empty.
func (e *examination) advice(err error) string {
	return cmp.Or(e.Hint(err), "nothing is known about this one: the edge's log may say more")
}

func (e *examination) report(s Step, took time.Duration) {
	s.Found, s.Advice = plain(s.Found, 400), plain(s.Advice, 400)
	s.Milliseconds = float64(took.Round(10*time.Microsecond)) / float64(time.Millisecond)
	e.Report(s)
}

// plain is s in one line, with nothing in it that a terminal might obey.
func plain(s string, limit int) string { return text.Shorten(text.Printable(s), limit) }

// show is d with as many digits as mean something.
func show(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 100*time.Millisecond:
		return d.Round(time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
