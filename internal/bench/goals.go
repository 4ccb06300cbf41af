package main

import "fmt"

// goal is what raimon wants to reach, nearly always as a ratio to something else in the same run.
type goal struct {
	what    string
	value   func(r *results) (float64, bool)
	atLeast bool // else at most
	limit   float64
}

// ratio of the sums of measures.
func ratio(a, b string, measures ...measure) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		x, ok := r.total(a, measures...)
		y, ok2 := r.total(b, measures...)
		return x / y, ok && ok2 && y != 0
	}
}

// median of one measure.
func median(subject string, m measure) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.median(subject, m) }
}

var transports = []string{"tcp", "ws", "tls", "wss"}

func makeGoals() []goal {
	var goals []goal
	atLeast := func(limit float64, value func(*results) (float64, bool), format string, words ...any) {
		goals = append(goals, goal{fmt.Sprintf(format, words...), value, true, limit})
	}
	atMost := func(limit float64, value func(*results) (float64, bool), format string, words ...any) {
		goals = append(goals, goal{fmt.Sprintf(format, words...), value, false, limit})
	}
	for _, direction := range directions {
		for _, transport := range []string{"tcp", "ws"} {
			atLeast(0.9, ratio("raimon "+transport, "relay", rate(direction, 1)), "%s, throughput %s / relay's", transport, direction)
			atMost(1.15, ratio("raimon "+transport, "relay", cpuOfBoth(direction, 1)...), "%s, processor time %s / relay's", transport, direction)
		}
	}
	atMost(1.5, ratio("raimon ws mask=standard", "raimon ws copied", cpuOfBoth("up", 1)...), "ws mask=standard, processor time up / copied mask=skip's")
	for _, direction := range directions {
		for _, peer := range []string{"stunnel", "kaminari wss"} {
			atMost(1, ratio("raimon wss", peer, cpuOfBoth(direction, 1)...), "wss, processor time %s / %s's", direction, peer)
			atLeast(1, ratio("raimon wss", peer, rate(direction, 1)), "wss, throughput %s / %s's", direction, peer)
		}
	}
	for _, transport := range transports {
		atMost(1.05, ratio("raimon "+transport, "relay", rttP50), "%s, round trip p50 / relay's", transport)
	}
	atLeast(0.85, ratio("raimon ws", "relay", connectionRate), "ws, new connections / relay's")
	atLeast(0.4, ratio("raimon wss", "relay", connectionRate), "wss, new connections / relay's")
	atLeast(0.85, ratio("raimon ws reuse=off", "relay", connectionRate), "ws reuse=off, new connections / relay's")
	atLeast(0.4, ratio("raimon wss reuse=off", "relay", connectionRate), "wss reuse=off (resumed), new connections / relay's")
	for _, end := range ends {
		atMost(10, median("raimon ws", idleMemory(end)), "ws, KB per idle tunnel, %s", end)
		atMost(24, median("raimon wss", idleMemory(end)), "wss, KB per idle tunnel, %s", end)
		for _, transport := range transports {
			atMost(2.1, median("raimon "+transport, idleFiles(end)), "%s, descriptors per idle tunnel, %s", transport, end)
		}
		for _, transport := range []string{"tcp", "ws"} {
			atMost(1.2, burstOverIdle("raimon "+transport, end), "%s, memory after a burst / before, %s", transport, end)
		}
		const recordBuffers = 2 * 17.5 // KB: one record (16 KiB and what TLS adds) a direction, as crypto/tls keeps it
		atMost(recordBuffers, burstBeyondIdle("raimon wss", end), "wss, KB more per tunnel after a burst, %s", end)
	}
	// The answer to an upgrade and what the server says first travel together.
	for i, transport := range []string{"tcp", "ws reuse=off", "tls", "wss reuse=off"} {
		atMost([]float64{2, 3, 3, 4}[i]+0.2, median("raimon "+transport, appFirst), "%s, round trips to the %s", transport, appFirst.name)
		atMost([]float64{2, 2, 3, 3}[i]+0.2, median("raimon "+transport, serverFirst), "%s, round trips to the %s", transport, serverFirst.name)
	}
	for _, m := range []measure{appFirst, serverFirst} {
		atMost(1.2, median("raimon ws", m), "ws, connection used again, round trips to the %s", m.name)
		atMost(1.2, median("raimon wss", m), "wss, connection used again, round trips to the %s", m.name)
		atMost(1.2, median("raimon wss pool", m), "wss with a pool, round trips to the %s", m.name)
	}
	for _, transport := range transports {
		atMost(1.5, ratio("raimon "+transport, "relay", loadedP99), "%s, round trip p99 under load / relay's", transport)
	}
	for _, direction := range directions {
		atLeast(1.8, median("raimon wss", busy(direction, 2)), "wss, processors at work with two connections %s", direction)
	}
	return goals
}

func burstOverIdle(subject, end string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		before, ok := r.median(subject, idleMemory(end))
		after, ok2 := r.median(subject, burstMemory(end))
		return after / before, ok && ok2 && before != 0
	}
}

func burstBeyondIdle(subject, end string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		before, ok := r.median(subject, idleMemory(end))
		after, ok2 := r.median(subject, burstMemory(end))
		return after - before, ok && ok2
	}
}

// goalTable says what was reached; goals without numbers are left out.
func goalTable(r *results) table {
	t := table{title: "Goals", head: []string{"what", "goal", "measured", ""}}
	for _, g := range makeGoals() {
		x, ok := g.value(r)
		if !ok {
			continue
		}
		bound, reached := "≤", x <= g.limit
		if g.atLeast {
			bound, reached = "≥", x >= g.limit
		}
		verdict := "missed"
		if reached {
			verdict = "reached"
		}
		t.rows = append(t.rows, []string{g.what, fmt.Sprintf("%s %.4g", bound, g.limit), fmt.Sprintf("%.2f", x), verdict})
	}
	return t
}
