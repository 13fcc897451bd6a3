package goproxy

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// What a database answers passes; what anything else answers in its place does not.
func TestCheckSumDB(t *testing.T) {
	signer, key, err := note.GenerateKey(rand.Reader, "sum.example.com")
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := note.GenerateKey(rand.Reader, "sum.example.com")
	if err != nil {
		t.Fatal(err)
	}
	other, err := note.NewVerifier(otherKey)
	if err != nil {
		t.Fatal(err)
	}
	h1 := "h1:" + strings.Repeat("A", 43) + "="
	server := sumdb.NewServer(sumdb.NewTestServer(signer, func(path, version string) ([]byte, error) {
		return fmt.Appendf(nil, "%s %s %s\n%[1]s %[2]s/go.mod %[3]s\n", path, version, h1), nil
	}))
	get := func(path string) []byte {
		t.Helper()
		w := httptest.NewRecorder()
		server.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		return w.Body.Bytes()
	}
	for i := range 300 {
		get(fmt.Sprintf("/lookup/example.com/m%d@v1.0.0", i))
	}
	answers := map[string][]byte{}
	for _, path := range []string{
		"/latest", "/lookup/example.com/m7@v1.0.0", "/lookup/example.com/!upper@v1.0.0", "/tile/8/0/000", "/tile/8/0/001.p/44", "/tile/8/1/000.p/1", "/tile/8/data/000", "/tile/8/data/001.p/40",
	} {
		answers[path] = get(path)
		for name, known := range map[string]note.Verifiers{"no key": nil, "the key": note.VerifierList(verifier)} {
			if err := CheckSumDB(path, answers[path], known); err != nil {
				t.Errorf("%s with %s: %v", path, name, err)
			}
		}
		if err := CheckSumDB(path, answers[path], note.VerifierList(other)); (err == nil) != strings.HasPrefix(path, "/tile/") {
			t.Errorf("%s with another key: %v", path, err)
		}
	}
	for path, answer := range answers {
		bad := map[string][]byte{
			"nothing": nil, "a page": []byte("<html>sign in first</html>\n"), "cut": answer[:len(answer)-1], "cut in the middle": answer[:len(answer)/2],
			"more": append(append([]byte{}, answer...), "x\n"...), "twice": append(append([]byte{}, answer...), answer...),
		}
		for from, other := range answers {
			if from != path && len(other) != len(answer) {
				bad["that of "+from] = other
			}
		}
		for name, b := range bad {
			if err := CheckSumDB(path, b, note.VerifierList(verifier)); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, %s: %v", path, name, err)
			}
		}
	}
	if err := CheckSumDB("/lookup/example.com/m8@v1.0.0", answers["/lookup/example.com/m7@v1.0.0"], nil); err == nil {
		t.Error("another version's record passes")
	}
	for _, path := range []string{"", "/", "/supported", "/latest/", "/tile/8/0", "/tile/x/0/000", "/tile/8/0/../000", "/lookup/example.com", "/lookup/Upper.example/m@v1.0.0"} {
		if err := CheckSumDB(path, answers["/latest"], nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if tlog.HashSize != 32 {
		t.Errorf("a hash of %d bytes", tlog.HashSize)
	}
}
