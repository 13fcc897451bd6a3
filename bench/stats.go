package main

import (
	"cmp"
	"math"
	"slices"
)

// median is the middle of xs, or the mean of its two middles; 0 when empty.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(xs))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// percentile is the nearest-rank percentile of sorted: the smallest value that
// at least p in a hundred do not exceed. Zero when sorted is empty.
func percentile[T cmp.Ordered](sorted []T, p float64) T {
	if len(sorted) == 0 {
		var zero T
		return zero
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// medianOf is the median of one figure of each x.
func medianOf[T any](xs []T, figure func(T) float64) float64 {
	fs := make([]float64, len(xs))
	for i, x := range xs {
		fs[i] = figure(x)
	}
	return median(fs)
}

// medianRatio is the median of a[i]/b[i]. It is 0, which stands for "not
// known", unless both have the same passes and no b is zero.
func medianRatio(a, b []float64) float64 {
	if len(a) != len(b) {
		return 0
	}
	ratios := make([]float64, len(a))
	for i := range a {
		if b[i] == 0 {
			return 0
		}
		ratios[i] = a[i] / b[i]
	}
	return median(ratios)
}
