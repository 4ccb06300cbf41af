// Package faults tests automatic certificates while everything around them breaks: the CA, the disk, the
// clock, the files in the storage, and raimons itself by kill -9.
//
// It has tests only. They run the program raimons against Pebble (package acmetest). Most run it as it is
// built; where a test cannot wait for minutes or needs another clock, it runs raimons-tuned, the same
// sources with testdata/tuned.go added to package acme, which changes constants by order of the environment.
package faults
