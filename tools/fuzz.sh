#!/bin/sh
# fuzz.sh DURATION runs every fuzz test for so long, one after the other, and
# stops at the first that finds something; Go keeps the input in testdata/fuzz.
set -eu

[ $# = 1 ] || { echo "usage: fuzz.sh DURATION" >&2; exit 2; }
count=0
for file in $(grep -rl '^func Fuzz' --include='*_test.go' .); do
	for name in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "fuzzing $name in $(dirname "$file") for $1"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$1" -fuzzminimizetime 10x "$(dirname "$file")"
		count=$((count + 1))
	done
done
echo "$count fuzz tests, $1 each, found nothing"
[ "$count" -gt 0 ]
