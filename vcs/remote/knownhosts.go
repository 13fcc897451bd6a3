package remote

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/athensctl/athensctl/goproxy"
)

// checkHost refuses a host that does not show a key that is known for it.
func (s *sshTransport) checkHost(at string, remote net.Addr, key ssh.PublicKey) error {
	err := s.check(at, remote, key)
	known, authority := s.known(at)
	if cert, ok := key.(*ssh.Certificate); ok && err != nil {
		// As OpenSSH: its key may be known without the certificate.
		key = cert.Key
		if plain := s.check(at, remote, key); !authority || !isUnknown(plain) {
			err = plain
		}
	}
	if err == nil {
		return nil
	}
	shown := key.Type() + " " + ssh.FingerprintSHA256(key)
	refuse := func(format string, args ...any) error {
		return goproxy.Errorf(http.StatusForbidden, "ssh: the host shows the key %s, %s", shown, fmt.Sprintf(format, args...))
	}
	file := s.file
	if file == "" {
		file = "there is no such file"
	}
	var revoked *knownhosts.RevokedError
	if errors.As(err, &revoked) {
		return refuse("which %s revokes in line %d", file, revoked.Revoked.Line)
	}
	if !isUnknown(err) { // of a certificate
		return refuse("with a certificate that is not good: %s", clean(err.Error()))
	}
	if len(known) == 0 {
		return refuse("and is not among the known hosts (setting vcs-known-hosts: %s)", file)
	}
	var have []string
	for _, k := range known {
		have = append(have, fmt.Sprintf("%s %s in line %d", k.Key.Type(), ssh.FingerprintSHA256(k.Key), k.Line))
	}
	return refuse("but another is known: its key has changed, or it is another host (setting vcs-known-hosts: %s has %s)", file, strings.Join(have, ", "))
}

func isUnknown(err error) bool {
	var e *knownhosts.KeyError
	return errors.As(err, &e)
}

// known are the keys that the file has for a host, and whether it names an authority
// whose certificates are good for it.
func (s *sshTransport) known(at string) (keys []knownhosts.KnownKey, authority bool) {
	var e *knownhosts.KeyError
	if errors.As(s.check(at, &net.TCPAddr{}, noKey{}), &e) {
		for _, k := range e.Want {
			if strings.HasPrefix(strings.TrimSpace(s.lines[k.Line-1]), "@cert-authority") {
				authority = true
			} else {
				keys = append(keys, k)
			}
		}
	}
	return keys, authority
}

// noKey is a key that no host has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// algorithms are those in which a host may prove who it is. The kinds of the keys that
// are known come first: a host has several, and another would look like a change.
func (s *sshTransport) algorithms(at string) []string {
	keys, authority := s.known(at)
	rank := func(algorithm string) int {
		format := algorithm
		if algorithm == ssh.KeyAlgoRSASHA256 || algorithm == ssh.KeyAlgoRSASHA512 {
			format = ssh.KeyAlgoRSA
		}
		if slices.ContainsFunc(keys, func(k knownhosts.KnownKey) bool { return k.Key.Type() == format }) {
			return 0
		}
		switch certificate := strings.Contains(algorithm, "-cert-v0"); {
		case certificate && authority:
			return 1
		case certificate:
			return 3
		}
		return 2
	}
	list := ssh.SupportedAlgorithms().HostKeys
	slices.SortStableFunc(list, func(a, b string) int { return rank(a) - rank(b) })
	return list
}
