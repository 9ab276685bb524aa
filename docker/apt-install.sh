#!/bin/sh
# Installs Debian packages, while an image is built.
#
#     apt-install.sh PACKAGE...
#
# The machine's own apt settings and mirror arrive as BuildKit secrets: they are used where they are there,
# and none of them stays in the image.
set -eu

export DEBIAN_FRONTEND=noninteractive
if [ -s /run/secrets/apt_conf ]; then export APT_CONFIG=/run/secrets/apt_conf; fi

# The base that was made from Debian packages knows no mirror.
source=
if ! grep -Eqrs '^(deb |URIs:)' /etc/apt/sources.list /etc/apt/sources.list.d; then
  source=/etc/apt/sources.list.d/of-the-build.list
  if ! [ -s /run/secrets/apt_mirror ]; then
    echo "the base image knows no Debian mirror, and the machine's apt names none" >&2
    exit 1
  fi
  echo "deb $(cat /run/secrets/apt_mirror) $(. /etc/os-release && echo "$VERSION_CODENAME") main" >"$source"
fi

apt-get --quiet update
apt-get --quiet --yes --no-install-recommends install "$@"

[ -z "$source" ] || rm "$source"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
