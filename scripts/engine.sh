#!/usr/bin/env bash
# Makes sure that a Docker engine with Compose v2 and buildx answers on this machine: `make engine`.
#
# Where one answers already, nothing is touched. On a Debian that we may administer, a missing engine
# is installed and one that is down is started; there may be no init system, so the daemon may have
# to be started again after every restart of the machine. Everywhere else the script says what a
# person should install. Running it again is always safe.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

readonly LOG=${RAY_SIM_DOCKERD_LOG:-/var/log/dockerd.log}
readonly WAIT_S=${RAY_SIM_ENGINE_WAIT_S:-60}
# Debian 12's own engine is too old for BuildKit's named contexts and has neither Compose v2 nor
# buildx. These four packages of Debian 13 run on Debian 12 (they need glibc 2.34); Debian 13's
# runc does not (2.38), so containerd and runc stay Debian 12's own.
readonly DONOR_SUITE=trixie
readonly DONOR_PACKAGES=(docker.io docker-cli docker-compose docker-buildx)

say() { printf 'engine: %s\n' "$*" >&2; }

give_up() {
  say "$1"
  shift
  printf '        %s\n' "$@" >&2
  exit 1
}

answers() { timeout 20 docker info --format '{{.ServerVersion}}' >/dev/null 2>&1; }
has_compose() { docker compose version >/dev/null 2>&1; }
has_buildx() { docker buildx version >/dev/null 2>&1; }
has_systemd() { [ -d /run/systemd/system ]; }
is_root() { [ "$(id -u)" = 0 ]; }

on_debian() {
  [ "$(uname -s)" = Linux ] && [ -r /etc/os-release ] && command -v apt-get >/dev/null &&
    [ "$(. /etc/os-release && echo "$ID")" = debian ]
}

debian_release() { (. /etc/os-release && echo "${VERSION_ID:-0} ${VERSION_CODENAME:-}"); }

what_to_install() {
  case "$(uname -s)" in
    Darwin) echo "Install Docker Desktop, OrbStack or colima (with the docker-compose and docker-buildx plugins), and start it." ;;
    *) echo "Install Docker Engine 23 or later with docker-compose-plugin and docker-buildx-plugin: https://docs.docker.com/engine/install/" ;;
  esac
}

# A remote engine, or another context, is somebody's choice: it is never replaced by a local one.
refuse_if_engine_was_chosen() {
  case "${DOCKER_HOST:-}" in
    "" | unix:///var/run/docker.sock | unix:///run/docker.sock) ;;
    *) give_up "DOCKER_HOST is $DOCKER_HOST, and no engine answers there." \
      "Start that engine, or unset DOCKER_HOST to use one on this machine." ;;
  esac
  local context
  context=$(docker context show 2>/dev/null || echo default)
  if [ -z "${DOCKER_HOST:-}" ] && [ "$context" != default ]; then
    give_up "the docker context in use is '$context', and no engine answers there." \
      "Start that engine, or run: docker context use default"
  fi
}

install_packages() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" >&2
}

has_candidate() {
  [ -n "$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v '(none)')" ]
}

# The mirror of the machine's own main entry, with the suite replaced, as an apt source of its own.
write_donor_source() {
  local codename=$1 file=$2 target uri entry keys
  target=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI) $(SOURCESENTRY)' \
    'Created-By: Packages' | awk -v c="$codename" '$1 == c && $2 == "main"' | head -n 1)
  [ -n "$target" ] || give_up "no apt source of this machine offers Debian $codename main." \
    "Add one (see sources.list(5)), run apt-get update, and try again."
  read -r _ _ uri entry <<<"$target"
  # Whatever keys the machine trusts for its own entry are trusted for the donor, and no others.
  keys=$(sed -nE 's/^[Ss]igned-[Bb]y: *(\/.*)$/\1/p; s/.*signed-by=([^] ]+).*/\1/p' "${entry%:*}" |
    tr -s ' ,\n' '\n\n\n' | sort -u | paste -sd, -)
  {
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$DONOR_SUITE"
    [ -z "$keys" ] || printf 'Signed-By: %s\n' "$keys"
  } >"$file"
}

# Downloads DONOR_PACKAGES into a folder, with lists and caches apart from the system's, so that
# nothing else of this machine is ever upgraded to the donor's suite.
fetch_donor_packages() {
  local codename=$1 folder=$2
  shift 2
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/debs"
  chmod 755 "$folder" "$folder/debs"
  write_donor_source "$codename" "$folder/donor.sources"
  local options=(
    -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$folder/sources.d"
    -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache"
    -o "APT::Sandbox::User=root" -o "Acquire::Languages=none"
  )
  mkdir -p "$folder/sources.d" && mv "$folder/donor.sources" "$folder/sources.d/"
  apt-get "${options[@]}" update >&2 ||
    give_up "the machine's Debian mirror does not serve $DONOR_SUITE." "$(what_to_install)"
  (cd "$folder/debs" && apt-get "${options[@]}" download "$@" >&2)
}

