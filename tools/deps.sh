#!/bin/sh
# deps.sh PROGRAM:PACKAGE... installs the Debian packages of those programs
# that are missing. It does so as root, or through sudo where that asks for no
# password; otherwise it prints the command to run, and fails.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
packages=
for pair in "$@"; do
	command -v "${pair%%:*}" >/dev/null || packages="$packages ${pair##*:}"
done
[ -n "$packages" ] || exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
install="$sudo apt-get install -y --no-install-recommends$packages"
if ! command -v apt-get >/dev/null; then
	echo "missing programs: install what your system calls$packages" >&2
	exit 1
fi
if [ -n "$sudo" ] && ! sudo -n true 2>/dev/null </dev/null; then
	echo "missing programs: run $install" >&2
	exit 1
fi
echo "installing$packages" >&2
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q </dev/null >&2
# shellcheck disable=SC2086 # a list of words
$install </dev/null >&2
