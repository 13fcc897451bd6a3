//go:build !linux

package main

import (
	"errors"
	"time"
)

func (img *image) start(int) ([]time.Duration, error) {
	return nil, errors.New("the image is started on Linux only")
}
