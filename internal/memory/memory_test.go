package memory

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// A burst leaves dead objects and a full pool behind, which nothing but a collection gives back.
func TestBurstIsGivenBack(t *testing.T) {
	go Manage(t.Context())
	pool := sync.Pool{New: func() any { return new([1 << 20]byte) }}
	var burst []any
	for range 64 {
		block := pool.Get()
		for i := range block.(*[1 << 20]byte) {
			block.(*[1 << 20]byte)[i] = 1
		}
		burst = append(burst, block)
	}
	for _, block := range burst {
		pool.Put(block)
	}
	burst = nil
	held := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapSys - m.HeapReleased
	}
	if held() < 64<<20 {
		t.Fatalf("the burst needs only %d bytes", held())
	}
	for deadline := time.Now().Add(time.Minute); held() > 16<<20; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are still held", held())
		}
	}
	runtime.KeepAlive(&pool)
}
