package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/athensctl/athensctl/goproxy"
)

// sshTransport is the http.RoundTripper of the scheme ssh, so that what bounds
// requests bounds these too. A POST to ssh://user@host:port/path is one run of
// git-upload-pack for the path there, over a connection of its own: the request's body
// is its input, the answer's body its output, both at once. The connection ends when
// the answer's body is closed or the request's context ends. The header Git-Protocol
// goes along as GIT_PROTOCOL; a server may ignore it.
//
// A host must be in the known hosts, with the key that it shows; nothing is sent to
// another. Source: https://git-scm.com/docs/pack-protocol#_ssh_transport.
type sshTransport struct {
	r     *Remote
	keys  []sshKey // the longest prefix first
	file  string   // of known hosts; "": there is none
	lines []string // of the file
	check ssh.HostKeyCallback

	timeout time.Duration // handshakeTimeout

	mu    sync.Mutex
	gates map[string]*gate // by address
}

// sshKey is a private key for URLs whose host/path begins with prefix.
type sshKey struct {
	prefix string
	signer ssh.Signer
}

const (
	handshakeTimeout = 20 * time.Second // from the connection to the start of the command
	// OpenSSH's server drops connections when more than 10 have yet to log in
	// (MaxStartups in sshd_config(5)).
	maxHandshakes  = 4
	maxStderrBytes = 2 << 10
	outBuffer      = 32 << 10 // git reads few bytes at a time, and each read is a message to the host
)

// newSSH reads the keys and the known hosts.
func newSSH(r *Remote, o Options) (*sshTransport, error) {
	s := &sshTransport{r: r, file: o.KnownHosts, timeout: handshakeTimeout, gates: map[string]*gate{}}
	for _, entry := range o.SSHKeys {
		k := sshKey{}
		file := entry
		if prefix, rest, ok := strings.Cut(entry, "="); ok && !strings.HasPrefix(entry, "/") && !strings.HasPrefix(entry, ".") {
			k.prefix, file = strings.TrimSuffix(prefix, "/"), rest
		}
		if file == "" || strings.Contains(k.prefix, "://") {
			return nil, fmt.Errorf("vcs-ssh-key: %q is not FILE, HOST=FILE or HOST/PATH=FILE", entry)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("vcs-ssh-key: %w", err)
		}
		k.signer, err = ssh.ParsePrivateKey(text)
		if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
			if o.SSHPassphrase == "" {
				return nil, fmt.Errorf("vcs-ssh-key: %s is encrypted, and vcs-ssh-passphrase is not set", file)
			}
			k.signer, err = ssh.ParsePrivateKeyWithPassphrase(text, []byte(o.SSHPassphrase))
		}
		if err != nil {
			return nil, fmt.Errorf("vcs-ssh-key: %s: %w", file, err)
		}
		s.keys = append(s.keys, k)
	}
	slices.SortStableFunc(s.keys, func(a, b sshKey) int { return len(b.prefix) - len(a.prefix) })
	var files []string
	if s.file != "" {
		text, err := os.ReadFile(s.file)
		if err != nil {
			return nil, fmt.Errorf("vcs-known-hosts: %w", err)
		}
		s.lines = strings.Split(string(text), "\n")
		files = append(files, s.file)
	}
	var err error
	if s.check, err = knownhosts.New(files...); err != nil {
		return nil, fmt.Errorf("vcs-known-hosts: %w", err)
	}
	return s, nil
}

// signers are the keys for a URL: those of the longest prefix.
func (s *sshTransport) signers(u *url.URL) (list []ssh.Signer) {
	longest := -1
	for _, k := range s.keys {
		if len(k.prefix) < longest {
			break
		}
		if k.prefix == "" || hasPrefix(u, k.prefix) {
			longest = len(k.prefix)
			list = append(list, k.signer)
		}
	}
	return list
}

func (s *sshTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	closeIn := sync.OnceFunc(func() {
		if req.Body != nil {
			req.Body.Close()
		}
	})
	body, err := s.run(req, closeIn)
	if err != nil {
		closeIn()
		if ctx := req.Context(); ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
		ContentLength: -1, Body: body, Request: req,
	}, nil
}

func (s *sshTransport) run(req *http.Request, closeIn func()) (io.ReadCloser, error) {
	u, at := req.URL, address(req.URL)
	command, err := uploadPack(u.Path)
	if err != nil {
		return nil, err
	}
	if req.Method != http.MethodPost || req.Body == nil {
		return nil, goproxy.Errorf(http.StatusNotImplemented, "%s over ssh", req.Method)
	}
	signers := s.signers(u)
	if len(signers) == 0 {
		return nil, goproxy.Errorf(http.StatusNotImplemented, "no SSH key is set for it (setting vcs-ssh-key)")
	}
	leave, err := s.enter(req.Context(), at)
	if err != nil {
		return nil, err
	}
	defer leave()
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil && trace.GetConn != nil {
		trace.GetConn(at) // as http.Transport does
	}
	conn, err := s.r.connect(req.Context(), "tcp", at, s.r.trusted["ssh://"+at] || s.r.allowHost(u.Hostname()) || s.r.allowHost(at))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(req.Context(), func() { conn.Close() })
	end := func() {
		stop()
		conn.Close()
		closeIn()
	}
	b := &sshBody{end: end}
	if err := s.start(req, conn, signers, command, b); err != nil {
		end()
		return nil, err
	}
	go func() {
		io.Copy(b.in, req.Body)
		b.in.Close()
		closeIn() // nobody would read more of it
	}()
	return b, nil
}

