//go:build !race

package vcs

const underRace = false
