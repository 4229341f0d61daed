package registry

import (
	"context"
	"io"
	"log/slog"
	"reflect"

	"github.com/sirupsen/logrus"
)

// withLog returns a context whose logger, for distribution, is log.
//
// distribution takes its logger from the context under a key that only it can
// name, and otherwise uses logrus' global one, which other parts of the
// process share and which writes to stderr. So the context answers to that key
// by its type. Two messages of distribution bypass the context and still reach
// the global logger: upload state that is unreadable or cannot be removed.
func withLog(ctx context.Context, log *slog.Logger) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.PanicLevel)
	if log != nil {
		logger.SetLevel(logrus.DebugLevel)
		logger.AddHook(slogHook{log})
	}
	return logContext{Context: ctx, entry: logrus.NewEntry(logger)}
}

type logContext struct {
	context.Context
	entry *logrus.Entry
}

func (c logContext) Value(key any) any {
	t := reflect.TypeOf(key)
	if t != nil && t.Name() == "loggerKey" && t.PkgPath() == "github.com/distribution/distribution/v3/internal/dcontext" {
		return c.entry
	}
	return c.Context.Value(key)
}

// slogHook hands logrus entries on to slog.
type slogHook struct{ log *slog.Logger }

func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	attrs := []slog.Attr{slog.String("level", e.Level.String())}
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.log.LogAttrs(context.Background(), slog.LevelDebug, "registry: "+e.Message, attrs...)
	return nil
}
