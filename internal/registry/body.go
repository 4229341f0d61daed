package registry

import (
	"io"
	"net/http"
	"time"
)

// boundBody cuts off a client that sends nothing for so long in the middle of
// a body.
func boundBody(next http.Handler, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			r.Body = &boundedBody{r.Body, timeout, http.NewResponseController(w)}
		}
		next.ServeHTTP(w, r)
	})
}

type boundedBody struct {
	io.ReadCloser
	timeout time.Duration
	control *http.ResponseController
}

// Read has a deadline of its own. None is left behind, as it would end the
// request while the storage is still at work after the last byte.
func (b *boundedBody) Read(p []byte) (int, error) {
	if err := b.control.SetReadDeadline(time.Now().Add(b.timeout)); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if clearErr := b.control.SetReadDeadline(time.Time{}); err == nil {
		err = clearErr
	}
	return n, err
}
