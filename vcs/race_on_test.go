//go:build race

package vcs

// underRace: the race detector takes memory of its own.
const underRace = true
