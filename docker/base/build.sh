#!/usr/bin/env bash
# Builds the base image of a node from Debian packages, for a machine where no registry answers.
#
#     docker/base/build.sh [TAG]
#
# The result stands in for the official slim Python image: Debian bookworm with Python 3.11, and
# nothing else. It needs root, debootstrap and a Debian mirror. An image that exists is left alone.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

readonly TAG=${1:-ray-sim-base:bookworm}
readonly SUITE=bookworm
readonly PACKAGES=ca-certificates,python3,python3-venv

say() { printf 'base image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The mirror of the machine's own apt settings; debootstrap's default where there is none.
mirror() {
  command -v apt-get >/dev/null || return 0
  apt-get indextargets --format '$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' \
    2>/dev/null | awk -F'|' '$1 == "Debian" && $2 == "main" { print $3; exit }'
}

if docker image inspect "$TAG" >/dev/null 2>&1; then
  say "$TAG exists; nothing to do"
  exit 0
fi
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
command -v debootstrap >/dev/null || die "debootstrap is not installed (apt-get install debootstrap)"

work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$work"' EXIT
root=$work/root

say "making $TAG from Debian packages with debootstrap (about a minute)"
# shellcheck disable=SC2046
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root" $(mirror) >&2

# What a node never reads: package archives and lists, manuals, translations.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
  "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* \
  "$root"/usr/share/locale/* "$root"/debootstrap
# The mirror is this machine's own affair.
: >"$root/etc/apt/sources.list"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
ln -sf python3 "$root/usr/bin/python"

tar -C "$root" --numeric-owner -c . | docker import \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change 'ENV LANG=C.UTF-8' \
  --change 'CMD ["python3"]' \
  --change 'LABEL ray-sim.image=base' \
  - "$TAG" >/dev/null
say "$TAG is ready: $(docker image inspect --format '{{.Size}}' "$TAG" | awk '{printf "%.0f MB", $1 / 1e6}')"
