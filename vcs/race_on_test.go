//go:build race

package vcs

// underRace: the race detector makes many versions take ten times as long.
const underRace = true
