// Package interop holds the tests against programs of others: install.sh gets them, "make interop" runs the tests.
//
// They need the build tag interop. A program that is not there fails its test and names itself;
// h2spec, which depends on what a Go module proxy has, skips it, and so does what makes networks (networks_test.go),
// which root alone may do.
package interop
