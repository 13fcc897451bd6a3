package vcs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/vcs/git"
	"github.com/athensctl/athensctl/vcs/remote"
)

// tree is one commit, fetched without its history.
type tree struct {
	key     string // repository and commit
	full    bool   // with the contents of the files
	objects *git.Objects
	commit  *git.Commit
	until   time.Time

	mu    sync.Mutex
	users int
	gone  bool
}

func (t *tree) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users--; t.users > 0 {
		return
	}
	if t.gone {
		t.objects.Close()
	} else {
		t.objects.Rest()
	}
}

func (t *tree) use() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return false
	}
	t.users++
	return true
}

// drop closes the tree when its last user has released it.
func (t *tree) drop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return nil
	}
	t.gone = true
	if t.users == 0 {
		return t.objects.Close()
	}
	return nil
}

// treeOf fetches a commit: with its files' contents when full, and else without
// where the host can leave them out. The caller releases it.
func (s *Source) treeOf(ctx context.Context, repo *remote.Repo, commit string, full bool) (*tree, error) {
	key := repo.URL.String() + " " + commit
	for range 3 {
		if t := s.known(key, full); t != nil {
			return t, nil
		}
		_, err := s.once(ctx, fmt.Sprint("tree ", full, " ", key), func(ctx context.Context) (any, error) {
			return nil, s.fetchTree(ctx, repo, commit, key, full)
		})
		if err != nil {
			return nil, err
		}
	}
	s.o.Refused("repositories")
	return nil, goproxy.Busy(time.Second, "%s: too many repositories are read at once", git.Name(repo.URL))
}

func (s *Source) known(key string, full bool) *tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trees = slices.DeleteFunc(s.trees, func(t *tree) bool {
		old := time.Now().After(t.until)
		if old {
			t.drop()
		}
		return old
	})
	for _, t := range s.trees {
		if t.key == key && (t.full || !full) && t.use() {
			return t
		}
	}
	return nil
}

// evict closes the oldest tree that nobody uses; false: there is none.
func (s *Source) evict() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, t := range s.trees {
		t.mu.Lock()
		idle := t.users == 0
		t.mu.Unlock()
		if idle {
			s.trees = slices.Delete(s.trees, i, i+1)
			t.drop()
			return true
		}
	}
	return false
}

func (s *Source) fetchTree(ctx context.Context, repo *remote.Repo, commit, key string, full bool) error {
	if err := s.packs.Acquire(ctx, repo.URL.Host, 1); err != nil {
		return err
	}
	defer s.packs.Release(repo.URL.Host, 1)
	w := git.Want{Hashes: []string{commit}, Depth: 1}
	if !full {
		w.Filter = "blob:none"
	}
	o, err := s.fetch(ctx, repo, w)
	if err != nil {
		return err
	}
	c, err := o.Commit(commit)
	if err != nil {
		o.Close()
		if errors.Is(err, git.ErrNotCommit) {
			return goproxy.NotFound("%s: %w", git.Name(repo.URL), err)
		}
		return goproxy.Errorf(http.StatusBadGateway, "%s: %w", git.Name(repo.URL), err)
	}
	t := &tree{key: key, full: full, objects: o, commit: c, until: time.Now().Add(treesFor)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trees = append(s.trees, t)
	packs := int64(0)
	for _, t := range s.trees {
		packs += t.objects.SizeBytes()
	}
	// More than are used at once: a zip is followed by the .info of the same commit.
	for len(s.trees) > maxTrees || len(s.trees) > 1 && packs > maxPacks {
		packs -= s.trees[0].objects.SizeBytes()
		s.trees[0].drop()
		s.trees = s.trees[1:]
	}
	return nil
}

// readFile reads a small file of a commit; fs.ErrNotExist when there is none.
func (s *Source) readFile(ctx context.Context, repo *remote.Repo, commit, name string, limit int64) ([]byte, error) {
	t, err := s.treeOf(ctx, repo, commit, false)
	if err != nil {
		return nil, err
	}
	defer t.release()
	e, err := t.objects.Find(t.commit.Tree, name)
	if err != nil {
		return nil, err
	}
	if !e.IsFile() && !e.IsLink() {
		return nil, goproxy.NotFound("%s: not a file", name)
	}
	b, err := t.objects.ReadBlob(e.Hash, limit)
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	// Its content was left out: it is fetched alone, or with all others. Versions
	// that follow each other often have the same go.mod file.
	got, err := s.once(ctx, "blob "+repo.URL.String()+" "+e.Hash, func(ctx context.Context) (any, error) {
		return s.fetchFile(ctx, repo, e.Hash, limit)
	})
	if err == nil {
		return got.([]byte), nil
	}
	whole, err := s.treeOf(ctx, repo, commit, true)
	if err != nil {
		return nil, err
	}
	defer whole.release()
	return whole.objects.ReadBlob(e.Hash, limit)
}

// fetchFile fetches the content of one small file by its hash, unless it is
// remembered.
func (s *Source) fetchFile(ctx context.Context, repo *remote.Repo, hash string, limit int64) ([]byte, error) {
	key := repo.URL.String() + " " + hash // whoever may not read the repository may not read this
	s.mu.Lock()
	b, ok := s.files[key]
	s.mu.Unlock()
	if ok {
		return b, nil
	}
	o, err := s.git.Fetch(ctx, repo.URL, git.Want{Hashes: []string{hash}, Alone: true})
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if b, err = o.ReadBlob(hash, limit); err == nil && len(b) <= maxFile {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.files) >= maxFiles {
			clear(s.files)
		}
		s.files[key] = b
	}
	return b, err
}
