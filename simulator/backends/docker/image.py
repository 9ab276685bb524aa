"""Builds the node image, and those of what stands beside the nodes, on whatever machine this is.

An image needs a base, Python packages and trust in whoever serves them, and machines differ in
all three: some pull from a registry, some reach no registry at all; some have a private index, a
folder of wheels, a proxy that inspects TLS. What the machine's own pip and apt already know is handed
to the build as secrets and as a named context, so that a build works where `pip install` works, and
nothing of it stays in the image.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import ipaddress
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from python_on_whales import ClientNotFoundError, DockerClient
from python_on_whales.exceptions import DockerException

from simulator.assets import asset_path, engine_help
from simulator.errors import BadInput, CannotRun, Problem

Target = Literal["cpu", "gpu", "lean", "netfault", "redis"]
Say = Callable[[str], None]

#: What the image contains; the same pins as the extra ``local`` of this package.
RAY_VERSION = "2.60.0"
TORCH_VERSION = "2.13.0"

#: The image of every node unless a user names another.
DEFAULT_IMAGE = f"ray-cluster-simulator/node:{RAY_VERSION}-cpu"
#: The image of a head that has a real GPU.
GPU_IMAGE = f"ray-cluster-simulator/node:{RAY_VERSION}-gpu"
#: The image of the workers of a lean group.
LEAN_IMAGE = f"ray-cluster-simulator/node:{RAY_VERSION}-lean"
#: The image of the container that shapes a node's network; no node's.
NETFAULT_IMAGE = "ray-cluster-simulator/netfault:1"
#: The image of the Redis where a head may keep its tables; docker/redis.yaml names it too.
REDIS_IMAGE = "ray-cluster-simulator/redis:1"
#: Made of Debian packages alone, without Ray.
OF_DEBIAN: Collection[Target] = ("netfault", "redis")
IMAGES: Mapping[Target, str] = {
    "cpu": DEFAULT_IMAGE,
    "gpu": GPU_IMAGE,
    "lean": LEAN_IMAGE,
    "netfault": NETFAULT_IMAGE,
    "redis": REDIS_IMAGE,
}

#: Tried first; an official image that every registry mirror has.
DEFAULT_BASE = "python:3.11-slim-bookworm"
#: Made from Debian packages where no registry answers.
OFFLINE_BASE = "ray-sim-base:bookworm"

#: A hash of what the image was built from, so that an outdated image can be told.
LABEL_RECIPE = "ray-sim.recipe"

_FIRST_ANSWER_S = 20.0  # a registry that can be reached names the image within this time
_PULL_S = 900.0
_SECRET_LIMIT = 500_000  # BuildKit's own limit for one secret, in bytes
_TAIL = 25  # lines of a failed build that an error shows


def image_present(tag: str = DEFAULT_IMAGE) -> bool:
    """Whether the engine has an image of this name.

    Raises
    ------
    CannotRun
        No engine answers.
    """
    with _engine_errors():
        return DockerClient().image.exists(tag)


def image_is_current(tag: str = DEFAULT_IMAGE) -> bool | None:
    """Whether an image of ours was built from today's ``docker/``; None if it is not ours."""
    with _engine_errors():
        client = DockerClient()
        if not client.image.exists(tag):
            return False
        labels = client.image.inspect(tag).config.labels or {}
    recipe = labels.get(LABEL_RECIPE)
    return None if recipe is None else recipe == _recipe()


def ensure_image(tag: str, *, say: Say) -> str:
    """Make sure that an image is there: one of ours is built, any other is pulled.

    Returns
    -------
    str
        The tag.

    Raises
    ------
    CannotRun
        It can be neither built nor pulled.
    """
    if image_present(tag):
        if image_is_current(tag) is False:
            say(
                f"image {tag} is older than its Dockerfile; "
                "rebuild it with: python -m simulator image build"
            )
        return tag
    for target, ours in IMAGES.items():
        if tag == ours:
            takes = "half a minute" if target in OF_DEBIAN else "one to three minutes"
            say(f"image {tag} is missing; building it ({takes}, only this once)")
            return build_image(target=target, say=say)
    say(f"image {tag} is missing; pulling it")
    failure = _pull(tag, say)
    if failure is not None:
        raise CannotRun(
            f"image {tag} is not on this machine and cannot be pulled",
            why=failure,
            remedy=f"Load it with `docker load`, or leave --image out to use {DEFAULT_IMAGE}",
        )
    return tag


