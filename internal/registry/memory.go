package registry

import (
	"bytes"
	"context"
	"sync"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
)

const memoryDriver = "imgtrust-memory"

// registerMemory makes the driver known to distribution, whose table of
// drivers is global to the process.
var registerMemory = sync.OnceFunc(func() { factory.Register(memoryDriver, memoryFactory{}) })

type memoryFactory struct{}

func (memoryFactory) Create(context.Context, map[string]any) (storagedriver.StorageDriver, error) {
	return memory{inmemory.New()}, nil
}

// memory is distribution's storage in memory with a buffer before its writers:
// by themselves they copy all that they have for each 32 KiB that arrive, which
// takes minutes for a layer of 200 MB.
type memory struct{ *inmemory.Driver }

func (m memory) Writer(ctx context.Context, path string, append bool) (storagedriver.FileWriter, error) {
	w, err := m.Driver.Writer(ctx, path, append)
	if err != nil {
		return nil, err
	}
	return &memoryWriter{FileWriter: w}, nil
}

type memoryWriter struct {
	storagedriver.FileWriter
	buffer bytes.Buffer
}

func (w *memoryWriter) Write(p []byte) (int, error) { return w.buffer.Write(p) }

func (w *memoryWriter) Size() int64 { return w.FileWriter.Size() + int64(w.buffer.Len()) }

func (w *memoryWriter) Commit(ctx context.Context) error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.FileWriter.Commit(ctx)
}

func (w *memoryWriter) Close() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.FileWriter.Close()
}

func (w *memoryWriter) flush() error {
	if w.buffer.Len() == 0 {
		return nil
	}
	_, err := w.FileWriter.Write(w.buffer.Bytes())
	w.buffer = bytes.Buffer{}
	return err
}
