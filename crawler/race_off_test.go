//go:build !race

package crawler

const underRace = false