def build_image(
    *,
    target: Target = "cpu",
    say: Say,
    tag: str | None = None,
    base: str | None = None,
    cache: bool = True,
) -> str:
    """Build an image and load it into the engine.

    Parameters
    ----------
    target
        ``"cpu"``, the image of every node, ``"gpu"``, with CUDA's libraries, ``"lean"``, bare Ray,
        ``"netfault"``, the tools of faults on the network, or ``"redis"``.
    say
        Receives progress, one line at a time.
    tag
        Name of the result; the default is the one that nodes use.
    base
        Base image. By default the official Python image; where it cannot be pulled, one made
        here from Debian packages.
    cache
        False builds every layer again.

    Returns
    -------
    str
        The tag.

    Raises
    ------
    CannotRun
        No engine or no buildx, no base image, or the build failed; the last lines are shown.
    """
    if target not in IMAGES:
        raise BadInput(
            Problem("image target", f"is {target!r}", f"use one of: {', '.join(IMAGES)}")
        )
    tag = tag or IMAGES[target]
    client = DockerClient()
    _check_buildx(client)
    base = base or os.environ.get("RAY_SIM_BASE_IMAGE") or _choose_base(client, say)
    settings = pip_settings(say)
    say(f"building {tag} on {base}")
    context = asset_path("docker")
    with tempfile.TemporaryDirectory(prefix="ray-sim-build-") as scratch:
        plan = _plan(settings, Path(scratch), say)
        if target in OF_DEBIAN:
            trusts = any(secret.startswith("id=ca_bundle,") for secret in plan.secrets)
            apt = apt_settings(settings.proxy)
            plan.secrets.extend(_apt_secrets(apt, Path(scratch), own_bundle=trusts))
        lines: deque[str] = deque(maxlen=_TAIL)
        try:
            logs = client.buildx.build(
                context,
                target=target,
                tags=[tag],
                build_args={
                    "BASE_IMAGE": base,
                    "RAY_VERSION": RAY_VERSION,
                    "TORCH_VERSION": TORCH_VERSION,
                    **_torch_overrides(),
                },
                build_contexts=plan.contexts,
                secrets=plan.secrets,
                network=plan.network,
                labels={LABEL_RECIPE: _recipe()},
                builder=_builder(base),
                load=True,
                provenance=False,
                cache=cache,
                progress="plain",
                stream_logs=True,
            )
            for line in cast(Iterator[str], logs):
                if line.strip():
                    lines.append(line.rstrip())
                    say(line.rstrip())
        except DockerException as error:
            raise CannotRun(
                f"the image {tag} could not be built",
                why="docker buildx build failed; its last lines follow",
                remedy="If packages could not be reached, see "
                + ("`apt-config dump Acquire`" if target in OF_DEBIAN else "`pip config list`")
                + ": the build uses the same settings",
                details=lines or (error.stderr or "").splitlines()[-_TAIL:],
            ) from error
    say(f"image {tag} is ready")
    return tag


# ---- what the machine's pip knows


@dataclass(frozen=True, slots=True)
class PipSettings:
    """How pip on this machine reaches packages, as far as a build can use it.

    Attributes
    ----------
    conf
        Text of a pip.conf with the network settings; may hold credentials, so it only ever
        travels as a secret. Empty if there is nothing to say.
    wheels
        Local folders named by ``find-links``.
    ca_bundle
        File of the certificate authorities that this machine trusts, or None.
    proxy
        URL of the proxy, or "".
    left_out
        Settings that cannot travel into a build, each as a sentence.
    """

    conf: str
    wheels: tuple[Path, ...]
    ca_bundle: Path | None
    proxy: str
    left_out: tuple[str, ...]


def pip_settings(say: Say | None = None) -> PipSettings:
    """Read the machine's own pip settings, telling `say` which of them a build cannot use."""
    settings = parse_pip_settings(_pip_config_lines(), os.environ)
    for sentence in settings.left_out:
        if say is not None:
            say(sentence)
    return settings


