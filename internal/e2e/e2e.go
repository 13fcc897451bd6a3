// Package e2e runs athensctl as its users do: as processes, asked by the real
// go command and by crowds of clients, in front of an upstream of its own.
package e2e