install_with_donor() {
  local codename=$1 system_packages=$2 folder
  shift 2
  folder=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$folder'" EXIT
  fetch_donor_packages "$codename" "$folder" "$@"
  # shellcheck disable=SC2086
  install_packages $system_packages "$folder"/debs/*.deb
  rm -rf "$folder"
  trap - EXIT
}

install_engine() {
  local version codename
  read -r version codename <<<"$(debian_release)"
  say "installing a Docker engine on Debian $version (about a minute)"
  apt-get update >&2 || say "apt-get update reported problems; going on with what it has"
  if [ "${version%%.*}" -ge 13 ] 2>/dev/null; then
    install_packages ca-certificates containerd runc iptables debootstrap "${DONOR_PACKAGES[@]}"
  elif [ "${version%%.*}" = 12 ]; then
    install_with_donor "$codename" "ca-certificates containerd runc iptables debootstrap" \
      "${DONOR_PACKAGES[@]}"
  else
    give_up "Debian ${version:-of an unknown version} cannot be set up automatically." "$(what_to_install)"
  fi
}

install_plugins() {
  local wanted=() docker_inc=() version codename
  has_compose || { wanted+=(docker-compose); docker_inc+=(docker-compose-plugin); }
  has_buildx || { wanted+=(docker-buildx); docker_inc+=(docker-buildx-plugin); }
  [ ${#wanted[@]} -gt 0 ] || return 0
  if ! { on_debian && is_root; }; then
    give_up "the engine answers, but the docker client lacks: ${docker_inc[*]}." "$(what_to_install)"
  fi
  say "installing the missing client plugins: ${docker_inc[*]}"
  read -r version codename <<<"$(debian_release)"
  apt-get update >&2 || say "apt-get update reported problems; going on with what it has"
  if has_candidate "${docker_inc[0]}"; then # Docker's own repository is set up here
    install_packages "${docker_inc[@]}"
  elif [ "${version%%.*}" -ge 13 ] 2>/dev/null; then
    install_packages "${wanted[@]}"
  else
    install_with_donor "$codename" "" "${wanted[@]}"
  fi
  has_compose && has_buildx ||
    give_up "the docker client still finds no Compose v2 or no buildx plugin." "$(what_to_install)"
}

start_daemon() {
  if has_systemd; then
    systemctl start docker
    return
  fi
  # After a restart of the machine the pid file may name a process that is not dockerd any more.
  local pidfile=/var/run/docker.pid pid
  if [ -s "$pidfile" ]; then
    pid=$(cat "$pidfile")
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] || rm -f "$pidfile"
  fi
  # No inherited descriptor (such as the lock below) may live on in the daemon.
  setsid dockerd >>"$LOG" 2>&1 </dev/null 9>&- &
}

wait_for_engine() {
  local deadline=$((SECONDS + WAIT_S))
  until answers; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      say "the daemon did not answer within $WAIT_S s. The last lines of $LOG:"
      tail -n 20 "$LOG" 2>/dev/null | sed 's/^/        /' >&2
      exit 1
    fi
    sleep 0.5
  done
}

report() {
  say "$1: $(docker info --format 'Docker Engine {{.ServerVersion}}, {{.NCPU}} CPUs, cgroup v{{.CgroupVersion}}, {{.Driver}}')"
  say "$(docker compose version | head -n 1); buildx $(docker buildx version | awk '{print $2}')"
}

# Two at once (a person and a test run, say) must not install over each other.
take_the_lock() {
  exec 9>"${TMPDIR:-/tmp}/ray-sim-engine.lock"
  command -v flock >/dev/null && flock 9
  answers && { install_plugins; report "an engine answers now"; exit 0; }
  return 0
}

main() {
  if command -v docker >/dev/null && answers; then
    if has_compose && has_buildx; then
      report "an engine answers; nothing to do"
      exit 0
    fi
    install_plugins
    report "an engine answers"
    exit 0
  fi

  refuse_if_engine_was_chosen
  if ! on_debian; then
    give_up "no Docker engine answers on this machine." "$(what_to_install)"
  fi
  if ! is_root; then
    give_up "no Docker engine answers, and installing or starting one needs root." \
      "Run: sudo make engine" "If an engine is running, your user may not be in the group 'docker'."
  fi
  take_the_lock
  if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
    install_engine
  fi
  say "starting the Docker daemon"
  start_daemon
  wait_for_engine
  install_plugins
  report "the engine is up"
}

main "$@"