def parse_pip_settings(lines: Sequence[str], environ: Mapping[str, str]) -> PipSettings:
    """Turn the output of ``pip config list`` into what a build can use.

    Examples
    --------
    >>> lines = ["global.index-url='https://me:secret@index.invalid/simple'"]
    >>> print(parse_pip_settings(lines, {"NO_PROXY": "*"}).conf)
    [global]
    index-url = https://me:secret@index.invalid/simple
    """
    values = _effective_pip_values(lines)
    left_out: list[str] = []
    conf: dict[str, str] = {}

    for key in ("index-url", "extra-index-url"):
        remote = []
        for url in values.get(key, "").split():
            if _local_path(url) is None:
                remote.append(url)
            else:
                left_out.append(
                    f"pip's {key} {url} is a folder of this machine; a build cannot use it"
                )
        if remote:
            conf[key] = " ".join(remote)

    links, wheels = [], []
    for link in values.get("find-links", "").split():
        path = _local_path(link)
        if path is None:
            links.append(link)
        elif path.is_dir():
            wheels.append(path.resolve())
        else:
            left_out.append(f"pip's find-links {link} is no folder; a build cannot use it")
    if links:
        conf["find-links"] = " ".join(links)

    for key in ("trusted-host", "timeout", "retries", "no-index"):
        if key in values:
            conf[key] = " ".join(values[key].split())
    if "client-cert" in values:
        left_out.append("pip's client-cert is a file of this machine; a build cannot use it")

    proxy = values.get("proxy", "") or _proxy_of_environment(conf.get("index-url", ""))
    if proxy:
        conf["proxy"] = proxy

    text = "\n".join(["[global]", *(f"{key} = {value}" for key, value in conf.items())])
    return PipSettings(
        conf=text if conf else "",
        wheels=tuple(dict.fromkeys(wheels)),
        ca_bundle=_ca_bundle(values.get("cert", ""), environ),
        proxy=proxy,
        left_out=tuple(left_out),
    )


def _pip_config_lines() -> list[str]:
    """Output of ``pip config list``, of this Python's pip or of any on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip"]
    else:
        found = shutil.which("pip3") or shutil.which("pip")
        if found is None:
            return [
                f":env:.{name[4:].lower().replace('_', '-')}={value!r}"
                for name, value in os.environ.items()
                if name.startswith("PIP_")
            ]
        command = [found]
    try:
        done = subprocess.run(
            [*command, "config", "list"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def _effective_pip_values(lines: Sequence[str]) -> dict[str, str]:
    """One value per key: the environment outranks ``[install]``, which outranks ``[global]``."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    ranked: dict[str, tuple[int, str]] = {}
    for line in lines:
        name, separator, shown = line.partition("=")
        section, _, key = name.strip().rpartition(".")
        rank = ranks.get(section)
        if not separator or rank is None:
            continue
        try:
            value = str(ast.literal_eval(shown.strip()))
        except (SyntaxError, ValueError):
            continue
        key = key.replace("_", "-").removeprefix("default-")
        if rank >= ranked.get(key, (-1, ""))[0]:
            ranked[key] = (rank, value)
    return {key: value for key, (_, value) in ranked.items()}


