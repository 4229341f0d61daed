package build

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// NamespaceVariable is the environment variable by which a process that
// EnterUserNamespace started knows what it is. Its value is for that alone.
const NamespaceVariable = "IMGTRUST_NAMESPACE"

// Namespace says how EnterUserNamespace starts this program again.
type Namespace struct {
	Args   []string // the whole command line, program name first
	Marker string   // the value of NamespaceVariable in this process
	Runc   string   // as Options.Runc: looked for before anything is started
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// idRange is a part of /etc/subuid or /etc/subgid: count IDs from start on.
type idRange struct{ start, count int64 }

// readRanges reads the ranges that path grants to the user, by name or number.
// The format is of subuid(5): NAME:START:COUNT lines, # begins a comment.
func readRanges(path string, names ...string) ([]idRange, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseRanges(io.LimitReader(f, maxRangesSize), names...)
}

const maxRangesSize = 4 << 20 // bytes of /etc/subuid that are read

func parseRanges(r io.Reader, names ...string) ([]idRange, error) {
	var ranges []idRange
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Split(strings.TrimSpace(text), ":")
		if len(fields) != 3 || !contains(names, fields[0]) {
			continue
		}
		start, err1 := strconv.ParseInt(fields[1], 10, 64)
		count, err2 := strconv.ParseInt(fields[2], 10, 64)
		if err1 != nil || err2 != nil || start < 1 || count < 1 || start+count > 1<<32 || start+count < start {
			return nil, fmt.Errorf("line %d: %q is not NAME:START:COUNT", n, text)
		}
		ranges = append(ranges, idRange{start, count})
	}
	return ranges, lines.Err()
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n != "" && n == name {
			return true
		}
	}
	return false
}

// mapping is what newuidmap and newgidmap take: root inside is the user
// outside, and the ranges follow from 1 on without a hole.
func mapping(id int, ranges []idRange) []string {
	words := []string{"0", strconv.Itoa(id), "1"}
	next := int64(1)
	for _, r := range ranges {
		words = append(words, strconv.FormatInt(next, 10), strconv.FormatInt(r.start, 10), strconv.FormatInt(r.count, 10))
		next += r.count
	}
	return words
}
