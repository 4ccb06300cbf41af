package tunnel

import "testing"

// Calls are told to the scheduler where they may last and others wait for a processor, and now and then in any case.
func TestWhichCallsAreQuick(t *testing.T) {
	for _, tt := range []struct {
		size   int
		floods int32
		want   bool
	}{
		{quickSize, processors, false},
		{quickSize + 1, processors, true},
		{quickSize + 1, processors - 1, false},
		{1 << 20, processors + 1, true},
		{1, 100 * processors, false},
	} {
		if got := isLong(tt.size, tt.floods); got != tt.want {
			t.Errorf("%d bytes beside %d directions: long is %v", tt.size, tt.floods, got)
		}
	}
	for _, each := range []uint32{ordinaryRead, ordinaryFill} {
		ordinary := uint32(0)
		for streak := range 10 * each {
			if isOrdinary(streak, each) {
				ordinary++
			}
		}
		if ordinary != 10 || isOrdinary(0, each) {
			t.Errorf("of %d in a row %d are ordinary, want each of %d, and never the first", 10*each, ordinary, each)
		}
	}
}