// start logs in and starts the command.
func (s *sshTransport) start(req *http.Request, conn net.Conn, signers []ssh.Signer, command string, b *sshBody) error {
	at, user := address(req.URL), req.URL.User.Username()
	conn.SetDeadline(time.Now().Add(s.timeout))
	c, channels, requests, err := ssh.NewClientConn(conn, at, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)}, HostKeyCallback: s.checkHost, HostKeyAlgorithms: s.algorithms(at),
		ClientVersion: "SSH-2.0-athensctl",
	})
	if err != nil {
		return s.handshakeError(err, user, signers)
	}
	session, err := ssh.NewClient(c, channels, requests).NewSession()
	if err != nil {
		return goproxy.Errorf(http.StatusBadGateway, "ssh: %.300s", clean(err.Error()))
	}
	if v := req.Header.Get("Git-Protocol"); v != "" {
		// No answer is waited for: many servers refuse it, and speak version 0.
		session.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{"GIT_PROTOCOL", v}))
	}
	b.session, session.Stderr = session, &b.stderr
	out, err := session.StdoutPipe()
	if err == nil {
		b.in, err = session.StdinPipe()
	}
	if err == nil {
		err = session.Start(command)
	}
	b.out = bufio.NewReaderSize(out, outBuffer)
	if err != nil {
		return goproxy.Errorf(http.StatusBadGateway, "ssh: git-upload-pack was not started: %.300s", clean(err.Error()))
	}
	return conn.SetDeadline(time.Time{})
}

func (s *sshTransport) handshakeError(err error, user string, signers []ssh.Signer) error {
	var e *goproxy.Error
	if errors.As(err, &e) { // the host's key
		return e
	}
	text := clean(err.Error())
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return goproxy.Errorf(http.StatusBadGateway, "ssh: no login within %v", s.timeout)
	case strings.Contains(text, "unable to authenticate"), strings.Contains(strings.ToLower(text), "authentication fail"):
		var prints []string
		for _, k := range signers {
			prints = append(prints, ssh.FingerprintSHA256(k.PublicKey()))
		}
		return goproxy.Errorf(http.StatusForbidden, "ssh: the host knows none of the keys that it was offered for the user %s (setting vcs-ssh-key): %s",
			user, strings.Join(prints, ", "))
	}
	return goproxy.Errorf(http.StatusBadGateway, "%.300s", text)
}

// gate is how many log in at one host.
type gate struct {
	slots chan struct{}
	users int
}

// enter waits until few enough log in at an address.
func (s *sshTransport) enter(ctx context.Context, at string) (leave func(), err error) {
	s.mu.Lock()
	g := s.gates[at]
	if g == nil {
		g = &gate{slots: make(chan struct{}, maxHandshakes)}
		s.gates[at] = g
	}
	g.users++
	s.mu.Unlock()
	left := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if g.users--; g.users == 0 {
			delete(s.gates, at)
		}
	}
	select {
	case g.slots <- struct{}{}:
		return func() { <-g.slots; left() }, nil
	case <-ctx.Done():
		left()
		return nil, ctx.Err()
	}
}

// sshBody is what a command writes.
type sshBody struct {
	end     func()
	session *ssh.Session
	in      io.WriteCloser
	out     io.Reader
	stderr  head
	some    bool // there was output
}

// Read returns what the command writes. When it ends without success, the error has
// what it said; where that came before any output, and says that there is no such
// repository, it is a 404.
func (b *sshBody) Read(p []byte) (int, error) {
	n, err := b.out.Read(p)
	b.some = b.some || n > 0
	if err != io.EOF {
		return n, err
	}
	failed := b.session.Wait()
	if failed == nil {
		return n, err
	}
	said := strings.TrimSpace(clean(string(b.stderr)))
	var status *ssh.ExitError
	switch {
	case said == "" && errors.As(failed, &status):
		said = fmt.Sprintf("git-upload-pack ended with status %d", status.ExitStatus())
	case said == "":
		said = "the connection ended"
	default:
		said = "the host says: " + said
	}
	if !b.some && absent.MatchString(said) {
		return n, goproxy.NotFound("no such repository, or the SSH key for it may not read it: %s", said)
	}
	return n, goproxy.Errorf(http.StatusBadGateway, "%s", said)
}

// absent is what hosts say of a repository that is not there, or not for this key:
// git itself, GitHub, GitLab, Gitea and Forgejo, Bitbucket, Gerrit, gitolite, Azure
// Repos.
var absent = regexp.MustCompile(`(?i)not found|could not be found|cannot find|does not (exist|appear)|no such|unauthori[sz]ed|denied|not permitted|unknown repository|permissions? to`)

func (b *sshBody) Close() error {
	b.end()
	return nil
}

// head keeps the first bytes of what is written to it.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), maxStderrBytes-len(*h))]...)
	return len(p), nil
}
