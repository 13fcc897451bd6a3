package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// start writes the image's files to a folder, starts the entrypoint in it n times, one
// after the other, and returns how long each took to be healthy, the fastest first.
func (img *image) start(n int) (times []time.Duration, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("to start it in the image's files needs root")
	}
	root, err := os.MkdirTemp("", "image")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	if err := os.Chmod(root, 0o755); err != nil {
		return nil, err
	}
	for _, f := range img.files {
		name := filepath.Join(root, f.Name)
		mode := f.FileInfo().Mode()
		if mode.IsDir() {
			err = os.MkdirAll(name, 0o755)
		} else {
			err = os.WriteFile(name, f.content, 0o644)
		}
		if err == nil {
			err = errors.Join(os.Chown(name, f.Uid, f.Gid), os.Chmod(name, mode))
		}
		if err != nil {
			return nil, err
		}
	}
	for range n {
		d, err := img.startOnce(root)
		if err != nil {
			return nil, err
		}
		times = append(times, d)
	}
	slices.Sort(times)
	return times, nil
}

func (img *image) startOnce(root string) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	address := l.Addr().String()
	l.Close()
	var out bytes.Buffer
	cmd := exec.Command(filepath.Join(root, img.config.Config.Entrypoint[0]), img.config.Config.Cmd...)
	cmd.Path = img.config.Config.Entrypoint[0]
	cmd.Dir = "/"
	cmd.Env = append(slices.Clone(img.config.Config.Env), "ATHENSCTL_LISTEN="+address)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}, Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	took, err := healthy("http://"+address+"/healthz", begin, ended)
	if err != nil {
		cmd.Process.Kill()
		return 0, fmt.Errorf("%w\n%s", err, out.String())
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		if err != nil {
			return 0, fmt.Errorf("after SIGTERM: %w\n%s", err, out.String())
		}
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		return 0, fmt.Errorf("still there a minute after SIGTERM\n%s", out.String())
	}
	return took, nil
}

// healthy asks every millisecond.
func healthy(url string, begin time.Time, ended chan error) (time.Duration, error) {
	client := &http.Client{Timeout: time.Second}
	for time.Since(begin) < 30*time.Second {
		select {
		case err := <-ended:
			return 0, fmt.Errorf("it ended: %v", err)
		default:
		}
		if resp, err := client.Get(url); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(begin), nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return 0, errors.New("not healthy within 30 s")
}
