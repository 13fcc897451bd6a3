package goproxy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// CheckSumDB reports what is wrong with an answer of a checksum database, as far as that can be
// told from it alone, so that no page of something in between is kept as one. path is that
// of the database's protocol, with a leading slash: /latest is a signed tree head, /lookup/…
// the record of that version with one, and /tile/… has the size that it says, or that
// many records. The signature is looked at when known is not nil. A path that is none of
// these is fs.ErrNotExist.
// Source: https://go.dev/design/25530-sumdb#checksum-database.
func CheckSumDB(path string, answer []byte, known note.Verifiers) error {
	switch {
	case path == "/latest":
		return checkTreeHead(answer, known)
	case strings.HasPrefix(path, "/lookup/"):
		return checkLookup(strings.TrimPrefix(path, "/lookup/"), answer, known)
	case strings.HasPrefix(path, "/tile/"):
		t, err := tlog.ParseTilePath(path[1:])
		if err != nil {
			return NotFound("%w", err)
		}
		return checkTile(t, answer)
	}
	return NotFound("%.120q is not a path of a checksum database", path)
}

func checkTreeHead(msg []byte, known note.Verifiers) error {
	n, err := note.Open(msg, known)
	var unverified *note.UnverifiedNoteError
	if known == nil && errors.As(err, &unverified) {
		n, err = unverified.Note, nil
	}
	if err == nil {
		_, err = tlog.ParseTree([]byte(n.Text))
	}
	if err != nil {
		return fmt.Errorf("not a signed tree head: %w", err)
	}
	return nil
}

func checkLookup(escaped string, answer []byte, known note.Verifiers) error {
	escPath, escVersion, ok := strings.Cut(escaped, "@")
	path, err := module.UnescapePath(escPath)
	version, err2 := module.UnescapeVersion(escVersion)
	if err = errors.Join(err, err2); err != nil || !ok {
		return NotFound("%.120q is not a module version", escaped)
	}
	_, text, rest, err := tlog.ParseRecord(answer)
	if err != nil {
		return err
	}
	if !bytes.Contains(append([]byte("\n"), text...), []byte("\n"+path+" "+version+" ")) {
		return fmt.Errorf("not the record of %s@%s", path, version)
	}
	return checkTreeHead(rest, known)
}

func checkTile(t tlog.Tile, answer []byte) error {
	if t.L >= 0 {
		if want := t.W * tlog.HashSize; len(answer) != want {
			return fmt.Errorf("a tile of %d bytes in place of %d", len(answer), want)
		}
		return nil
	}
	for n := range t.W { // records without their numbers
		text, rest, ok := bytes.Cut(answer, []byte("\n\n"))
		if _, _, _, err := tlog.ParseRecord(fmt.Appendf(nil, "0\n%s\n\n", text)); err != nil || !ok {
			return fmt.Errorf("%d records in place of %d", n, t.W)
		}
		answer = rest
	}
	if len(answer) > 0 {
		return fmt.Errorf("%d bytes behind the last record", len(answer))
	}
	return nil
}
