"""What a build is given: the machine's pip settings, its wheels, its trust, and nothing to keep."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import yaml

from simulator.assets import asset_path
from simulator.backends.docker import image
from simulator.errors import CannotRun

NO_PROXY = {"NO_PROXY": "*"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def conf_of(*lines: str) -> str:
    return image.parse_pip_settings(lines, {}).conf


# ---- pip settings


def test_a_machine_without_pip_settings_gives_no_pip_conf() -> None:
    assert conf_of() == ""


def test_indexes_with_credentials_travel_in_the_secret() -> None:
    conf = conf_of(
        "global.index-url='https://me:secret@index.invalid/simple'",
        "global.extra-index-url='https://a.invalid/simple\\nhttps://b.invalid/simple'",
    )
    assert "index-url = https://me:secret@index.invalid/simple" in conf
    assert "extra-index-url = https://a.invalid/simple https://b.invalid/simple" in conf


def test_the_environment_outranks_the_install_section_and_that_the_global_one() -> None:
    lines = [
        ":env:.index-url='https://environment.invalid'",
        "global.index-url='https://global.invalid'",
        "install.index-url='https://install.invalid'",
    ]
    assert "environment.invalid" in conf_of(*lines)
    assert "install.invalid" in conf_of(*lines[1:])


def test_settings_of_other_commands_and_broken_lines_are_ignored() -> None:
    assert conf_of("download.timeout='9'", "nonsense", "global.timeout=unquoted") == ""


def test_the_default_timeout_of_the_environment_is_pips_timeout() -> None:
    assert "timeout = 180" in conf_of(":env:.default-timeout='180'")


def test_an_index_in_a_folder_is_left_out_and_said_so(tmp_path: Path) -> None:
    settings = image.parse_pip_settings([f"global.extra-index-url='file://{tmp_path}'"], {})
    assert settings.conf == ""
    assert str(tmp_path) in settings.left_out[0]


def test_find_links_folders_become_wheel_folders_and_urls_stay(tmp_path: Path) -> None:
    lines = [f"global.find-links='{tmp_path} file://{tmp_path} https://wheels.invalid/list.html'"]
    settings = image.parse_pip_settings(lines, {})
    assert settings.wheels == (tmp_path.resolve(),)
    assert "find-links = https://wheels.invalid/list.html" in settings.conf


def test_a_find_links_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    settings = image.parse_pip_settings([f"global.find-links='{tmp_path / 'gone'}'"], {})
    assert settings.wheels == ()
    assert "gone" in settings.left_out[0]


def test_pips_own_bundle_comes_before_the_environments(tmp_path: Path) -> None:
    pips, environments = tmp_path / "pip.pem", tmp_path / "env.pem"
    for bundle in (pips, environments):
        bundle.touch()
    environ = {"SSL_CERT_FILE": str(environments)}
    assert image.parse_pip_settings([f"global.cert='{pips}'"], environ).ca_bundle == pips
    assert image.parse_pip_settings(["global.cert='/gone'"], environ).ca_bundle == environments


def test_the_proxy_of_the_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "inside.invalid")
    monkeypatch.setenv("no_proxy", "inside.invalid")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert "proxy = http://proxy.invalid:3128" in conf_of()
    assert "proxy" not in conf_of("global.index-url='https://inside.invalid/simple'")


@pytest.mark.parametrize(
    ("proxy", "loopback"),
    [
        ("http://127.0.0.1:3128", True),
        ("localhost:3128", True),
        ("http://[::1]:3128", True),
        ("http://proxy.invalid:3128", False),
        ("", False),
    ],
)
def test_a_proxy_on_the_loopback_needs_the_hosts_network(
    proxy: str, loopback: bool, tmp_path: Path
) -> None:
    settings = image.PipSettings(conf="", wheels=(), ca_bundle=None, proxy=proxy, left_out=())
    assert (image._plan(settings, tmp_path, print).network == "host") is loopback


# ---- the plan of a build


def test_without_settings_a_build_gets_no_secret_and_no_context(tmp_path: Path) -> None:
    settings = image.PipSettings(conf="", wheels=(), ca_bundle=None, proxy="", left_out=())
    plan = image._plan(settings, tmp_path, print)
    assert plan == image._Plan(secrets=[], contexts={}, network=None)


def test_the_secret_pip_conf_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    settings = image.parse_pip_settings(["global.index-url='https://u:p@index.invalid'"], {})
    image._plan(settings, tmp_path, print)
    conf = tmp_path / "pip.conf"
    assert stat.S_IMODE(conf.stat().st_mode) == 0o600
    assert "u:p@index.invalid" in conf.read_text()


def test_a_bundle_above_buildkits_limit_is_left_out_and_said(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"x" * 500_001)
    said: list[str] = []
    settings = image.PipSettings(conf="", wheels=(), ca_bundle=bundle, proxy="", left_out=())
    assert image._plan(settings, tmp_path, said.append).secrets == []
    assert "too large" in said[0]


def test_several_wheel_folders_become_one_context(tmp_path: Path) -> None:
    first, second, scratch = (tmp_path / name for name in ("first", "second", "scratch"))
    for folder in (first, second, scratch):
        folder.mkdir()
    (first / "a.whl").write_text("first")
    (second / "a.whl").write_text("second")
    (second / "b.whl").write_text("b")
    settings = image.PipSettings("", (first, second), None, "", ())
    wheels = Path(image._plan(settings, scratch, print).contexts["wheels"])
    assert {file.name: file.read_text() for file in wheels.iterdir()} == {
        "a.whl": "first",
        "b.whl": "b",
    }


# ---- what the machine's apt knows

DUMP = """\
Acquire::http::Proxy "http://u:p@proxy.invalid:3128";
Acquire::http::Proxy::direct.invalid "DIRECT";
Acquire::https::Proxy "";
Acquire::Check-Date "false";
Acquire::Languages "none";
"""
TARGETS = """\
Other|main|http://other.invalid/
Debian|contrib|http://contrib.invalid/debian/
Debian|main|http://mirror.invalid/debian/
Debian|main|http://second.invalid/debian/
"""


def test_apts_settings_that_a_build_can_use_and_the_first_debian_mirror() -> None:
    settings = image.parse_apt_settings(DUMP, TARGETS)
    assert settings.conf.splitlines() == [
        'Acquire::http::Proxy "http://u:p@proxy.invalid:3128";',
        'Acquire::Check-Date "false";',
    ]
    assert settings.mirror == "http://mirror.invalid/debian/"


def test_pips_proxy_serves_apt_where_it_names_none() -> None:
    proxy = "http://proxy.invalid:3128"
    assert image.parse_apt_settings("", "", proxy).conf.splitlines() == [
        f'Acquire::http::Proxy "{proxy}";',
        f'Acquire::https::Proxy "{proxy}";',
    ]
    assert proxy not in image.parse_apt_settings(DUMP, "", proxy).conf


def test_a_machine_without_apt_knows_no_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert image.apt_settings() == image.AptSettings()


@pytest.mark.parametrize("own_bundle", [True, False])
def test_what_apt_is_told_in_a_build_is_readable_by_its_owner_only(
    tmp_path: Path, own_bundle: bool
) -> None:
    settings = image.parse_apt_settings(DUMP, TARGETS)
    secrets = image._apt_secrets(settings, tmp_path, own_bundle=own_bundle)
    assert [secret.split(",")[0] for secret in secrets] == ["id=apt_conf", "id=apt_mirror"]
    conf, mirror = tmp_path / "apt_conf", tmp_path / "apt_mirror"
    assert {stat.S_IMODE(file.stat().st_mode) for file in (conf, mirror)} == {0o600}
    assert 'APT::Sandbox::User "root";' in conf.read_text()
    assert ("CAInfo" in conf.read_text()) is own_bundle
    assert mirror.read_text().strip() == settings.mirror


def test_only_images_of_debian_packages_are_told_of_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_that(
        tmp_path,
        monkeypatch,
        f'echo "$*" >> {tmp_path}/asked\n'
        'case "$*" in *"image inspect"*) echo "Error: No such image: x" >&2; exit 1 ;; esac',
    )
    targets: tuple[image.Target, ...] = ("cpu", "netfault", "redis")
    for target in targets:
        image.build_image(target=target, say=lambda line: None, base="a-base")
    builds = [b for b in (tmp_path / "asked").read_text().splitlines() if "buildx build" in b]
    assert ["apt_conf" in build for build in builds] == [False, True, True]
    assert f"--tag {image.NETFAULT_IMAGE}" in builds[1]
    assert f"--tag {image.REDIS_IMAGE}" in builds[2]


# ---- the engine's answers, from a client that is a script


def client_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    docker = folder / "docker"
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_no_client_is_said_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match=r"no docker client.*make engine"):
        image.image_present()


def test_no_engine_is_said_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_that(tmp_path, monkeypatch, "echo Cannot connect to the daemon >&2; exit 1")
    with pytest.raises(CannotRun, match="Cannot connect to the daemon"):
        image.build_image(say=print)


def test_a_missing_buildx_is_said_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_that(
        tmp_path,
        monkeypatch,
        'case "$*" in\n'
        '  *inspect*) echo "Error: No such image: x" >&2; exit 1 ;;\n'
        '  *buildx*) echo "unknown command: docker buildx" >&2; exit 1 ;;\n'
        "esac",
    )
    with pytest.raises(CannotRun, match=r"no buildx plugin.*make engine"):
        image.build_image(say=print)


def test_a_failed_build_shows_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_that(
        tmp_path,
        monkeypatch,
        'case "$*" in\n'
        '  *"buildx build"*) echo "#9 ERROR: no matching distribution" >&2; exit 1 ;;\n'
        '  *"image inspect"*) echo "Error: No such image: x" >&2; exit 1 ;;\n'
        "esac",
    )
    said: list[str] = []
    with pytest.raises(CannotRun, match="no matching distribution"):
        image.build_image(say=said.append, base="a-base")
    assert "#9 ERROR: no matching distribution" in said


def test_a_base_that_cannot_be_had_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_that(
        tmp_path,
        monkeypatch,
        'case "$*" in\n'
        '  *inspect*) echo "Error: No such image: x" >&2; exit 1 ;;\n'
        '  pull*) echo "no such host"; exit 1 ;;\n'
        "esac",
    )
    monkeypatch.setattr(image, "_which_debootstrap", lambda: None)
    with pytest.raises(CannotRun) as caught:
        image.build_image(say=print)
    assert "no such host" in str(caught.value)
    assert "debootstrap is not installed" in str(caught.value)


def test_a_registry_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_that(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(image, "_FIRST_ANSWER_S", 0.2)
    assert "did not answer" in str(image._pull("x", print))


# ---- what is written down more than once must agree


def dockerfile() -> str:
    return (asset_path("docker") / "Dockerfile").read_text()


def default_of(argument: str) -> str:
    (found,) = set(re.findall(rf"^ARG {argument}=(.*)$", dockerfile(), re.MULTILINE))
    return str(found)


def test_the_dockerfile_has_the_same_pins() -> None:
    assert default_of("RAY_VERSION") == image.RAY_VERSION
    assert default_of("TORCH_VERSION") == image.TORCH_VERSION
    assert default_of("BASE_IMAGE") == image.DEFAULT_BASE


def test_the_extra_local_has_the_same_pins() -> None:
    project = Path(__file__).parent.parent / "pyproject.toml"
    assert f"ray[default,serve]=={image.RAY_VERSION}" in project.read_text()
    assert f"torch=={image.TORCH_VERSION}" in project.read_text()


def test_nothing_of_the_simulator_is_in_the_image() -> None:
    instructions = [line.split()[0] for line in dockerfile().splitlines() if line[:1].isupper()]
    assert not {"COPY", "ADD", "ENTRYPOINT", "CMD", "VOLUME"} & set(instructions)


def test_the_gpu_override_gives_devices_to_the_head_alone() -> None:
    override = yaml.safe_load((asset_path("docker") / "gpu.yaml").read_text())
    assert list(override["services"]) == ["head"]
    head = override["services"]["head"]
    assert image.GPU_IMAGE in head["image"]
    assert head["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_every_image_is_a_stage_and_bare_ray_stands_on_the_same_python() -> None:
    above = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\w+)$", dockerfile(), re.M)}
    assert set(image.IMAGES) <= set(above)
    assert above["lean"] == above["ray"] == "python"
    for target in image.OF_DEBIAN:
        assert above[target] == "${BASE_IMAGE}", "it costs what its tools cost"
    for target, tag in image.IMAGES.items():
        version = "1" if target in image.OF_DEBIAN else f"{image.RAY_VERSION}-{target}"
        assert tag.endswith(f":{version}")


def test_the_standard_library_is_compiled_in_every_image() -> None:
    python = re.findall(r"AS python\n(.*?)^FROM", dockerfile(), re.MULTILINE | re.DOTALL)[0]
    assert "compileall" in python
    assert 'get_path("stdlib")' in python


def test_the_lean_override_changes_workers_alone() -> None:
    override = yaml.safe_load((asset_path("docker") / "lean.yaml").read_text())
    assert list(override["services"]) == ["worker"]
    assert set(override["services"]["worker"]) == {"image", "labels"}
    assert image.LEAN_IMAGE in override["services"]["worker"]["image"]
