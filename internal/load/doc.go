// Package load holds the tests that put raimons and raimonc under load: thousands of tunnels, little memory, hours.
// "make load" runs them, "make soak" only the long one.
//
// They need the build tag load, Linux, and for some of them root; nothing is installed for them. The programs are
// processes of their own, built as they are released except that they can be asked what they hold.
package load
