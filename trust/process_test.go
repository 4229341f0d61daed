package trust_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// readerProcess makes the test binary a reader in a process of its own: it
// refreshes and remembers a tag for ever, or as often as it is told.
const readerProcess = "IMGTRUST_TEST_READER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(readerProcess); spec != "" {
		if err := read(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// read is the life of a reader process.
func read(spec string) error {
	words := strings.Fields(spec) // repository, root file, state, clock, times
	root, err := os.ReadFile(words[1])
	if err != nil {
		return err
	}
	clock, err := time.Parse(time.RFC3339, words[3])
	if err != nil {
		return err
	}
	times, err := strconv.Atoi(words[4])
	if err != nil {
		return err
	}
	ctx := context.Background()
	for i := 0; i < times || times == 0; i++ {
		c, err := trust.Open(trust.ClientOptions{Repository: words[0], Root: root, State: words[2], Registry: oci.New(oci.Options{}), Now: func() time.Time { return clock }})
		if err != nil {
			return err
		}
		if err := c.Refresh(ctx); err != nil {
			return err
		}
		name := fmt.Sprintf("%d-%d", os.Getpid(), i%50)
		if err := c.RememberTag(ctx, "host.example/app", name, v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}, clock); err != nil {
			return err
		}
	}
	return nil
}

// start runs a reader process.
func start(t *testing.T, v *testkit.VirtualTrust, state string, times int) *exec.Cmd {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root.json")
	if err := os.WriteFile(root, v.RootJSON, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s %d", readerProcess, v.Repository, root, state, v.Clock.Now().Format(time.RFC3339), times))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestProcessesShareAState: several processes refresh one state while a publisher
// publishes; none fails, and nothing that one has remembered is lost.
func TestProcessesShareAState(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	state := t.TempDir()
	const processes, times = 4, 25
	var readers []*exec.Cmd
	for range processes {
		readers = append(readers, start(t, v, state, times))
	}
	for range 10 {
		v.Publish()
	}
	for _, r := range readers {
		if err := r.Wait(); err != nil {
			t.Errorf("a reader: %v", err)
		}
	}
	data, err := os.ReadFile(filepath.Join(state, v.Reader("").ID(), "seen.json"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), `"host.example/app:`); n != processes*times {
		t.Errorf("%d tags are remembered of %d", n, processes*times)
	}
	if err := v.Reader(state).Refresh(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestKilledReaders: a reader that is killed at any moment leaves a state that
// verifies, and that refuses what is older than what it had seen.
func TestKilledReaders(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	v.Publish()
	old := index(t, v).Bytes
	v.Publish()
	state := t.TempDir()
	if err := v.Reader(state).Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		r := start(t, v, state, 0)
		if i%4 == 0 {
			v.Publish()
		}
		time.Sleep(time.Duration(i*3) * time.Millisecond) // over the start, the walk and the writes
		if err := r.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = r.Wait()
		if err := v.Reader(state).Refresh(ctx); err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(state, "*", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q %v", left, err)
	}
	putIndex(t, v, old)
	if err := v.Reader(state).Refresh(ctx); trust.CodeOf(err) != policy.RolledBack {
		t.Fatalf("an old index after the kills: %v", err)
	}
}

// TestNoLockWhileTheRegistryHangs: a reader that waits for the registry keeps no
// other from answering.
func TestNoLockWhileTheRegistryHangs(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	state := t.TempDir()
	if err := v.Reader(state).Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	hangs, release := make(chan struct{}), make(chan struct{})
	v.Intercept(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() {
			close(hangs)
			<-release
		})
		return false
	})
	first := make(chan error, 1)
	go func() { first <- v.Reader(state).Refresh(context.Background()) }()
	<-hangs
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	o := v.ClientOptions(state)
	o.Offline = true
	c, err := trust.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Refresh(ctx); err != nil {
		t.Errorf("beside one that hangs: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}