def _local_path(url: str) -> Path | None:
    """The path that a pip setting names, or None if it is a URL of the network."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if len(parts.scheme) > 1:  # one letter is a drive of Windows
        return None
    return Path(url).expanduser()


def _proxy_of_environment(index_url: str) -> str:
    """The proxy that pip would take from the environment (or the system's settings)."""
    host = urlsplit(index_url).hostname
    no_proxy = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    if no_proxy.strip() == "*" or (host and proxy_bypass(host)):
        return ""
    proxies = getproxies()
    return proxies.get("https") or proxies.get("http") or ""


def _ca_bundle(pip_cert: str, environ: Mapping[str, str]) -> Path | None:
    """The first bundle that exists: pip's, the environment's, OpenSSL's, the distribution's.

    Inside the build pip knows only public authorities; a machine behind a proxy that inspects
    TLS has its authority in one of these.
    """
    candidates = [
        pip_cert,
        *(environ.get(name, "") for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")),
        environ.get("CURL_CA_BUNDLE", ""),
        ssl.get_default_verify_paths().cafile or "",
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


# ---- what the machine's apt knows

#: What of apt's settings a build can use: how to reach a mirror, and how old its word may be.
_APT_SETTINGS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::http::Timeout",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)


@dataclass(frozen=True, slots=True)
class AptSettings:
    """How apt on this machine reaches packages, as far as a build can use it.

    Attributes
    ----------
    conf
        Text of an apt.conf; may hold credentials, so it only ever travels as a secret.
    mirror
        URL of a Debian mirror, "" if this machine knows none. Only a base without one wants it.
    """

    conf: str = ""
    mirror: str = ""


def apt_settings(proxy: str = "") -> AptSettings:
    """Read the machine's own apt settings; there are none where there is no apt.

    Parameters
    ----------
    proxy
        Used where apt names none.
    """
    return parse_apt_settings(
        _said_by("apt-config", "dump", *_APT_SETTINGS),
        _said_by(
            "apt-get", "indextargets", "--format", "$(LABEL)|$(COMPONENT)|$(REPO_URI)",
            "Created-By: Packages",
        ),
        proxy,
    )  # fmt: skip


def parse_apt_settings(dump: str, targets: str, proxy: str = "") -> AptSettings:
    """Turn the output of ``apt-config dump`` and ``apt-get indextargets`` into what a build can use.

    Examples
    --------
    >>> print(parse_apt_settings('Acquire::Check-Date "false";', "Debian|main|http://m.invalid/debian/"))
    AptSettings(conf='Acquire::Check-Date "false";', mirror='http://m.invalid/debian/')
    """
    lines = [
        line
        for line in dump.splitlines()
        if line.split(" ")[0] in _APT_SETTINGS and '""' not in line
    ]
    if proxy and not any("::Proxy " in line for line in lines):
        lines += [f'Acquire::{scheme}::Proxy "{proxy}";' for scheme in ("http", "https")]
    rows = [line.split("|") for line in targets.splitlines()]
    mirrors = [row[2] for row in rows if row[:2] == ["Debian", "main"]]
    return AptSettings("\n".join(lines), next(iter(mirrors), ""))


def _said_by(*command: str) -> str:
    """What a program prints; "" where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


# ---- what the build is given


@dataclass(frozen=True, slots=True)
class _Plan:
    secrets: list[str]
    contexts: dict[str, str | Path]
    network: str | None


def _plan(settings: PipSettings, scratch: Path, say: Say) -> _Plan:
    """Secrets, named contexts and network of a build; files that it needs go to `scratch`."""
    secrets: list[str] = []
    if settings.conf:
        conf = scratch / "pip.conf"
        conf.touch(mode=0o600)
        conf.write_text(settings.conf + "\n")
        secrets.append(f"id=pip_conf,src={conf}")
    if settings.ca_bundle is not None:
        if settings.ca_bundle.stat().st_size <= _SECRET_LIMIT:
            secrets.append(f"id=ca_bundle,src={settings.ca_bundle}")
        else:
            say(f"{settings.ca_bundle} is too large for a build secret; public authorities serve")
    wheels = _wheel_folder(settings.wheels, scratch)
    if wheels is not None:
        say(f"wheels in {' and '.join(map(str, settings.wheels))} are used first")
    # A proxy on this machine's loopback can be reached only from this machine's network.
    network = "host" if _is_loopback(settings.proxy) else None
    return _Plan(secrets, {} if wheels is None else {"wheels": wheels}, network)


def _apt_secrets(settings: AptSettings, scratch: Path, *, own_bundle: bool) -> list[str]:
    # Secrets are root's alone, so nobody else may fetch.
    conf = f'{settings.conf}\nAPT::Sandbox::User "root";'
    if own_bundle:
        conf += '\nAcquire::https::CAInfo "/run/secrets/ca_bundle";'
    secrets = []
    for name, text in (("apt_conf", conf.strip()), ("apt_mirror", settings.mirror)):
        if text:
            file = scratch / name
            file.touch(mode=0o600)
            file.write_text(text + "\n")
            secrets.append(f"id={name},src={file}")
    return secrets


def _wheel_folder(folders: Sequence[Path], scratch: Path) -> Path | None:
    """One folder with everything in `folders`; a named context is a single folder."""
    if len(folders) < 2:
        return folders[0] if folders else None
    together = scratch / "wheels"
    together.mkdir()
    for file in (file for folder in folders for file in sorted(folder.iterdir())):
        target = together / file.name
        if not file.is_file() or target.exists():
            continue
        try:
            os.link(file, target)
        except OSError:  # another filesystem
            shutil.copy2(file, target)
    return together


def _is_loopback(proxy: str) -> bool:
    host = urlsplit(proxy if "://" in proxy else f"//{proxy}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _torch_overrides() -> dict[str, str]:
    """Where torch comes from, for those whose mirror names it differently."""
    names = ("TORCH_INDEX", "TORCH_BUILD", "TORCH_CUDA_INDEX")
    return {
        name: os.environ[f"RAY_SIM_{name}"] for name in names if f"RAY_SIM_{name}" in os.environ
    }


def _recipe() -> str:
    """Hash of everything that decides what is in the image, but the base."""
    folder = asset_path("docker")
    digest = hashlib.sha256(f"{RAY_VERSION} {TORCH_VERSION}".encode())
    for name in ("Dockerfile", "pip-install.sh", "apt-install.sh"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


# ---- the base


def _choose_base(client: DockerClient, say: Say) -> str:
    """The official Python image if it is here or can be pulled, else one made from packages."""
    for known in (DEFAULT_BASE, OFFLINE_BASE):
        if client.image.exists(known):
            return known
    say(f"pulling the base image {DEFAULT_BASE}")
    failure = _pull(DEFAULT_BASE, say)
    if failure is None:
        return DEFAULT_BASE
    say(f"{DEFAULT_BASE} cannot be pulled: {failure}")
    missing = [
        reason
        for reason, present in (
            ("debootstrap is not installed", _which_debootstrap() is not None),
            ("making one from Debian packages needs root", _is_root()),
        )
        if not present
    ]
    if missing:
        raise CannotRun(
            f"no base image: {DEFAULT_BASE} cannot be pulled",
            why=failure,
            remedy="Name one that the engine has (RAY_SIM_BASE_IMAGE=... with Python 3.10 to 3.13); "
            f"one cannot be made here, since {' and '.join(missing)}",
        )
    say(f"making {OFFLINE_BASE} from Debian packages instead (debootstrap is at hand)")
    _run_base_script(say)
    return OFFLINE_BASE


def _run_base_script(say: Say) -> None:
    script = asset_path("docker") / "base" / "build.sh"
    lines: deque[str] = deque(maxlen=_TAIL)
    with subprocess.Popen(
        ["bash", str(script), OFFLINE_BASE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            say(line.rstrip())
    if process.returncode != 0:
        raise CannotRun(
            "the offline base image could not be made",
            why=f"{script.name} exited with {process.returncode}; its last lines follow",
            remedy="Is a Debian mirror reachable (apt-get update)?",
            details=lines,
        )


def _pull(image: str, say: Say) -> str | None:
    """Pull an image; None on success, else why not.

    A registry that cannot be reached at all must not hold up a build for minutes, while a slow
    one that does answer may take its time: the first line of output tells the two apart.
    """
    with subprocess.Popen(
        ["docker", "pull", image],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        patience = threading.Timer(_FIRST_ANSWER_S, process.kill)
        patience.start()
        last = ""
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not last:
                    patience.cancel()
                    patience = threading.Timer(_PULL_S, process.kill)
                    patience.start()
                last = line.strip() or last
                say(line.rstrip())
        finally:
            patience.cancel()
    if process.returncode == 0:
        return None
    return last or f"the registry did not answer within {_FIRST_ANSWER_S:.0f} s"


def _which_debootstrap() -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which("debootstrap", path=path)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


# ---- the engine


def _builder(base: str) -> str | None:
    """The builder to use: the user's own, unless the base exists only in the engine.

    A builder of its own in a container does not see the engine's images; the one that is named
    like the context is the engine itself.
    """
    if base != OFFLINE_BASE:
        return None
    done = subprocess.run(
        ["docker", "context", "show"], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip() or None


def _check_buildx(client: DockerClient) -> None:
    with _engine_errors():
        client.image.exists(DEFAULT_IMAGE)
    try:
        client.buildx.version()
    except DockerException as error:
        raise CannotRun(
            "no image can be built",
            why="the docker client has no buildx plugin",
            remedy=f"Install docker-buildx-plugin; {engine_help()}",
        ) from error


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Turns the client's errors into one that says what to do."""
    try:
        yield
    except ClientNotFoundError as error:
        raise CannotRun(
            "no Docker engine can be asked",
            why="there is no docker client on the PATH",
            remedy=f"Install Docker; {engine_help()}",
        ) from error
    except DockerException as error:
        lines = (error.stderr or "").strip().splitlines()
        raise CannotRun(
            "no Docker engine answers",
            why=lines[-1].removesuffix(". Is the docker daemon running?")
            if lines
            else f"docker exited with {error.return_code}",
            remedy=f"Start it, or install one; {engine_help()}",
        ) from error
