package testgit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// SSH is a host of repositories over SSH, with git's own upload-pack. A repository of
// the folder root is at ssh://git@Addr/name, and at git@Addr:name.
type SSH struct {
	Addr     string
	HostKeys []ssh.Signer // one, of ed25519
	Key      string       // file of the private key that it knows
	Known    string       // known_hosts file that has it

	// Version0: it refuses GIT_PROTOCOL, as servers do that nobody has told of it, and
	// gives only what its refs name.
	Version0 bool
	// Version1: it speaks that, whatever it is told.
	Version1 bool
	// Answer takes the place of git: what the command writes, and its status.
	Answer func(command string, in io.Reader, out, stderr io.Writer) uint32

	root string
	mu   sync.Mutex
	log  []string
	open map[net.Conn]bool
}

// NewSSH starts a server, as options make it, which ends with the test. Without git the
// test is skipped, or fails where ATHENSCTL_TEST_REQUIRE is set.
func NewSSH(t testing.TB, root string, options ...func(*SSH)) *SSH {
	t.Helper()
	Needs(t, "git")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &SSH{Addr: listener.Addr().String(), HostKeys: []ssh.Signer{NewKey(t)}, Key: filepath.Join(dir, "key"), Known: filepath.Join(dir, "known_hosts"), root: root, open: map[net.Conn]bool{}}
	client := NewKeyFile(t, s.Key, "")
	line := knownhosts.Line([]string{s.Addr}, s.HostKeys[0].PublicKey()) + "\n"
	if err := os.WriteFile(s.Known, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, set := range options {
		set(s)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.set(conn, true)
			wg.Go(func() {
				defer s.set(conn, false)
				s.serve(conn, client.PublicKey())
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.mu.Lock()
		for conn := range s.open {
			conn.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	})
	return s
}

// NewKey makes a key.
func NewKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// NewKeyFile makes a key and writes it to a file, encrypted when there is a passphrase.
func NewKeyFile(t testing.TB, name, passphrase string) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err == nil {
		err = os.WriteFile(name, pem.EncodeToMemory(block), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// Commands are those that clients gave.
func (s *SSH) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

// Open is how many connections there are.
func (s *SSH) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *SSH) set(conn net.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.open[conn] = true
	} else {
		delete(s.open, conn)
	}
}

func (s *SSH) serve(conn net.Conn, client ssh.PublicKey) {
	defer conn.Close()
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(client.Marshal()) {
			return nil, fmt.Errorf("another key")
		}
		return nil, nil
	}}
	for _, key := range s.HostKeys {
		config.AddHostKey(key)
	}
	c, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	for open := range channels {
		if open.ChannelType() != "session" {
			open.Reject(ssh.UnknownChannelType, "sessions alone")
			continue
		}
		channel, requests, err := open.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { s.session(channel, requests) })
	}
}

func (s *SSH) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	protocol := ""
	for r := range requests {
		switch r.Type {
		case "env":
			var v struct{ Name, Value string }
			ok := ssh.Unmarshal(r.Payload, &v) == nil && v.Name == "GIT_PROTOCOL" && !s.Version0
			if ok {
				protocol = v.Value
			}
			r.Reply(ok, nil)
		case "exec":
			var v struct{ Command string }
			if ssh.Unmarshal(r.Payload, &v) != nil {
				r.Reply(false, nil)
				return
			}
			r.Reply(true, nil)
			s.mu.Lock()
			s.log = append(s.log, v.Command)
			s.mu.Unlock()
			go ssh.DiscardRequests(requests)
			run := s.uploadPack
			if s.Answer != nil {
				run = func(command, _ string, c ssh.Channel) uint32 { return s.Answer(command, c, c, c.Stderr()) }
			}
			status := run(v.Command, protocol, channel)
			channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
			return
		default:
			r.Reply(false, nil)
		}
	}
}

// uploadPack runs a command of git's client: git-upload-pack 'path'.
func (s *SSH) uploadPack(command, protocol string, c ssh.Channel) uint32 {
	path, ok := strings.CutPrefix(command, "git-upload-pack '")
	path, ok2 := strings.CutSuffix(path, "'")
	if !ok || !ok2 {
		fmt.Fprintf(c.Stderr(), "%q is not allowed\n", command)
		return 128
	}
	path = strings.NewReplacer(`'\''`, "'", `'\!'`, "!").Replace(path)
	args := []string{"upload-pack", filepath.Join(s.root, path)}
	if s.Version0 {
		args = append([]string{"-c", "uploadpack.allowFilter=false"}, args...)
	}
	if s.Version1 {
		protocol = "version=1"
	}
	cmd := exec.Command("git", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.root, "GIT_CONFIG_NOSYSTEM=1", "GIT_PROTOCOL=" + protocol}
	cmd.Stdout, cmd.Stderr = c, c.Stderr()
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(c.Stderr(), err)
		return 128
	}
	go func() { // not cmd.Stdin: Wait would wait for the client to close its end
		io.Copy(in, c)
		in.Close()
	}()
	if err := cmd.Wait(); err != nil {
		return 128
	}
	return 0
}

// GitSSH is the value of GIT_SSH_COMMAND with which git reaches the server.
func (s *SSH) GitSSH() string {
	return fmt.Sprintf("ssh -F none -i %s -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=%s -o GlobalKnownHostsFile=none -o LogLevel=ERROR",
		s.Key, s.Known)
}
